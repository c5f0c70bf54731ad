"""The changes of an SQLite file: positions, pruning, and a file that is another one."""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlite_support import JOURNALS, USERS, Setting, keys, make_file, read_now, reasons_of
from support import wait_until

HOUR = 3600.0


@pytest.fixture(params=JOURNALS)
def here(tmp_path: Any, request: pytest.FixtureRequest) -> Iterator[Setting]:
    """A file in each journal mode."""
    setting = Setting(tmp_path, request.param)
    yield setting
    setting.close()


class TestPositions:
    """Where a source begins."""

    def test_without_a_name_at_the_present(self, here):
        """A source without a name begins with what is committed after it was made."""
        here.insert()
        source = here.source()
        here.insert()
        assert keys(read_now(source)) == [2]

    def test_a_new_iteration_repeats_what_was_not_committed(self, here):
        """What was yielded and not committed comes again, in the same source."""
        source = here.source()
        here.insert(2)
        first = next(iter(source))
        again = next(iter(source))
        assert keys([first]) == keys([again]) == [1, 2]
        again.commit()
        here.insert()
        assert keys([next(iter(source))]) == [3]

    def test_a_name_keeps_its_position(self, here):
        """A named consumer goes on where it has committed, however it ended."""
        source = here.source(consumer="one")
        here.insert(2)
        read_now(source)
        here.insert(2)
        assert keys(read_now(source, commit=False)) == [3, 4]
        source.close()
        here.insert()
        assert keys(read_now(here.source(consumer="one"))) == [3, 4, 5]
        assert keys(read_now(here.source(consumer="two"))) == []

    def test_a_position_is_written_without_close(self, here):
        """The first commit is in the file at once."""
        source = here.source(consumer="one", clock=itertools.count().__next__)
        here.insert()
        read_now(source)
        (position,) = here.db.execute("SELECT sequence FROM lapse_consumers").fetchone()
        assert position == here.numbers()[-1]

    def test_positions_are_not_written_for_each_batch(self, here):
        """Within a tenth of a second one position is enough; the last is written by and by."""
        now = [0.0]
        source = here.source(consumer="one", clock=lambda: now[0])
        for _ in range(3):
            here.insert()
            now[0] += 0.01
            read_now(source)
        stored = "SELECT sequence FROM lapse_consumers"
        assert here.db.execute(stored).fetchone()[0] < here.numbers()[-1]
        now[0] += 0.1
        read_now(source)
        assert here.db.execute(stored).fetchone()[0] == here.numbers()[-1]

    def test_a_busy_file(self, here):
        """Another connection's transaction delays nothing, and no position is lost."""
        source = here.source(consumer="one")
        here.insert()
        here.db.execute("BEGIN IMMEDIATE")
        assert keys(read_now(source)) == [1]
        here.db.execute("COMMIT")
        source.close()
        assert keys(read_now(here.source(consumer="one"))) == []

    def test_a_locked_file_is_read_later(self, here):
        """While nobody may read, nothing comes and nothing is raised."""
        source = here.source()
        here.insert(501)
        here.db.execute("BEGIN EXCLUSIVE")
        if here.journal == "delete":
            assert read_now(source) == []
        here.db.execute("COMMIT")
        assert keys(read_now(source)) == list(range(1, 502))


class TestCommitting:
    """What is written down as done."""

    def test_a_resync_is_not_committed_with_what_came_before(self, here):
        """Who ends between the two begins with the resync the next time."""
        source = here.source()
        here.insert()
        other = sqlite3.connect(here.path, isolation_level=None)
        other.execute("INSERT INTO lapse_changes (\"table\", operation) VALUES ('users', 'x')")
        other.close()
        here.insert()
        before, resync, after = read_now(source, commit=False)
        for event, sequence in ((before, 0), (resync, 1), (after, 2)):
            event.commit()
            first = before.changes[0]["sequence"]
            assert source.stats().position == first + sequence


