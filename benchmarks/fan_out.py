"""How long until a post is gone from the timelines of 100,000 followers?

    python benchmarks/fan_out.py                     a million entries, ten a timeline
    python benchmarks/fan_out.py --users 10000 --others 900000

Every user follows one author, and has `--pages` entries "timeline:{user}:{page}". The author posts:
a message goes into the queue, and a reader in another thread looks at 200 timelines, chosen by
chance, until none of them has an old page. That is "gone"; "applied" is when the last entry has
been released. "processor" is the time of all threads of this process until then: on a machine that
others use as well it says more than the clock.

Beside it runs the code of the reference, on a dict whose delete_pattern() looks at every key with
fnmatch: one such look a follower. It is measured at small sizes, and its time for the full size is
those times scaled by followers x keys, which is what its loops do.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from datetime import date
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from lapse import MemoryQueue, SocialMediaCacheInvalidation, TTLCache

SAMPLE = 200  # timelines that the reader looks at
NAP = 0.0005  # seconds between its looks
SMALL = [(50, 5_000), (100, 10_000), (200, 20_000)]  # followers and keys, for the reference
AUTHOR = -1
POST = {"type": "feed_update", "update_type": "new_post", "user_id": AUTHOR, "post_id": 1}


class Followers:
    """The database: everybody follows the author."""

    def __init__(self, users: int) -> None:
        self.users = list(range(users))

    def get_followers(self, user_id: int) -> list[int]:
        return self.users


# --- The reference ---


class DictCache:
    """A cache of the kind that the reference's classes expect."""

    def __init__(self) -> None:
        self.cache: dict[str, Any] = {}

    def set(self, key: str, value: Any) -> None:
        self.cache[key] = value

    def delete_pattern(self, pattern: str) -> int:
        found = [key for key in self.cache if fnmatchcase(key, pattern)]
        for key in found:
            del self.cache[key]
        return len(found)


def handle_feed_update(cache: DictCache, database: Followers, message: dict[str, Any]) -> None:
    """What the reference does for a new post."""
    user_id = message["user_id"]
    cache.delete_pattern(f"timeline:{user_id}:*")
    for follower_id in database.get_followers(user_id):
        cache.delete_pattern(f"timeline:{follower_id}:*")


def time_reference(followers: int, keys: int) -> float:
    """Seconds."""
    cache = DictCache()
    fill(cache.set, followers, pages=keys // followers, others=0)
    began = time.perf_counter()
    handle_feed_update(cache, Followers(followers), POST)
    assert not cache.cache
    return time.perf_counter() - began


# --- Ours ---


def fill(store: Callable[[str, Any], Any], users: int, pages: int, others: int) -> None:
    """Timelines, and entries that are something else."""
    for user in range(users):
        for page in range(pages):
            store(f"timeline:{user}:{page}", page)
    for n in range(others):
        store(f"post:{n}", n)


class Moment(NamedTuple):
    """Seconds: by the clock, and of the processor."""

    clock: float
    processor: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: Moment) -> Moment:
        return Moment(self.clock - began.clock, self.processor - began.processor)


def wait_until_gone(cache: Any, keys: Iterable[str], found: list[Moment]) -> None:
    """Write down when a look at these keys first found none."""
    while any(key in cache for key in keys):
        time.sleep(NAP)
    found.append(Moment.now())


def time_ours(users: int, pages: int, others: int, indexed: bool) -> tuple[Moment, Moment]:
    """From the event to gone, and to applied."""
    cache: TTLCache[str, int] = TTLCache(3600, cleanup_interval=None)
    fill(cache.set, users, pages, others)
    if indexed:
        cache.delete_pattern("timeline:nobody:*")
    queue, draw, gone = MemoryQueue(), random.Random(1), list[Moment]()
    sample = [f"timeline:{draw.randrange(users)}:{draw.randrange(pages)}" for _ in range(SAMPLE)]
    reader = threading.Thread(target=wait_until_gone, args=(cache, sample, gone))
    with SocialMediaCacheInvalidation(cache, Followers(users), queue) as scenario:
        reader.start()
        began = Moment.now()
        queue.publish(POST)
        reader.join()
        while not scenario.event_stats().applied:
            time.sleep(NAP)
        applied = Moment.now()
    assert len(cache) == others
    return gone[0].since(began), applied.since(began)


def milliseconds(times: Iterable[float]) -> str:
    """The median, and the extremes."""
    sorted_times = sorted(1e3 * each for each in times)
    middle = statistics.median(sorted_times)
    return f"{middle:8.1f} ms   ({sorted_times[0]:.1f} to {sorted_times[-1]:.1f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=100_000, help="followers of the author")
    parser.add_argument("--pages", type=int, default=10, help="entries of each of them")
    parser.add_argument("--others", type=int, default=0, help="entries that are no timelines")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    keys = given.users * given.pages + given.others
    print(f"CPython {platform.python_version()}, {platform.machine()}, {date.today()}")
    print(f"{given.users:,} followers, {keys:,} entries; median of {given.rounds}")
    for indexed in (False, True):
        rounds = [
            time_ours(given.users, given.pages, given.others, indexed) for _ in range(given.rounds)
        ]
        print(f"lapse, prefixes {'indexed before' if indexed else 'not indexed'}")
        for what, times in zip(("gone", "applied"), zip(*rounds, strict=True), strict=True):
            print(f"    {what:8} {milliseconds(each.clock for each in times)}")
            print(f"    {'':8} {milliseconds(each.processor for each in times)}  processor")
    print("the reference on a dict")
    for followers, size in SMALL:
        taken = min(time_reference(followers, size) for _ in range(3))
        full = taken * given.users / followers * keys / size
        print(
            f"    {followers:,} followers, {size:,} entries: {1e3 * taken:,.0f} ms,"
            f" scaled to the full size {full:,.0f} s"
        )


if __name__ == "__main__":
    main()
