"""The process around the caches: fork, interpreter exit, and what importing lapse brings in."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref

import pytest

import lapse
from lapse.invalidation import OptimizedInvalidation
from lapse.invalidation import process as process_module
from lapse.invalidation import queue as queue_module
from lapse.invalidation.fanout import Fanout
from lapse.loading.sources import MappingSource
from lapse.sweeper import Sweeper
from support import (
    FREE_THREADED,
    KINDS,
    SOON,
    Dying,
    check,
    in_child,
    in_child_of_another_thread,
    run_python,
    wait_until,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture
def _unswept_children(monkeypatch):
    """No sweeper in children: nobody else may use a table that is checked."""
    lapse.TTLCache(cleanup_interval=300)  # so there is one here
    monkeypatch.setattr(Sweeper, "_start", lambda sweeper: None)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("_unswept_children")
def test_a_forked_child_uses_the_cache(kind):
    """A child reads, writes and clears its copy of a cache; the parent's stays as it is."""
    cache = KINDS[kind][0](cleanup_interval=0.01)
    cache.set_many((n, n) for n in range(5000))

    def work() -> None:
        assert cache.gather(range(5000)) == list(range(5000))
        cache.set_many((n, -n) for n in range(10_000))
        assert cache[9999] == -9999
        check(cache)
        cache.clear()
        cache.close()

    assert in_child(work) == 0
    assert cache.gather(range(5000)) == list(range(5000))
    assert len(cache) == 5000
    cache.close()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_sweeper_runs_on_in_a_child():
    """A child sweeps inherited and new caches, though its parent's thread is not there."""
    old = lapse.TTLCache(0.02, cleanup_interval=0.01)
    old.set_many((n, n) for n in range(100))

    def work() -> None:
        new = lapse.TTLCache(0.02, cleanup_interval=0.01)
        deaths: list[int] = []
        for cache in (old, new):
            cache.set("a", Dying(lambda: deaths.append(1)))
        assert wait_until(lambda: len(deaths) == 2)

    assert in_child(work) == 0
    old.close()


class Broken:
    """What fails in a forked child."""

    def fail(self) -> None:
        raise RuntimeError("can't start new thread")

    _after_fork = _renew_in_child = _restart_in_child = fail


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_fails_in_a_child_leaves_the_others_usable(caplog):
    """Whatever comes behind it gets locks of its own all the same, and a thread."""
    broken = [Broken() for _ in range(3)]
    lapse.forks.watch(broken[0])
    source = MappingSource({"a": 1})
    queues = [OptimizedInvalidation(lapse.TTLCache(60)) for _ in range(2)]
    queue_module.__dict__["_queues"][id(broken[1])] = weakref.ref(broken[1])
    queues.append(OptimizedInvalidation(lapse.TTLCache(60)))
    process_module.watch(broken[2])
    fanout = Fanout()

    def work() -> None:
        assert source.fetch("a") == 1
        for queue in queues:
            queue.flush()
        fanout.publish("a")
        assert caplog.text.count("of a Broken failed") == 4

    with source._lock, fanout._changed, queues[-1]._flushing:
        assert in_child_of_another_thread(work) == 0
    del queue_module.__dict__["_queues"][id(broken[1])]
    for queue in queues:
        queue.close()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("_unswept_children")
def test_fork_while_threads_write(kind):
    """A fork in the midst of other threads' writes leaves the child a usable cache."""
    cache = KINDS[kind][0](cleanup_interval=0.001)
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            cache.set(n % 3000, n, 0.01)
            cache.delete((n * 7) % 3000)
            n += 1

    def work() -> None:
        cache.set_many((n, str(n)) for n in range(5000))
        assert cache.get(4999) == "4999"
        cache.expire()
        assert cache._check()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        assert [in_child(work) for _ in range(8)] == [0] * 8
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    cache.close()


EXIT = """
import lapse, time
caches = [cls(0.001, cleanup_interval=0.001) for _ in range(20)
          for cls in (lapse.TTLCache, lapse.SlidingTTLCache, lapse.ProbabilisticTTLCache)]
for cache in caches:
    cache.set_many((n, [n]) for n in range(5000))
while not any(cache.stats().expirations for cache in caches):
    pass
for cache in caches:
    cache.set_many((n, [n]) for n in range(5000))
print(time.monotonic())
"""


def test_exit_while_sweeping():
    """The interpreter ends cleanly and soon in the midst of sweeps."""
    child = run_python(EXIT)
    ended = time.monotonic()
    assert (child.returncode, child.stderr) == (0, "")
    if sys.platform == "linux":  # where monotonic time is the same in both processes
        assert ended - float(child.stdout) < SOON


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit(0)",
        "import threading; threading.Thread(target=c.expire).start()",
        "import atexit; atexit.register(lambda: c.get(1))",
        "sys.modules['keep'] = c; del sys.modules['lapse']",
        "c.set('self', c); sys.stays = c",
        "class D:\n    def __del__(self, c=c): c.set(2, 2), type(c)().set(1, 1)\nc.set('d', D())",
        "import gc; gc.disable(); c.set('c', [c])",
        "import os; os._exit(0)",
    ],
)
def test_ends_of_the_interpreter(ending):
    """Whatever refers to a cache at the end, the interpreter ends cleanly."""
    start = "import lapse, sys\nc = lapse.SlidingTTLCache(cleanup_interval=0.001)\nc.set(1, [1])\n"
    child = run_python(start + ending)
    assert (child.returncode, child.stderr) == (0, "")


IMPORTS = """
import sys
before = set(sys.modules)
import lapse
cache = lapse.TTLCache()
cache.set("a", 1), cache.get("a"), cache.stats(), repr(cache)
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(names - sys.stdlib_module_names - {"lapse"}))
"""


def test_the_import_brings_in_the_standard_library_only():
    """`import lapse` imports nothing outside the standard library and lapse."""
    child = run_python(IMPORTS)
    foreign = [name for name in child.stdout.split() if "cython" not in name]  # of its runtime
    assert (child.returncode, foreign) == (0, []), child.stderr


def test_every_public_name_resolves():
    """Each name in `lapse.__all__` is there, and the version is a version."""
    assert {"TTLCache", "SlidingTTLCache", "ProbabilisticTTLCache"} <= set(lapse.__all__)
    assert {"ManualClock", "CacheStats"} <= set(lapse.__all__)
    assert all(hasattr(lapse, name) for name in lapse.__all__)
    assert lapse.__version__.count(".") >= 1


@pytest.mark.skipif(not FREE_THREADED, reason="this interpreter has a GIL")
def test_the_gil_stays_off():
    """On a free-threaded build importing and using lapse, both extensions, leaves the GIL off."""
    use = "import lapse, lapse._queue; lapse.TTLCache()"
    child = run_python(f"import sys; {use}; print(sys._is_gil_enabled())")
    assert child.stdout.strip() == "False", child.stderr
    assert "GIL" not in child.stderr
