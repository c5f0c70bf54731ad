"""Under load: the end of the interpreter, forks, subinterpreters, and very many short threads."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lapse.flight_board import board
from lapse.invalidation import OptimizedInvalidation
from support import FREE_THREADED, KINDS, PATIENCE, check, run_python
from test_process import in_child, needs_fork

LONG = 20 if os.environ.get("LAPSE_LONG") == "1" else 1

# --- The end of the interpreter ---

LOADED = """
import lapse, sys, threading, time
from lapse.invalidation import OptimizedInvalidation
from lapse.invalidation import queue as queues

queues.EXIT_WAIT = 30  # seconds; what a thread applies may take its time
cache = lapse.TTLCache(0.01, cleanup_interval=0.001, stale_ttl=1)
bounded = lapse.SlidingTTLCache(1, maxsize=50, listener=lambda *event: None)
queue = OptimizedInvalidation(cache, batch_size=3, batch_timeout=0.001)
running = set()

def write(n):
    cache.set(n % 700, [n], tags=(f"t{n % 5}",))
    bounded.set(n % 70, [n])
def read(n):
    cache.get(n % 700), cache.gather(range(50)), bounded.get(n % 70), list(cache.items())
def load(n):
    cache.get_or_load(f"k{n % 9}", lambda key: [key], refresh="thread")
def wait(n):
    cache.get_or_load("slow", lambda key: time.sleep(0.01), ttl=0.001)
def sweep(n):
    cache.expire(), bounded.expire(), cache.delete_pattern("k*"), cache.delete_tag("t1")
def flush(n):
    queue.invalidate_key(n), queue.invalidate_tag("t2"), queue.invalidate_table("k")
    queue.flush()
def make(n):
    lapse.TTLCache(0.001, cleanup_interval=0.001).set(n, [n])
    OptimizedInvalidation(cache, batch_timeout=0.001).invalidate_key(n)

def run(work):
    n = 0
    try:
        while True:
            work(n)
            running.add(work)
            n += 1
    except RuntimeError:  # a queue is closed, or no thread is to be had, at the end
        return

for work in WORKS:
    for _ in range(2):
        threading.Thread(target=run, args=(work,), daemon=True).start()
while len(running) < len(WORKS):
    time.sleep(0.001)
"""
WORKS = {
    "writers and readers": "[write, read]",
    "loaders": "[load, wait]",
    "sweepers": "[write, sweep]",
    "a queue": "[write, flush]",
    "caches and queues being made": "[make]",
    "all": "[write, read, load, wait, sweep, flush, make]",
}
ENDS = {
    "return": "",
    "sys.exit": "sys.exit(0)",
    "close": "queue.close(); cache.close(); bounded.close()",
}


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="CPython 3.10 may crash at its end where other threads run on",
)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("works", WORKS)
def test_exit_under_load(works, end):
    """The interpreter ends cleanly and soon whatever threads are doing with caches and queues."""
    for _ in range(LONG):
        code = LOADED.replace("WORKS", WORKS[works]) + f"print(time.monotonic())\n{ENDS[end]}"
        child = run_python(code)
        ended = time.monotonic()
        assert (child.returncode, child.stderr) == (0, "")
        if sys.platform == "linux":  # where monotonic time is the same in both processes
            assert ended - float(child.stdout) < 60


# --- Forks ---


@pytest.mark.skipif(
    FREE_THREADED, reason="CPython may fork while another thread holds an object's own lock"
)
@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_under_load(kind):
    """A child of a process that loads, invalidates and evicts in all threads has sound caches."""
    cache = KINDS[kind][0](60, cleanup_interval=0.001, stale_ttl=1)
    bounded = KINDS[kind][0](60, maxsize=40)
    queue = OptimizedInvalidation(cache, 3, 0.001, capacity=64, overflow_wait=0)
    stop = threading.Event()
    errors: list[BaseException] = []

    def run(work: Any) -> None:
        n = 0
        try:
            while not stop.is_set():
                work(n)
                n += 1
        except BaseException as error:
            errors.append(error)

    def use_bounded(n: int) -> None:
        bounded.set(n % 97, n, tags=(f"t{n % 3}",))
        bounded.get(n % 40)
        bounded.delete_tag("t1")

    works = [
        lambda n: cache.get_or_load(f"k:{n % 5}", lambda key: [key], refresh="thread"),
        lambda n: cache.get_or_load("slow", lambda key: time.sleep(0.001), ttl=0.001),
        lambda n: (queue.invalidate_key(f"k:{n % 5}"), queue.invalidate_table("k")),
        use_bounded,
    ]

    def in_the_child() -> None:
        queue.flush()
        assert cache.get_or_load("slow", lambda key: "child", timeout=PATIENCE) in ("child", None)
        assert cache.get_or_load("k:1", lambda key: [key], timeout=PATIENCE) == ["k:1"]
        queue.invalidate_key("k:1")
        queue.flush()
        assert "k:1" not in cache
        bounded.set_many({n: n for n in range(200)})
        assert len(bounded) == 40
        check(bounded)
        check(cache)
        assert not board.running

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        turns = 6 * LONG
        assert [in_child(in_the_child) for _ in range(turns)] == [0] * turns
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        queue.close()
        cache.close()
    assert errors == []


# --- Subinterpreters ---

SUBINTERPRETER = """
import sys
import lapse
cache = lapse.TTLCache(60)
cache.set("k", ["v"], tags=("t",))
CODE = '''
try:
    import lapse
except ModuleNotFoundError:
    outcome = "not found"
except ImportError:
    outcome = "refused"
else:
    cache = lapse.TTLCache(60, cleanup_interval=None)
    cache.set("k", 1, tags=("t",))
    assert cache.get("k") == 1 and cache.delete_tag("t") == 1 and cache._check()
    outcome = "works"
import os; os.write(1, (outcome + chr(10)).encode())
'''
for _ in range(3):
    RUN
    assert cache.get("k") == ["v"] and cache.get_or_load("l", str) == "l"
    assert cache.delete_tag("t") == 1 and cache._check()
    cache.set("k", ["v"], tags=("t",))
