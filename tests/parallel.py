"""Every test in several threads at once, under pytest-run-parallel: `pytest --parallel-threads=4`.

Each thread calls the test with fixtures of its own, so what they share is what a process has but
once: the sweeper, the board of loads, the hooks of a fork, classes, the interpreter. Fixtures that
outlive a test, or want more of the request than its parameter, are shared.

Tests that cannot be so run stay in one thread, marked `thread_unsafe`, which plain pytest knows and
ignores; the plugin finds others by itself: those that use monkeypatch, capsys or gc.collect().
"""

from __future__ import annotations

import functools
import inspect
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

__all__ = ["prepare"]

#: Why tests cannot run beside themselves, by a fixture, or by a part of their names.
FIXTURES = {"caplog": "reads the log, which all threads write"}
UNSAFE = {
    "test_a_million_dead_entries_leave_nothing": "counts the memory blocks of the process",
    "test_a_lone_argument_is_its_own_key": "uses a function of its module",
    "test_answers[answer": "has iterators for parameters",
    "test_memory_is_given_back": "measures the memory of the process",
    "test_real_traces": "takes long enough alone",
    "test_waiting_for_a_worker_is_no_ring": "holds all workers, of which there is one set",
    "test_whoever_leads_looks_once_more": "puts another board in place",
    "test_versioned.py::TestBetween::": "has a hook that the class shares",
    "test_calls_that_mean_the_same": "makes so many functions that the collector stops all threads",
}


def prepare(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each thread its own fixtures, if there will be several."""
    if int(config.getoption("parallel_threads", 1)) == 1:
        return
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        reasons = [FIXTURES[name] for name in FIXTURES if name in item.fixturenames]
        reasons += [UNSAFE[part] for part in UNSAFE if part in item.nodeid]
        if reasons:
            item.add_marker(pytest.mark.thread_unsafe(reason=reasons[0]))
        else:
            item.obj = _with_own_fixtures(item)


def _with_own_fixtures(item: pytest.Function) -> Any:
    test, own = item.obj, _own_fixtures

    def call(*args: Any, **shared: Any) -> Any:
        with own(item, shared) as fixtures:
            return test(*args, **fixtures)

    # With the test's globals, in which the plugin looks for what is not thread-safe.
    function = FunctionType(call.__code__, test.__globals__, closure=call.__closure__)
    return functools.update_wrapper(function, test)


@contextmanager
def _own_fixtures(item: pytest.Function, shared: dict[str, Any]) -> Any:
    """The arguments of a test, made anew as far as that is possible."""
    known: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in known:
            make = _maker(item, name)
            if make is not None:
                needed = [each for each in inspect.signature(make).parameters if each != "request"]
                known[name] = ends.enter_context(make(**{each: get(each) for each in needed}))
            elif name in shared:  # as the plugin gives it to this thread
                known[name] = shared[name]
            elif name == "tmp_path":
                known[name] = Path(tempfile.mkdtemp(dir=item.funcargs[name]))
            else:
                known[name] = item.funcargs[name]
        return known[name]

    with ExitStack() as ends:
        yield {name: get(name) for name in shared}


def _maker(item: pytest.Function, name: str) -> Any:
    """What makes a fixture, as a context manager; None if it must be shared."""
    definitions = item._fixtureinfo.name2fixturedefs.get(name)
    if not definitions or definitions[-1].scope != "function":
        return None
    found = definitions[-1]
    make = getattr(found.func, "__func__", None)
    make = found.func if make is None else make.__get__(item.instance)
    if "request" in found.argnames:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if name not in params:
            return None
        make = functools.partial(make, request=SimpleNamespace(param=params[name]))
    return contextmanager(make if inspect.isgeneratorfunction(found.func) else _endless(make))


def _endless(make: Any) -> Any:
    """A fixture without an end as one that has one."""

    def fixture(**needed: Any) -> Any:
        yield make(**needed)

    fixture.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    return fixture
