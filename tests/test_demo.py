"""`lapse demo`: it is true of lapse, it finds what is not true, and it ends as it should."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing, nullcontext

import pytest

pytest.importorskip("typer", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

from rich.console import Console

from lapse import ManualClock, demo
from lapse.cli import main
from lapse.demo import WORLDS, side
from lapse.demo.figures import Counters, spread
from lapse.demo.ledger import Change, Ledger
from lapse.demo.origin import Origin
from lapse.demo.popularity import Popularity, zipf
from lapse.demo.view import LiveView, PlainView
from lapse.invalidation.targets import NativeTarget, Outcome
from support import PATIENCE

LAPSE = [sys.executable, "-m", "lapse.cli"]
NEVER = 1e9  # seconds: what a stalled machine does is no violation
SHORT = {"seconds": 1.0, "readers": 2, "writers": 2, "seed": 7}


@pytest.fixture(autouse=True)
def plain_output(monkeypatch):
    """No terminal, whatever the surroundings say, here and in the processes that a test starts."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def run(tmp_path, world="ecommerce", **options):
    """The status of a short demo, and its figures: of lapse, and of the plain cache."""
    file = tmp_path / "figures.json"
    status = demo.run(world, json_path=file, **{**SHORT, **options})
    return status, *json.loads(file.read_text(encoding="utf-8"))["results"]


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """The last change may take its time."""
    monkeypatch.setattr(side, "SETTLE", PATIENCE)


class TestRun:
    """Short runs, with real threads on a real database."""

    @pytest.mark.parametrize("world", WORLDS)
    def test_lapse_is_true_and_the_plain_cache_is_not(self, tmp_path, capsys, world):
        """No violation of lapse, nothing lost, nothing outdated left; stale reads of the other."""
        for seconds in (1.0, 8.0):
            status, kept, plain = run(tmp_path, world, bound=NEVER, seconds=seconds)
            if plain["stale"] and plain["age"]["max"] > 0.1:
                break  # nobody was kept from running

        assert (status, kept["violations"], kept["examples"]) == (0, 0, [])
        assert kept["applied"] == kept["changes"] > 0
        assert kept["reads"] > kept["loads"] > 0
        assert kept["outdated"] == 0
        assert 0 < kept["lag"]["p50"] <= kept["lag"]["p99"] <= kept["lag"]["max"]
        assert plain["stale"] > 0
        assert plain["age"]["max"] > 0.1
        if plain["seconds"] < 2:  # its ttl: on a slower machine what was outdated has expired
            assert plain["outdated"] > 0
        assert (plain["lag"], plain["applied"]) == (None, 0)

    def test_old_versions_are_violations(self, tmp_path, capsys):
        """The plain cache serves versions that were overwritten before the bound."""
        for seconds in (1.0, 8.0):
            _, _, plain = run(tmp_path, bound=0.1, seconds=seconds)
            if plain["violations"]:
                break  # nobody was kept from running

        assert plain["violations"] > 0
        assert "too old" in plain["examples"][0]

    def test_withheld_from_the_cache(self, tmp_path, capsys, monkeypatch):
        """Invalidations that are said to be in force, and are not, are found: status 1."""
        none = {"clear": lambda self: 0, "delete_tag": lambda self, tag: 0}
        none["globs"] = none["keys"] = lambda self, targets: Outcome(bytes(len(targets)), {})
        for name, instead in none.items():
            monkeypatch.setattr(NativeTarget, name, instead)

        status, kept, _ = run(tmp_path, bound=NEVER)

        assert status == 1
        assert kept["violations"] > 0
        assert "came back" in kept["examples"][0]
        assert any(each.startswith("left in the cache: ") for each in kept["examples"])
        assert "violations, such as:" in capsys.readouterr().out

    def test_never_delivered(self, tmp_path, capsys, monkeypatch):
        """Changes that nobody tells the cache of are violations, and so are the reads: status 1."""
        monkeypatch.setattr(side, "kept_true", lambda *_: nullcontext())
        monkeypatch.setattr(side, "SETTLE", 0.1)

        status, kept, _ = run(tmp_path, bound=0.1)

        assert status == 1
        assert kept["violations"] > kept["changes"] > kept["applied"] == 0
        assert any(each.startswith("never in force: ") for each in kept["examples"])
        assert any("too old" in each for each in kept["examples"])

    def test_a_rule_that_is_missing_is_found(self, tmp_path, capsys, monkeypatch):
        """If a world forgets what depends on a row, its readers notice."""
        monkeypatch.setattr(WORLDS["analytics"], "event", lambda self, change: None)

        status, kept, _ = run(tmp_path, "analytics", bound=NEVER)

        assert status == 1
        assert kept["violations"] > 0

    def test_a_failing_thread_ends_the_run(self, tmp_path, monkeypatch):
        """What a reader or a writer raises comes out, at once."""
        monkeypatch.setattr(WORLDS["social"], "change", lambda *_: 1 / 0)

        with pytest.raises(ZeroDivisionError):
            run(tmp_path, "social", seconds=12.0)


