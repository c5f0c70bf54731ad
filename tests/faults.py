"""Memory that runs out at one chosen point of a call, and what is left behind then.

    python    an allocation of CPython's own allocators fails, by `_testcapi.set_nomemory`
    native    a request of the table for memory is refused, by `_core._refuse_memory`
    short     that one and all behind it: what is tried again fails, too
    step      an instruction of lapse's Python code that may ask for memory raises MemoryError

`each_failure()` makes a call anew for every such point. Only the bare call is armed. CPython itself
does not survive every refusal where Python code makes functions and generators: hence "step". Nor
does it where an extension's traceback is made (PyCode_NewEmpty() leaves a freed name among the
interned ones): hence no call here raises by itself.
"""

from __future__ import annotations

import ctypes
import dis
import gc
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, ClassVar

import pytest

import lapse
from lapse import _core, _queue
from support import FREE_THREADED, check

try:
    import _testcapi
except ImportError:
    _testcapi = None

NEVER = 1 << 40
MOST = 5000  # points of one call: more are a call that does not end
PASSES = 30  # a pass may grow a dict of weak references, or shrink it

Fault = tuple[bool, bool]  # was the point reached; did the call raise MemoryError?


class Value:
    """A value that is known by its name; those that are alive are counted."""

    alive: ClassVar[weakref.WeakSet[Value]] = weakref.WeakSet()

    def __init__(self, name: str):
        self.name = name
        self.alive.add(self)

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self.name == other.name

    def __repr__(self) -> str:
        return self.name


# --- CPython's allocators ---


def _use_up(n: int) -> None:
    """Make more than `n` allocations."""
    for _ in itertools.repeat(None, n + 2):
        object()


def _python(n: int, call: Callable[[], Any]) -> Fault:
    reached, raised = True, False
    _testcapi.set_nomemory(n, n + 1)
    try:
        call()
        try:
            _use_up(n)
        except MemoryError:
            reached = False
    except MemoryError:
        raised = True
    finally:
        _testcapi.remove_mem_hooks()
    return reached, raised


# --- The native table's memory ---


def _native(n: int, call: Callable[[], Any], end: int = 0) -> Fault:
    raised = False
    _core._refuse_memory(n, end or n + 1)
    _queue._refuse_memory(n, end or n + 1)
    try:
        call()
    except MemoryError:
        raised = True
    finally:
        asked = [_core._refuse_memory(0, 0), _queue._refuse_memory(0, 0)]
    return max(asked) > n, raised


def _short(n: int, call: Callable[[], Any]) -> Fault:
    return _native(n, call, NEVER)


# --- Instructions of Python code ---

SOURCE = str(Path(lapse.__file__).parent)
ASKING = ("BINARY", "BUILD", "CALL", "COMPARE", "FOR_ITER", "GET_ITER", "LIST", "DICT", "SET_")
ASKING += ("MAKE_FUNCTION", "STORE_SUBSCR", "UNPACK", "BEFORE_WITH", "FORMAT")
MODEST = {"release", "remove"}  # methods of C that need no memory
_points: dict[int, tuple[CodeType, set[int]]] = {}  # by id(): hashing code takes long


def _points_of(code: CodeType) -> set[int]:
    """Where in the code memory may be asked for; not where a `with` ends: locks need none."""
    if id(code) not in _points:
        points, before, method = set(), [None] * 3, None
        for each in dis.get_instructions(code):
            if each.opname in ("CACHE", "PRECALL"):
                continue
            if each.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                method = each.argval
            leaving = all(
                one and one.opname == "LOAD_CONST" and one.argval is None for one in before
            )
            if each.opname.startswith(ASKING) and not leaving:
                if not (each.opname.startswith("CALL") and method in MODEST):
                    points.add(each.offset)
                method = None
            before = [*before[1:], each]
        _points[id(code)] = code, points
    return _points[id(code)][1]


def _step(n: int, call: Callable[[], Any]) -> Fault:
    passed, raised = 0, False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal passed
        if event == "call":
            if not frame.f_code.co_filename.startswith(SOURCE):
                return None
            frame.f_trace = trace  # CPython 3.13 wants it before the next line
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode" and frame.f_lasti in _points_of(frame.f_code):
            passed += 1
            if passed == n + 1:
                raise MemoryError("on purpose")
        return trace

    sys.settrace(trace)
    try:
        call()
    except MemoryError:
        raised = True
    finally:
        sys.settrace(None)
    return passed > n, raised


# --- All of them ---

WAYS: dict[str, Callable[[int, Callable[[], Any]], Fault]] = {
    "python": _python,
    "native": _native,
    "short": _short,
    "step": _step,
}


def skip_what_cannot_be(way: str) -> None:
    """Skips the test if this interpreter cannot let memory run out in that way."""
    if way == "python" and _testcapi is None:
        pytest.skip("this interpreter has no _testcapi")
    if way == "python" and FREE_THREADED:
        pytest.skip("a free-threaded CPython does not survive this itself")


def each_failure(way: str, prepare: Callable[[], Any], call: Callable[[Any], Any]) -> Iterator[Any]:
    """For each point of `call(prepare())`: what was prepared, and whether the call has raised."""
    if way == "step" and sys.version_info < (3, 11):
        pytest.skip(
            "CPython 3.10 calls __exit__ by instructions like any other: they would fail, too"
        )
    if way == "step":  # the first run makes the interpreter trace instructions
        _step(NEVER, lambda: call(prepare()))
    for n in range(MOST):
        thing = prepare()
        reached, raised = WAYS[way](n, lambda thing=thing: call(thing))  # type: ignore[misc]
        if not reached:
            return
        yield thing, raised
    pytest.fail("the call does not end")


# --- What is left ---


def contents(cache: Any) -> dict[Any, Any]:
    """Every entry with its dates and tags, by key; the cache is checked."""
    check(cache)
    return {entry[0]: (*entry[1:6], frozenset(entry[6])) for entry in cache._entries()}


def between(state: Any, before: Any, after: Any) -> bool:
    """Is every entry as it was, or as it is after the call?"""
    keys = {*state, *before, *after}
    return all(state.get(key) in (before.get(key), after.get(key)) for key in keys)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]


try:
    _mallinfo2 = ctypes.CDLL(None).mallinfo2
    _mallinfo2.restype = _Mallinfo2
except (AttributeError, OSError, TypeError):
    _mallinfo2 = None  # another C library than glibc


# The cache of attributes of types keeps names that nobody else needs, such as pickle's.
_clear_caches = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache


def _in_use() -> tuple[int, int, int]:
    """Values, blocks of Python's memory, and bytes of the C library's, as far as they are known."""
    _clear_caches()
    gc.collect()
    return len(Value.alive), sys.getallocatedblocks(), _mallinfo2().h if _mallinfo2 else 0


def leaves_nothing_behind(work: Callable[[], Any], way: str = "") -> None:
    """Fails if `work` leaks, even after the passes in which caches of all kinds fill.

    What leaks is left behind by every pass; what others do meanwhile shows in some, so the least of
    each counts. By "step" that of values alone: CPython itself keeps blocks for each trace function
    that raises.
    """
    work()
    least = [sys.maxsize] * 3
    for _ in range(PASSES):
        first, second = _in_use(), _in_use()
        work()
        third = _in_use()
        left = [c - b - (b - a) for a, b, c in zip(first, second, third, strict=True)]
        least = [min(pair) for pair in zip(least, left, strict=True)]
        if max(least[:1] if way == "step" else least) <= 0:
            return
    pytest.fail("values, blocks, bytes left behind by each pass: {}, {}, {}".format(*least))
