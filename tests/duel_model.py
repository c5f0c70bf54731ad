"""The default policy of bounded caches in plain Python, step by step as csrc/contest.c runs it.

What is new joins the window, a ring. In a full cache the ring's oldest entry meets the first entry
at the hand, which walks over the main part in the order of hashes; the rule in force says which of
them goes, and gets a line in the history. Where the two rules disagree the contest is kept: who
of the two is asked for first has a vote for one rule or the other.

The table is table_model.py, the history history_model.py. One thread; no two keys of one hash.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from history_model import History
from table_model import GONE, MASK, Entry, Segment, Table, mixed

ASKS_MOST, USES_MOST = 15, 3
USES_AT_FIRST, USES_IN_WINDOW = 1, 2
AGE_AFTER, AGE_AFTER_LEAST = 30, 1280
WINDOW, WINDOW_RECENCY = 0.05, 0.15
WATCHED_LEAST, WATCHED_MOST = 1024, 8192
RECENCY_ABOVE, FREQUENCY_BELOW, PATIENCE = 0.2, 0.0, 40.0
COUNT_EVERY, PATIENT_SLOTS = 64, 16384
EXPIRED_AT_ONCE, PURGED_AT_ONCE = 32, 128

FREQUENCY, RECENCY = "frequency", "recency"


def within(least: int, n: int, most: int) -> int:
    return max(least, min(n, most))


def power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


def share_of(capacity: int, share: float) -> int:
    return within(1, int(capacity * share + 0.5), max(1, capacity - 1))


class Votes:
    """The rule in force, and the contests whose outcome is still to come."""

    class Contest(NamedTuple):
        loser: int
        winner: int
        reign: int
        rule: str

    def __init__(self, capacity: int) -> None:
        watched = power_of_two(within(WATCHED_LEAST, capacity // 4, WATCHED_MOST))
        self.rule, self.score = FREQUENCY, 0.0
        self.step = 1.0 / (PATIENCE + within(1, capacity, watched) / 50.0)
        self._mask, self._sample = watched - 1, power_of_two(capacity // 4 // watched) - 1
        self.contests: dict[int, Votes.Contest] = {}

    def vote(self, rule: str) -> None:
        self.score += self.step * ((1 if rule == RECENCY else -1) - self.score)
        if self.score > RECENCY_ABOVE:
            self.rule = RECENCY
        if self.score < FREQUENCY_BELOW:
            self.rule = FREQUENCY

    def keep(self, loser: int, winner: int, reign: int) -> bool:
        """Keep a contest, if its loser is one of the sample."""
        if loser >> 20 & self._sample:
            return False
        self.contests[loser >> 36 & self._mask] = Votes.Contest(loser, winner, reign, self.rule)
        return True

    def lost(self, h: int) -> Contest | None:
        """The contest that this hash has lost."""
        if h >> 20 & self._sample:
            return None
        contest = self.contests.get(h >> 36 & self._mask)
        return contest if contest is not None and contest.loser == h else None

    def close(self, contest: Contest) -> None:
        del self.contests[contest.loser >> 36 & self._mask]


class Hand:
    """Where the next victim is looked for, and who waits there."""

    def __init__(self) -> None:
        self.place = self.slot = self.last_visit = 0
        self.at: int | None = None  # the first hash of the segment that it has entered
        self.head: int | None = None
        self.reign = self.standing = 0

    def arrive(self, s: Segment, now: int) -> None:
        """It enters a segment, or finds another one where it was."""
        if self.at != s.first:
            self.at, self.slot = s.first, 0
            self.last_visit, s.visited = s.visited, now

    def go_on(self, s: Segment) -> None:
        self.place, self.slot, self.at = s.last + 1 & MASK, 0, None

    def meet(self, h: int) -> None:
        """This entry waits from now on."""
        if self.head != h:
            self.head, self.standing = h, 0
            self.reign += 1


class DuelModel:
    """A bounded cache of ints; `gone` has what has left it, in order, and why."""

    def __init__(
        self,
        maxsize: int,
        clock: Callable[[], float] = lambda: 0.0,
        whole: bool = False,
        seed: int = 1,
    ) -> None:
        self.maxsize, self.clock, self._whole = maxsize, clock, whole
        self.table, self.ring = Table(whole, maxsize), deque[tuple[int, int | None]]()
        self.history, self.votes, self.hand = History(maxsize, seed), Votes(maxsize), Hand()
        self.share, self.window = WINDOW, share_of(maxsize, WINDOW)
        self.window_most = share_of(maxsize, WINDOW_RECENCY) + 2
        self.full = False
        self.requests, self._half_life = 0, max(AGE_AFTER_LEAST, maxsize * AGE_AFTER) // 2
        self._next_age = max(AGE_AFTER_LEAST, maxsize * AGE_AFTER)
        self._earliest = inf  # no deadline comes before it
        self._expiry_hand = 0
        self.gone: list[tuple[Any, str]] = []

    # --- Requests ---

    def get(self, key: Any) -> bool:
        self.requests += 1
        e = self.table.entries.get(mixed(key))
        if e is None:
            return False
        if e.deadline <= self.clock():
            self._take(e, "expired")
            return False
        self._use(e)
        return True

    def set(self, key: Any, ttl: float | None = None) -> None:
        deadline = inf if ttl is None else self.clock() + ttl
        e = self._live(key)
        if e is None:
            self._store(key, deadline)
        else:
            self._prolong(e, deadline)

    def add(self, key: Any, ttl: float | None = None) -> bool:
        absent = self._live(key) is None
        if absent:
            self.set(key, ttl)
        return absent

    def touch(self, key: Any, ttl: float | None = None) -> bool:
        e = self._live(key)
        if e is not None:
            self._prolong(e, inf if ttl is None else self.clock() + ttl)
        return e is not None

    def delete(self, key: Any) -> bool:
        e = self.table.entries.get(mixed(key))
        if e is None:
            return False
        live = e.deadline > self.clock()
        self._take(e, "deleted" if live else "expired")
        return live

    def clear(self) -> None:
        """What is known of keys that are gone is forgotten, too."""
        self.table, self.full = Table(self._whole, self.maxsize), False
        self.ring.clear()
        self.history.buckets, self.votes.contests, self.hand.standing = [], {}, 0

    def keys(self) -> set[Any]:
        """Of what is live."""
        now = self.clock()
        return {e.key for e in self.table.entries.values() if e.deadline > now}

    # --- Storing ---

    def _live(self, key: Any) -> Entry | None:
        e = self.table.entries.get(mixed(key))
        return e if e is not None and e.deadline > self.clock() else None

    @staticmethod
    def _use(e: Entry) -> None:
        e.uses = min(e.uses + 1, USES_MOST)
        e.asks = min(e.asks + 1, ASKS_MOST)

    def _prolong(self, e: Entry, deadline: float) -> None:
        e.deadline = deadline
        self._earliest = min(self._earliest, deadline)
        self._use(e)

    def _take(self, e: Entry, cause: str) -> None:
        self.table.remove(e)
        self.gone.append((e.key, cause))

    def _store(self, key: Any, deadline: float) -> None:
        """What has expired makes way for the key's new entry; else its segment must have room."""
        now, e = self.clock(), Entry(key, mixed(key), deadline)
        if e.hash in self.table.entries:
            self._take(self.table.entries[e.hash], "expired")
        else:
            self._make_room(e.hash, now)
        while len(self.table.entries) >= self.maxsize:
            self._evict(e.hash, now)
        self._enter(e)
        self._earliest = min(self._earliest, deadline)
        self.table.add(e)

    def _enter(self, e: Entry) -> None:
        """While the cache fills, what comes when the window is full belongs to the main part."""
        self._age(self.table.segment_of(e.hash))
        e.young = len(self.ring) < (self.window_most if self.full else self.window)
        asks, went = self.history.recall(e.hash)
        e.asks = min(asks + 1, ASKS_MOST)
        if e.young:
            self.ring.append((e.hash, went))

    def _expire(self, s: Segment, now: float, most: int) -> bool:
        """Some of what has expired in a segment goes."""
        expired = [e for e in s.entries() if e.deadline <= now][:most]
        for e in expired:
            self._take(e, "expired")
        return bool(expired)

    def _make_room(self, h: int, now: float) -> None:
        while not (s := self.table.segment_of(h)).has_room(h):
            if not self._expire(s, now, PURGED_AT_ONCE):
                self.table.grow(s)

    # --- Eviction ---

    def _evict(self, newcomer: int, now: float) -> None:
        """What has expired goes first."""
        if self._earliest <= now:
            for here, s in self.table.lap(self._expiry_hand):
                if self._expire(s, now, EXPIRED_AT_ONCE):
                    self._expiry_hand = here
                    return
            self._earliest = min((e.deadline for e in self.table.entries.values()), default=inf)
        if not self.history.buckets:
            self.history.prepare()
        self.full = True
        self._count_requests()
        self._loser_is_back(newcomer)
        self._set_window()
        while not self._evict_one():
            pass

    def _count_requests(self) -> None:
        if self.history.now % COUNT_EVERY == 0 and self.requests >= self._next_age:
            self.history.age += 1
            self._next_age = self.requests + self._half_life

    def _set_window(self) -> None:
        by = (WINDOW_RECENCY if self.votes.rule == RECENCY else WINDOW) - self.share
        if by:
            one = 1.0 / self.maxsize
            self.share += max(-one, min(by, one))
            self.window = share_of(self.maxsize, self.share)

    def _age(self, s: Segment) -> None:
        """Halve the asks of a segment as often as is due."""
        due, s.aged = self.history.age - s.aged, self.history.age
        if due:
            for e in s.entries():
                e.asks >>= due

    def _find(self, h: int, young: bool) -> Entry | None:
        self._age(self.table.segment_of(h))
        e = self.table.entries.get(h)
        return e if e is not None and e.young == young else None

    def _let_go(self, e: Entry) -> bool:
        self._take(e, "evicted")
        self.history.remember(e.hash, e.asks)
        return True

    def _evict_one(self) -> bool:
        """False: an entry has only moved."""
        candidate = self._candidate() if len(self.ring) >= self.window else None
        if candidate is not None:
            e, went = candidate
            if went is None and e.asks <= 1 and e.uses < USES_IN_WINDOW:
                return self._let_go(e)
            return self._contest(e, went)
        victim = self._victim()
        if victim is None:
            victim, _ = self._candidate()
        return self._let_go(victim)

    def _candidate(self) -> tuple[Entry, int | None] | None:
        """The ring's oldest that is still there."""
        while self.ring:
            h, went = self.ring.popleft()
            e = self._find(h, True)
            if e is not None:
                return e, went
        return None

    def _contest(self, e: Entry, went: int | None) -> bool:
        victim = self._victim()
        if victim is None:
            return self._let_go(e)
        self.hand.meet(victim.hash)
        now = self.history.now
        staler = went is not None and now - went + self.window < now - self.hand.last_visit
        frequent = e.asks > victim.asks + (not staler)
        recent = went is not None or e.uses >= USES_IN_WINDOW
        admitted = recent if self.votes.rule == RECENCY else frequent
        if admitted and len(self.ring) >= self.window:
            return self._promote(e, False)
        loser, winner = (victim, e) if admitted else (e, victim)
        watched = frequent != recent and self._watch(loser.hash, winner.hash)
        if admitted:
            self.hand.head = None
            self._promote(e, watched)
        return self._let_go(loser)

    def _promote(self, e: Entry, watched: bool) -> bool:
        """It joins the main part; nothing is gone by that."""
        e.young, e.watched, e.uses = False, watched, USES_AT_FIRST
        return False

    # --- The hand ---

    def _victim(self) -> Entry | None:
        """The first entry of the main part that was not used since the hand's last visits."""
        passed = 0
        for _ in range((USES_MOST + 2) * (len(self.table.segments) + 1)):
            s = self.table.segment_of(self.hand.place)
            self._age(s)
            self.hand.arrive(s, self.history.now)
            victim, passed = self._search(s, passed)
            if victim is not None:
                return victim
            self.hand.go_on(s)
        return None

    def _search(self, s: Segment, passed: int) -> tuple[Entry | None, int]:
        """The first one in a segment, and how many it has passed by now."""
        uses = passed // PATIENT_SLOTS
        for slot in range(self.hand.slot, len(s.slots)):
            e = s.slots[slot]
            if e is None or e is GONE or e.young:
                continue
            self.hand.slot = slot
            if e.uses <= uses:
                return e, passed
            self._pass(e)
            self.hand.slot = slot + 1
            passed += 1
        return None, passed

    def _pass(self, e: Entry) -> None:
        """It was used since, and has one use less."""
        if self.hand.head == e.hash:
            for _ in range(self.hand.standing):
                self.votes.vote(FREQUENCY)
            self.hand.head, self.hand.standing = None, 0
        if e.watched and e.uses > USES_AT_FIRST:
            self.votes.vote(RECENCY)
        e.watched = False
        e.uses -= 1

    # --- Votes ---

    def _watch(self, loser: int, winner: int) -> bool:
        """The rules disagreed; whether the winner is to be watched."""
        if not self.votes.keep(loser, winner, self.hand.reign):
            return False
        self.hand.standing += self.votes.rule == FREQUENCY
        return self.votes.rule == RECENCY

    def _loser_is_back(self, h: int) -> None:
        """A key comes back: has it lost against one that was not used since?"""
        contest = self.votes.lost(h)
        if contest is None or not self.history.knows(h):
            return
        self.votes.close(contest)
        by_frequency, hand = contest.rule == FREQUENCY, self.hand
        standing = contest.reign == hand.reign and hand.head is not None and hand.standing > 0
        if by_frequency and not standing:
            return
        winner = self._find(contest.winner, False)
        if winner is None:
            return
        if by_frequency and winner.uses == 0:
            hand.standing -= 1
            self.votes.vote(RECENCY)
        elif not by_frequency and winner.watched and winner.uses <= USES_AT_FIRST:
            winner.watched = False
            self.votes.vote(FREQUENCY)
