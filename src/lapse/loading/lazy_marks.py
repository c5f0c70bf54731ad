"""Marks: what has stopped being true, and has not been looked for yet.

    "key"      hash of a key ──► Mark(number, keys of that hash)     each kind in the order of its
    "pattern"  its source    ──► Mark(number, compiled pattern)      numbers, oldest first
    "tag"      the tag       ──► Mark(number, tag)
    "all"      None          ──► Mark(number, None)

Every mark has a number, higher than those before it. A mark that is made again moves to the end,
with a new one.

Invariants
    1. Who reads `newest`, and then asks cover(), is told of every mark up to that number.
    2. A key is told from others by its hash alone, so cover() may say yes in vain, and no `__eq__`
       runs under the lock.
    3. At each moment every mark is there, or a coarser one in its place: the new one comes before
       the old ones go. A signal, the garbage collector or a fork may fall in between, wherever
       something is called: what was read before is read again before it is replaced.
    4. There are at most `most` marks. Beyond that the marks of keys that begin with the same
       literal table, up to a ":", become a pattern; if that does not leave room enough, all of
       them become one that covers everything. So what is marked stays marked.

Threads: fields are written under `_lock`, which is re-entrant: what interrupts a section may mark.
`count`, `newest` and `tagged` may be read without it.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any

from lapse._core import Pattern, table_pattern

__all__ = ["ALL", "KEY", "KINDS", "PATTERN", "TAG", "Mark", "Marks"]

KEY, PATTERN, TAG, ALL = KINDS = "key", "pattern", "tag", "all"
ALIKE = 8  # keys of one hash that are marked apart; more of them mark everything
LONGEST = 1024  # units of a pattern


class Mark:
    """A kind, a name by which it is found, a number, and what is marked."""

    __slots__ = ("kind", "name", "number", "target")

    def __init__(self, kind: str, name: Any = None, target: Any = None) -> None:
        self.kind, self.name, self.target = kind, name, target
        self.number = 0


class Marks:
    """The live marks of one cache, and how many there have been. Thread-safe."""

    __slots__ = (
        "_last", "_live", "_lock", "_most", "_patterns", "count", "counts", "newest", "tagged",
    )  # fmt: skip

    def __init__(self, most: int) -> None:
        self._most = most
        self._live: dict[str, OrderedDict[Any, Mark]] = {kind: OrderedDict() for kind in KINDS}
        self._patterns: list[Mark] | None = []  # as they are in `_live`; None: to be listed anew
        self._lock = threading.RLock()
        self._last = 0  # the highest number that was given
        #: Live marks.
        self.count = 0
        #: Is one of them of a tag?
        self.tagged = False
        #: The highest number of all marks so far that are found by cover().
        self.newest = 0
        #: marked, repeated, merged, retired, and what others count here.
        self.counts: Counter[str] = Counter()

    def renew(self) -> None:
        """In a forked child: no other thread holds the lock, whatever it looks like."""
        self._lock = threading.RLock()
        self._note()

    # --- Marking ---

    def add_key(self, key: Any) -> None:
        """Mark a key. TypeError if it is not hashable."""
        name = hash(key)
        live = self._live[KEY]
        new: tuple[Any, ...] = (key,)
        while new:
            with self._lock:
                old = live.get(name)
            keys = old.target if old is not None else ()
            for each in new:
                keys = _joined(keys, each)
            mark = Mark(KEY, name, keys) if len(keys) <= ALIKE else Mark(ALL)
            with self._lock:
                if live.get(name) is not old:
                    continue
                gone = self._admit(mark)
            # What a handler has marked in between, and this one has replaced, is marked again.
            replaced = [each for each in gone[:1] if each.name == name and each is not mark]
            new = replaced[0].target if replaced and replaced[0] is not old else ()

    def add(self, kind: str, name: Any = None, target: Any = None) -> None:
        """Make a mark of this kind and name, or make it again. O(1), amortised."""
        with self._lock:
            _gone = self._admit(Mark(kind, name, target))

    def _admit(self, mark: Mark) -> list[Mark]:
        """Count a mark, and let it in; what gives way to it, to be let go when the lock is free."""
        self.counts["marked"] += 1
        self.counts["repeated"] += mark.name in self._live[mark.kind]
        gone = self._put(mark)
        if self.count > self._most:
            gone += self._merge()
        return gone

    def _put(self, mark: Mark) -> list[Mark]:
        """Let a mark in, and give it its number; what gives way to it."""
        live = self._live[mark.kind]
        before: Mark | None = None
        if mark.name not in live:  # twice the same, as no call and no jump may come in between
            mark.number = self._last = self._last + 1
            live[mark.name] = mark
        else:
            before = live[mark.name]
            mark.number = self._last = self._last + 1
            live[mark.name] = mark
        live.move_to_end(mark.name)
        gone = [] if before is None else [before]
        if mark.kind == ALL:
            for kind in (KEY, PATTERN, TAG):
                others = list(self._live[kind].values())
                gone += self._take_out([each for each in others if each.number < mark.number])
        self._note()
        if mark.number > self.newest:  # else a handler has made one more meanwhile
            self.newest = mark.number
        return gone

    def _take_out(self, marks: list[Mark]) -> list[Mark]:
        """Take out marks that a coarser one covers; those that went."""
        gone = [mark for mark in marks if self._removes(mark)]
        self.counts["merged"] += len(gone)
        return gone

    def _removes(self, mark: Mark) -> bool:
        """Take it out; False: it has been made again, or was taken out."""
        live = self._live[mark.kind]
        if mark.name in live and live[mark.name] is mark:
            del live[mark.name]
            return True
        return False

    def _note(self) -> None:
        """Keep up what is read without the lock."""
        while True:
            last = self._last
            tagged, count = bool(self._live[TAG]), sum(map(len, self._live.values()))
            if last == self._last:
                break
        self._patterns = None
        self.tagged = tagged
        self.count = count

    def _merge(self) -> list[Mark]:
        """Make room, at least a quarter, so that it is seldom made; what gave way."""
        gone: list[Mark] = []
        tables: dict[str | bytes, list[Mark]] = {}
        for mark in list(self._live[KEY].values()):
            pattern = _pattern_of_table(mark.target)
            if pattern is not None:
                tables.setdefault(pattern, []).append(mark)
        for pattern, marks in tables.items():
            if len(marks) > 1:
                gone += self._put(Mark(PATTERN, pattern, Pattern(pattern)))
                gone += self._take_out(marks)
        self._note()
        if self.count > self._most * 3 // 4:
            gone += self._put(Mark(ALL))
        return gone

    # --- Asking ---

    def cover(self, key: Any, tags: Iterable[str], since: int) -> bool:
        """Is there a mark above the number `since` that covers a key whose entry bears `tags`?

        It may say yes in vain. One comparison with every such pattern at most.
        """
        name = hash(key)
        with self._lock:
            self.counts["tested"] += 1
            live = self._live
            found = [live[KEY].get(name), *map(live[TAG].get, tags)]
            patterns = self._patterns
            while patterns is None:
                last, listed = self._last, list(live[PATTERN].values())
                if last == self._last:
                    patterns = self._patterns = listed
            found.append(live[ALL].get(None))  # last: it is there before what it covers goes
        if any(mark is not None and mark.number > since for mark in found):
            return True
        for mark in reversed(patterns):
            if mark.number <= since:
                return False
            if mark.target.matches(key):
                return True
        return False

    def oldest(self) -> Mark | None:
        """The mark with the lowest number, if there is any."""
        firsts = []
        with self._lock:
            for marks in self._live.values():
                for first in marks.values():
                    firsts.append(first)
                    break
        return min(firsts, key=lambda mark: mark.number, default=None)

    # --- Retiring ---

    def retire(self, mark: Mark) -> None:
        """Nothing is left that `mark` covers: forget it, unless it has been made again."""
        with self._lock:
            if self._removes(mark):
                self.counts["retired"] += 1
                self._note()

    # --- Figures ---

    def tally(self, what: str, n: int = 1) -> None:
        """Count something beside the marks."""
        with self._lock:
            self.counts[what] += n

    def figures(self) -> dict[str, int]:
        """What has been counted, and the live marks by kind."""
        with self._lock:
            live = {f"{kind}_marks": len(marks) for kind, marks in self._live.items()}
            return dict(self.counts) | live


def _joined(keys: tuple[Any, ...], key: Any) -> tuple[Any, ...]:
    """`keys` of one hash, and `key`. Runs their `__eq__`: under no lock."""
    return keys if any(k is key or k == key for k in keys) else (*keys, key)


def _pattern_of_table(keys: tuple[Any, ...]) -> str | bytes | None:
    """The pattern of a lone key's literal table; None if it has none, or too long a one."""
    key = keys[0]
    parts: tuple[Any, ...] = ("", "", "")
    if isinstance(key, str):
        parts = str.partition(key, ":")
    elif isinstance(key, bytes):
        parts = bytes.partition(key, b":")
    if len(keys) > 1 or not parts[1]:
        return None
    pattern = table_pattern(parts[0])
    return pattern if len(pattern) <= LONGEST else None