class TestClosing:
    """The end of a source."""

    def test_a_finalizer_in_the_midst_of_a_look(self, here, monkeypatch):
        """It does not wait for the look that it interrupts, which lets go of the file then."""
        source = here.source()
        outbox = source._outbox

        def collected(outbox: Any) -> int:  # as the garbage collector may run anywhere
            source.close()
            return 0

        monkeypatch.setattr(type(outbox), "version", collected)
        source._turn()
        assert source._outbox is None
        with pytest.raises(sqlite3.ProgrammingError):
            outbox.last()


class TestPruning:
    """What is deleted from the outbox, and what that means for who comes late."""

    def test_what_every_name_has(self, here):
        """Rows go when every named consumer has them; the last row stays."""
        one, two = (here.source(consumer=name, keep=0.0) for name in ("one", "two"))
        here.insert(5)
        read_now(one)
        assert one.prune() == 0
        read_now(two)
        one.close()
        two.close()
        last = here.source(keep=0.0)
        before = here.numbers()
        assert last.prune() == len(before) - 1
        assert here.numbers() == before[-1:]

    def test_young_rows_stay(self, here):
        """For `keep` seconds rows stay, for those who have no name."""
        now = [0.0]
        slow = here.source(keep=60.0)
        here.insert(3)
        (oldest,) = here.db.execute("SELECT min(at) FROM lapse_changes").fetchone()
        now[0] = oldest + 59
        other = here.source(keep=60.0, wall=lambda: now[0])
        assert other.prune() == 0
        assert keys(read_now(slow)) == [1, 2, 3]
        now[0] = oldest + 61 + 60
        assert other.prune() == 3

    @pytest.mark.parametrize("limit", [{"max_rows": 10}, {"max_age": HOUR}])
    def test_whoever_stays_away_gets_a_resync(self, here, limit):
        """Rows go by number and by age though a name has not read them; it learns of it."""
        here.source(consumer="away").close()
        now = [0.0]
        other = here.source(wall=lambda: now[0], keep=0.0, **limit)
        here.insert(30)
        (newest,) = here.db.execute("SELECT max(at) FROM lapse_changes").fetchone()
        now[0] = newest + (HOUR + 1 if "max_age" in limit else 0)
        assert other.prune() > 10
        back = here.source(consumer="away")
        assert reasons_of(read_now(back)) == ["the position is gone"]
        here.insert()
        assert keys(read_now(back)) == [31]

    def test_whoever_is_not_heard_of_holds_nothing(self, here):
        """A consumer that was not there for `max_age` seconds no longer keeps rows for itself."""
        here.source(consumer="away").close()
        here.insert(5)
        (seen,) = here.db.execute("SELECT seen FROM lapse_consumers").fetchone()
        assert here.source(wall=lambda: seen + 10, keep=0.0).prune() == 0
        here.db.execute("UPDATE lapse_consumers SET seen = seen - 100")
        assert here.source(wall=lambda: seen + 10, keep=0.0, max_age=105.0).prune() == 5

    def test_a_reader_without_a_name_that_is_too_slow(self, here):
        """A source without a name whose rows are gone resyncs as well."""
        slow = here.source()
        here.insert(20)
        here.source(keep=0.0, max_rows=5).prune()
        assert reasons_of(read_now(slow)) == ["the position is gone"]

    def test_it_happens_by_itself(self, here):
        """The iteration prunes every few seconds."""
        now = [0.0]
        source = here.source(clock=lambda: now[0], keep=0.0, wall=lambda: 1e12)
        here.insert(10)
        read_now(source)
        now[0] += 6.0
        read_now(source)
        assert len(here.numbers()) == 1
        assert source.stats().pruned == 10

    def test_leftovers_of_ignored_rows(self, here):
        """What triggers have noted for nothing goes with the next pruning."""
        source = here.source()
        here.insert()
        here.db.execute("INSERT OR IGNORE INTO users VALUES (1, 'again')")
        noted = "SELECT count(*) FROM lapse_displaced"
        assert here.db.execute(noted).fetchone() == (1,)
        source.prune()
        assert here.db.execute(noted).fetchone() == (0,)

    def test_somebody_emptied_the_outbox(self, here):
        """An outbox without rows is a lost position, and works on."""
        source = here.source()
        here.insert()
        here.db.execute("DELETE FROM lapse_changes")
        here.db.execute("CREATE TABLE more (x)")
        assert reasons_of(read_now(source)) == ["the position is gone"]
        here.insert()
        assert keys(read_now(source)) == [2]


