"""What a finalizer or a signal handler may break: it runs in the midst of lapse's own Python code.

CPython runs them between two instructions of the thread that is interrupted, so a re-entrant lock
keeps them out of nothing. They come after a call, at the beginning of a function or of the next
round of a loop; before 3.12 where an object is made, too, and before 3.11 after any jump.
`each_interruption()` makes a call anew for every such point of lapse's code, and runs something
else there, which may raise `Interrupt`.
"""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

import pytest

from faults import SOURCE

MOST = 5000  # points of one call: more are a call that does not end
AFTER = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "BUILD")
JUMP = "POP_JUMP_BACKWARD" if sys.version_info >= (3, 11) else "POP_JUMP_IF"  # if it is taken
_names: dict[CodeType, dict[int, str]] = {}


class Interrupt(BaseException):
    """What a handler may raise, as Ctrl-C does: it ends the call that it interrupts."""


def interrupt(_: Any) -> None:
    """A handler: Ctrl-C."""
    raise Interrupt


def _is_point(code: CodeType, last: int | None, now: int) -> bool:
    """May something else run between the instruction at `last` (None: there is none) and `now`?"""
    if last is None:
        return True
    if code not in _names:
        _names[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
    name = _names[code][last]
    return name.startswith(AFTER) or (name.startswith(JUMP) and now != last + 2)


class _Interruption:
    """The trace function that calls `handler` once, at the point number `n`."""

    def __init__(self, n: int, handler: Callable[[], Any]) -> None:
        self.left, self.handler = n, handler
        self.last: dict[FrameType, int | None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE) or self.left < 0:
            return None
        if event == "call":
            frame.f_trace = self  # CPython 3.13 wants it before the next line
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self.last[frame] = None
        elif event == "opcode":
            is_point = _is_point(frame.f_code, self.last.get(frame), frame.f_lasti)
            self.last[frame] = frame.f_lasti
            if is_point:
                self._pass()
        return self

    def _pass(self) -> None:
        self.left -= 1
        if self.left < 0:
            sys.settrace(None)
            self.handler()


def _interrupted(n: int, call: Callable[[], Any], handler: Callable[[], Any]) -> bool:
    """Make the call; was it interrupted, or is it over before the point number `n`?"""
    interruption = _Interruption(n, handler)
    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()  # or the finalizers of others would be interrupted
    sys.settrace(interruption)
    try:
        with suppress(Interrupt):
            call()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return interruption.left < 0


def each_interruption(
    prepare: Callable[[], Any], call: Callable[[Any], Any], handler: Callable[[Any], Any]
) -> Iterator[Any]:
    """For each point of `call(prepare())` where `handler` ran as well: what was prepared."""
    _interrupted(MOST, lambda: call(prepare()), int)  # has the interpreter trace instructions
    for n in range(MOST):
        thing = prepare()
        if not _interrupted(n, lambda thing=thing: call(thing), lambda thing=thing: handler(thing)):  # type: ignore[misc]
            assert n > 0, "no point was reached"
            return
        yield thing
    pytest.fail("the call does not end")