cache.close()
"""
SPAWN = {
    "run_in_subinterp": "import _testcapi; assert _testcapi.run_in_subinterp(CODE) == 0",
    "interpreters": (
        "try:\n"
        "        import _interpreters as them\n"
        "    except ImportError:\n"
        "        import _xxsubinterpreters as them\n"
        "    number = them.create()\n"
        "    failed = them.run_string(number, CODE)\n"
        "    assert not failed, failed\n"
        "    them.destroy(number)"
    ),
    "its own GIL": (
        "import _interpreters as them\n"
        "    number = them.create('isolated')\n"
        "    failed = them.run_string(number, CODE)\n"
        "    assert not failed, failed\n"
        "    them.destroy(number)"
    ),
    "its own GIL, at the exit": (
        "import _interpreters as them\n"
        "    number = them.create('isolated')\n"
        "    them.run_string(number, CODE)"
    ),
}


def skip_without_subinterpreters(child: Any) -> None:
    last = child.stderr.strip().rpartition("\n")[2]
    if child.returncode == 1 and last.startswith("ModuleNotFoundError") and "lapse" not in last:
        pytest.skip(f"this interpreter has no such subinterpreters: {last}")


@pytest.mark.parametrize("way", SPAWN)
def test_a_subinterpreter(way):
    """Importing lapse in a subinterpreter works, or is an ImportError; the main one goes on."""
    child = run_python(SUBINTERPRETER.replace("RUN", SPAWN[way]))
    skip_without_subinterpreters(child)
    assert (child.returncode, child.stderr) == (0, "")
    assert set(child.stdout.split()) in ({"works"}, {"refused"})


@pytest.mark.parametrize("way", SPAWN)
def test_a_subinterpreter_is_first(way):
    """Who imports lapse first has it; whoever comes later has it, too, or gets an ImportError."""
    first = SUBINTERPRETER[SUBINTERPRETER.index("CODE") :].partition("for _")[0]
    child = run_python(first + "if True:\n    " + SPAWN[way] + "\nexec(CODE)")
    skip_without_subinterpreters(child)
    assert (child.returncode, child.stderr) == (0, "")
    assert sorted(child.stdout.split()) in (["refused", "works"], ["works", "works"])


# --- Threads ---


def visit(cache: Any, n: int) -> None:
    """What a short-lived thread does with a cache: writes, reads, loads, tags, and a lease."""
    key, tag = f"own:{n}", f"t{n % 7}"
    cache.set(key, [n], tags=(tag, "all"))
    assert cache[key] == [n]
    assert cache.tags(key) == {tag, "all"}
    assert cache.get_or_load(f"shared:{n % 5}", lambda k: k) == f"shared:{n % 5}"
    assert cache.gather([key, "absent"]) == [[n], None]
    assert cache.incr("visits") > 0
    lease = cache.lease(f"leased:{n}")
    assert cache.fill(lease, n)
    assert cache.pop(f"leased:{n}") == n
    assert cache.delete(key)


def test_a_thousand_short_lived_threads(make):
    """Threads come and go by the thousand: all is right, and nothing stays behind."""

    def thousand() -> None:
        errors: list[BaseException] = []

        def run(n: int) -> None:
            try:
                visit(cache, n)
            except BaseException as error:
                errors.append(error)

        for start in range(0, 1000, 8):
            threads = [threading.Thread(target=run, args=(n,)) for n in range(start, start + 8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not errors, errors[0]

    cache = make(None, maxsize=None)
    thousand()
    for _ in range(LONG):
        gc.collect()
        bytes_before, blocks_before = sys.getsizeof(cache), sys.getallocatedblocks()
        before = cache["visits"]
        thousand()
        gc.collect()
        assert cache["visits"] == before + 1000
        assert sys.getsizeof(cache) <= bytes_before + 64 * 1024
        assert sys.getallocatedblocks() < blocks_before + 300
        assert not board.running
        assert not board.blocked
    check(cache)
    assert len(cache) == 6


def test_short_lived_threads_of_a_queue(make):
    """The same for producers of invalidations."""
    cache = make()
    with OptimizedInvalidation(cache, batch_timeout=0.01) as queue, ThreadPoolExecutor(8) as pool:
        for n in range(40):
            cache.set_many({f"a:{i}": i for i in range(20)})
            threads = [
                threading.Thread(target=queue.invalidate_key, args=(f"a:{i}",)) for i in range(20)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            queue.flush()
            assert len(cache) == 0, n
        assert [*pool.map(lambda _: queue.flush(), range(8))] == [None] * 8
        assert queue.stats().depth == 0