class TestOutput:
    """What it prints."""

    def test_table(self, capsys):
        """Lines while it runs, then both caches side by side, then a verdict."""
        status = demo.run("ecommerce", bound=NEVER, **SHORT)

        out = capsys.readouterr().out
        assert status == 0
        assert out.startswith("ecommerce: a shop of 600 products in 12 categories; 2 readers")
        for name in ("lapse", "ttl of 2 s"):
            (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
            assert "reads/s" in line
            assert "% hits" in line
        rows = [line.strip() for line in out.splitlines()]
        for heading in ("reads a second", "hit ratio", "loads", "changes committed", "violations"):
            assert any(row.startswith(heading) for row in rows), heading
        assert "reads, each of them checked." in out

    def test_table_fits_eighty_columns(self):
        """No figure is cut, even large ones."""
        times = demo.figures.Spread(0.9, 1.9784, 2.0113)
        result = demo.figures.Result(
            "ttl of 2 s", 12.0, 9_876_543, 0.99, 1_234_567, 12_345, 12_345, times, 9_876_543,
            times, 1_234, 9_876_543, (),
        )  # fmt: skip
        console = Console(file=io.StringIO(), width=80)

        console.print(demo.table([result, result], 0.5))

        assert "\u2026" not in console.file.getvalue()
        assert console.file.getvalue().count("900 / 1,978 / 2,011") == 4

    def test_live_view(self):
        """On a terminal both runs are drawn, and the cursor comes back."""
        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        with LiveView(console, ("lapse", "plain"), 2.0) as view:
            view.update("lapse", Counters(1.0, 1000, 0.5, 20, 19, 3, 0))
            view.update("lapse", Counters(2.0, 3000, 0.75, 40, 40, 3, 0))
            view.update("plain", Counters(1.0, 1000, 0.5, 20, 0, 300, 200))

        out = console.file.getvalue()
        assert "75.0 %" in out
        assert "3,000" in out
        assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")

    def test_plain_view_speaks_once_a_second(self):
        """However often it is told."""
        console = Console(file=io.StringIO(), width=100)
        with PlainView(console, ("lapse", "plain"), 2.0) as view:
            for tenth in range(1, 21):
                view.update("lapse", Counters(tenth / 10, 1000, 0.5, 20, 19, 3, 0))

        assert console.file.getvalue().count("\n") == 2

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["bakery"], "there is no world 'bakery'; there are ecommerce, social, analytics"),
            (["--seconds", "99"], "--seconds must be from 0.1 to 12, not 99"),
            (["--seconds", "nan"], "--seconds must be from 0.1 to 12, not nan"),
            (["--readers", "0"], "--readers must be from 1 to 64, not 0"),
            (["--writers", "65"], "--writers must be from 1 to 64, not 65"),
            (["--seed", "x"], "'--seed'"),
        ],
    )
    def test_bad_arguments(self, capsys, arguments, complaint):
        """One line, status 2, and nothing has run."""
        assert main(["demo", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert complaint in err
        assert err.count("\n") == 1

    def test_options_are_handed_over(self, monkeypatch, tmp_path):
        """The command passes its options on, and its status is the demo's."""
        seen = {}
        monkeypatch.setattr(demo, "run", lambda world, **options: seen.update(options) or 1)
        file = tmp_path / "d.json"

        threads = ["--readers", "3", "--writers", "4"]
        others = ["--seconds", "2", "--seed", "5", "--plain", "--json", str(file)]
        status = main(["demo", "social", *threads, *others])

        assert status == 1
        expected = {"seconds": 2.0, "readers": 3, "writers": 4, "seed": 5, "plain": True}
        assert seen == expected | {"json_path": file}

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process on Windows")
    def test_interrupt(self, tmp_path):
        """Ctrl-C ends it with status 130, not a word, and nothing left behind."""
        with subprocess.Popen(
            [*LAPSE, "demo", "--seconds", "12", "--readers", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        ) as process:
            process.stdout.readline()  # the headline
            assert process.stdout.readline().startswith(b"lapse  ")
            process.send_signal(signal.SIGINT)
            _out, err = process.communicate(timeout=60)

        assert (process.returncode, err) == (130, b"")
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def ledger(clock):
    """One row whose version 1 was overwritten at 10 s."""
    found = Ledger(0.5, clock)
    found.there("prices", 7, 1)
    row = found.row("prices", 7)
    clock.advance(10)
    found.begins(row, 2)
    found.committed([Change(row, 1, clock())])
    return found


class TestLedger:
    """What a reader may be served."""

    def judge(self, ledger, version, began):
        """The age, and the kind of fault."""
        age, fault = ledger.judge(((ledger.row("prices", 7), version),), began)
        return pytest.approx(age), fault and fault.kind

    def test_the_newest_version(self, ledger, clock):
        """It is allowed at any time."""
        assert self.judge(ledger, 2, clock() + 100) == (0.0, None)

    def test_within_the_bound(self, ledger, clock):
        """An overwritten version may be served for a while, and so may it before its end."""
        assert self.judge(ledger, 1, clock() - 1) == (0.0, None)
        assert self.judge(ledger, 1, clock() + 0.4) == (0.4, None)

    def test_beyond_the_bound(self, ledger, clock):
        """Then it is too old."""
        assert self.judge(ledger, 1, clock() + 0.6) == (0.6, "too old")

    def test_after_the_invalidation(self, ledger, clock):
        """Once the invalidation is in force, it must not come back, be it as fresh as it may."""
        clock.advance(0.1)
        ledger.in_force("prices", 7, 1)
        noted = clock()

        assert self.judge(ledger, 1, noted) == (0.1, None)
        assert self.judge(ledger, 1, noted + 0.01) == (0.11, "came back")
        assert (ledger.applied, ledger.lost()) == (1, [])
        assert ledger.lags() == [pytest.approx(0.1)]

    def test_a_change_that_comes_twice(self, ledger, clock):
        """It counts once, and the first time is what counts."""
        ledger.in_force("prices", 7, 1)
        clock.advance(1)
        ledger.in_force("prices", 7, 1)

        assert ledger.applied == 1
        assert ledger.lags() == [0.0]

    def test_lost(self, ledger):
        """A change that is not in force is known."""
        (lost,) = ledger.lost()
        assert str(lost) == "the end of prices:7 version 1"

    def test_from_nowhere(self, ledger, clock):
        """A version that no transaction has written is a fault; one under way is not."""
        ledger.begins(ledger.row("prices", 7), 3)

        assert self.judge(ledger, 3, clock()) == (0.0, None)
        assert self.judge(ledger, 4, clock()) == (0.0, "never written")

    def test_the_oldest_row_counts(self, ledger, clock):
        """A value of several rows is as old as that which was overwritten first."""
        ledger.there("stocks", 1, 1)
        rows = ((ledger.row("stocks", 1), 1), (ledger.row("prices", 7), 1))
        age, fault = ledger.judge(rows, clock() + 2)

        assert age == pytest.approx(2)
        assert str(fault) == "prices:7 version 1: too old, 2.000 s old"


@pytest.mark.parametrize("world", WORLDS)
class TestWorlds:
    """The three databases."""

    def test_every_key_can_be_loaded(self, tmp_path, world):
        """After many changes, too; a value names its rows with the versions that are there."""
        made = WORLDS[world]()
        with closing(Origin(tmp_path / "w.sqlite", made, Ledger())) as origin:
            rng = random.Random(3)
            assert all(origin.change(rng) >= 0 for _ in range(200))
            for key in made.popularity.keys:
                rows = origin.load(key).rows
                assert rows
                assert all(row.newest == version for row, version in rows)

    def test_rows_and_ledger_agree(self, tmp_path, world):
        """Each change is one more version, in the file as in the ledger."""
        made, ledger = WORLDS[world](), Ledger()
        path = tmp_path / "w.sqlite"
        with closing(Origin(path, made, ledger)) as origin:
            rng = random.Random(3)
            count = sum(origin.change(rng) for _ in range(200))
        assert count == len(ledger.changes)
        with closing(sqlite3.connect(path)) as connection:
            for table in made.tables:
                for id, version in connection.execute(f"SELECT id, version FROM {table}"):
                    assert ledger.row(table, id).newest == version

    def test_a_failed_change_leaves_nothing(self, tmp_path, world):
        """A transaction that fails is rolled back, and the next one works."""
        made = WORLDS[world]()
        with closing(Origin(tmp_path / "w.sqlite", made, Ledger())) as origin:
            change, made.change = made.change, lambda *_: 1 / 0
            with pytest.raises(ZeroDivisionError):
                origin.change(random.Random(1))
            made.change = change
            assert origin.change(random.Random(1)) > 0


def test_a_timeline_shows_those_whom_one_follows(tmp_path):
    """Posts of somebody whom one no longer follows are gone from the next timeline."""
    with closing(Origin(tmp_path / "w.sqlite", WORLDS["social"](), Ledger())) as origin:
        shown = {name for name, _ in origin.load("timeline:1:1").content}
        assert len(shown) > 1

        origin.query("UPDATE follows SET still = 0 WHERE follower = 1")

        assert {name for name, _ in origin.load("timeline:1:1").content} == {"person 1"}


class TestPopularity:
    """Which keys are read."""

    def test_shares_and_ranks(self):
        """Families get their shares; the first key of one is read twice as often as the second."""
        popularity = Popularity([(0.75, ["a", "b", "c"]), (0.25, ["z"])])
        drawn = Counter(popularity.draw(random.Random(1), 20_000))

        assert drawn["z"] == pytest.approx(5_000, rel=0.1)
        assert drawn["a"] == pytest.approx(2 * drawn["b"], rel=0.1)
        assert drawn["a"] == pytest.approx(3 * drawn["c"], rel=0.1)

    def test_zipf(self):
        """Every number can come, none beyond; small ones come more often."""
        rng = random.Random(1)
        drawn = Counter(zipf(rng, 10) for _ in range(5_000))

        assert set(drawn) == set(range(1, 11))
        assert drawn[1] > 2 * drawn[10]


def test_spread():
    """Median, nearly the largest, the largest."""
    assert spread([]) is None
    assert spread([3.0]) == (3.0, 3.0, 3.0)
    assert spread([float(n) for n in range(101)]) == (50.0, 99.0, 100.0)