class TestAnotherFile:
    """A file that is replaced, restored or deleted."""

    def test_replaced(self, here, tmp_path):
        """A file in the place of the old one is a resync, and is read from then on."""
        source = here.source()
        here.insert()
        read_now(source)
        here.db.close()
        here.db = make_file(tmp_path / "new.db", USERS, here.journal)
        here.db.close()
        _remove(here.path)
        os.replace(tmp_path / "new.db", here.path)
        assert reasons_of(read_now(source)) == ["the file was replaced"]
        here.db = sqlite3.connect(here.path, isolation_level=None)
        here.insert()
        assert keys(read_now(source)) == [2]

    def test_deleted(self, here):
        """A file that is gone is a resync, and another one when there is a file again."""
        source = here.source()
        here.db.close()
        _remove(here.path)
        assert reasons_of(read_now(source)) == ["the file is gone"]
        assert read_now(source) == []
        here.db = make_file(here.path, "CREATE TABLE other (x)", here.journal)
        assert reasons_of(read_now(source)) == ["the file was replaced"]
        here.db.execute(USERS)
        assert reasons_of(read_now(source)) == ["the triggers of users were made anew"]
        here.insert()
        assert keys(read_now(source)) == [1]

    def test_restored_in_place(self, here, tmp_path):
        """An older state of the same file, whose numbers go on from an earlier one, is a resync."""
        source = here.source()
        here.insert(2)
        read_now(source)
        backup = sqlite3.connect(tmp_path / "backup.db")
        here.db.backup(backup)
        here.insert(3)
        read_now(source)
        later = time.time() + 0.002  # rows are told apart by a clock of milliseconds
        assert wait_until(lambda: time.time() > later)
        backup.backup(here.db)
        backup.close()
        here.ids = itertools.count(50)
        here.insert(10)
        assert reasons_of(read_now(source)) == ["the position is gone"]
        here.insert()
        assert keys(read_now(source)) == [60]

    def test_restored_from_before_it_was_captured(self, here, tmp_path):
        """A state without the triggers is a resync; they are put in again."""
        backup = sqlite3.connect(tmp_path / "backup.db")
        here.db.backup(backup)
        source = here.source()
        here.insert()
        read_now(source)
        backup.backup(here.db)
        backup.close()
        assert "the position is gone" in reasons_of(read_now(source))
        here.insert()
        assert keys(read_now(source)) == [2]

    def test_a_named_consumer_of_another_file(self, here, tmp_path):
        """A position that was kept is not taken for one of another file."""
        source = here.source(consumer="one")
        here.insert(3)
        read_now(source)
        source.close()
        here.db.execute("UPDATE lapse_changes SET at = at - 1")
        assert reasons_of(read_now(here.source(consumer="one"))) == ["the position is gone"]

    @pytest.mark.parametrize("here", ["delete"], indirect=True)
    def test_no_database_any_more(self, here):
        """A file that is none is an error for the receiver, which tries again; nothing is lost."""
        source = here.source()
        here.insert()
        read_now(source)
        here.insert()
        here.db.close()
        kept = here.path.read_bytes()
        here.path.write_bytes(b"not a database" * 1000)
        with pytest.raises(sqlite3.DatabaseError):
            read_now(source)
        assert read_now(source) == []
        here.path.write_bytes(kept)
        here.db = sqlite3.connect(here.path, isolation_level=None)
        here.insert()
        events = read_now(source)
        assert (keys(events), reasons_of(events)) == ([2, 3], [])


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
