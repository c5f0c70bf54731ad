"""Bounded caches in `lapse replay`: the optimum, exact hits, the table and the miss-ratio curve."""

import io
import json
import random
from collections import OrderedDict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lapse
from lapse.bench import plot
from lapse.cli import main
from lapse.policies import comparison as comparison_module
from lapse.policies.comparison import compare, lineup, read
from lapse.policies.contenders import LAPSE, RIVALS, Contender
from lapse.policies.optimum import next_uses, optimum
from lapse.policies.sizes import Size, parse_sizes
from lapse.traces import open_trace

TRACES = Path(__file__).parents[1].parent / "shared" / "traces"
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason="no real traces: ../shared/traces")

#: Trace, size, and percent of hits of LRU and of the optimum that stores what it misses. Those of
#: the largest trace are checked by `python benchmarks/policies`.
KNOWN = [
    ("web07.trace.xz", 1024, 50.56, 63.72),
    ("web07.trace.xz", 4096, 61.03, 71.72),
    ("arc-oltp.gz", 1000, 32.83, 53.61),
    ("arc-oltp.gz", 10000, 60.70, 73.02),
    ("lirs-sprite.gz", 400, 70.77, 84.56),
    ("zipf-1.0.gz", 100, 57.53, 75.55),
]
SMALL = ["lirs-cs.gz", "lirs-cpp.gz", "lirs-multi1.gz", "lirs-multi2.gz", "weblog-2015.tsv.gz"]
LARGE = ["web07.trace.xz", "lirs-sprite.gz", "arc-oltp.gz", "zipf-1.0.gz", "orm-night.trace.xz"]

requests = st.lists(st.integers(0, 5), max_size=14)


@pytest.fixture
def no_rivals(monkeypatch):
    """Only lapse and the optimum take part."""
    monkeypatch.setattr(comparison_module, "RIVALS", ())


@pytest.fixture
def trace(tmp_path):
    """A trace of 8 requests for 3 keys."""
    path = tmp_path / "requests.txt"
    path.write_text("1\n2\n1\n3\n1\n2\n1\n3\n")
    return path


def most_hits(keys, capacity, bypass):
    """The most hits there can be, by way of every state that a cache can be in."""
    best = {frozenset(): 0}
    for key in keys:
        after = {}
        for inside, hits in best.items():
            stored = inside | {key}
            if key in inside:
                hits += 1
            if len(stored) <= capacity:
                states = [stored]
            else:
                states = [stored - {gone} for gone in stored if bypass or gone != key]
            for state in states:
                after[state] = max(after.get(state, 0), hits)
        best = after
    return max(best.values())


def hits_of(make, keys, capacity):
    """The hits of a new cache."""
    return len(keys) - make(capacity)(keys)


def lru_hits(keys, capacity):
    """The hits of exact LRU, by a model."""
    held, hits = OrderedDict(), 0
    for key in keys:
        hits += key in held
        held[key] = True
        held.move_to_end(key)
        if len(held) > capacity:
            held.popitem(last=False)
    return hits


@lru_cache(maxsize=1)
def workload_of(name, limit=None):
    """A shared trace in memory."""
    with open_trace(TRACES / name, limit=limit) as opened:
        return read(opened, lambda done: None)


def failure_of(capsys, *arguments):
    """The one line with which a replay fails before it prints anything."""
    assert main(["replay", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


class TestOptimum:
    """Belady's optimum."""

    @given(requests, st.integers(1, 4), st.booleans())
    def test_nothing_hits_more_often(self, keys, capacity, bypass):
        """It hits as often as the best of all ways to choose who goes."""
        found = hits_of(optimum(keys, bypass=bypass), keys, capacity)

        assert found == most_hits(keys, capacity, bypass)

    @pytest.mark.parametrize("capacity", [1, 7, 50, 400])
    def test_stretches_make_no_difference(self, capacity):
        """A trace replayed in pieces gives what it gives at once, past times dropped or not."""
        keys = random.Random(capacity).choices(range(500), range(1, 501), k=20_000)
        cache = optimum(keys)(capacity)
        pieces = sum(cache(keys[start : start + 37]) for start in range(0, len(keys), 37))

        assert pieces == optimum(keys)(capacity)(keys)

    def test_a_key_may_stay_out(self):
        """What never comes again is not stored in place of what does."""
        keys = ["a", "once", "a"]

        assert hits_of(optimum(keys), keys, 1) == 1
        assert hits_of(optimum(keys, bypass=False), keys, 1) == 0

    def test_next_uses(self):
        """The next request for a key is named, or a time after the end that no other has."""
        assert list(next_uses("abac")) == [2, 5, 6, 7]

    @needs_traces
    @pytest.mark.parametrize(("name", "capacity", "_lru", "percent"), KNOWN)
    def test_known_answers(self, name, capacity, _lru, percent):
        """It is the published one if it has to store, and a little more if not."""
        keys = workload_of(name).requests
        stored = hits_of(optimum(keys, bypass=False), keys, capacity)
        free = hits_of(optimum(keys), keys, capacity)
        larger = hits_of(optimum(keys, bypass=False), keys, capacity + 1)

        assert round(100 * stored / len(keys), 2) == percent
        assert stored <= free <= larger


class TestSizes:
    """Numbers of entries, and percentages."""

    def test_lists(self):
        """Entries and percentages may be mixed."""
        assert parse_sizes("1000, 0.5%,100%") == [Size(1000), Size(0.5, True), Size(100, True)]

    @pytest.mark.parametrize(
        ("size", "entries"),
        [
            (Size(7), 7),
            (Size(300), 200),
            (Size(10, True), 20),
            (Size(0.1, True), 1),
            (Size(100, True), 200),
        ],
    )
    def test_entries(self, size, entries):
        """Of 200 distinct keys: rounded, one at least, and no more than all of them."""
        assert size.entries(200) == entries

    @pytest.mark.parametrize(
        "text", ["", "0", "-1", "1.5", "0%", "101%", "%", "10 %", "1e3", "1,,2", "1k", "٣"]
    )
    def test_refused(self, text):
        """Anything else is quoted in the complaint."""
        with pytest.raises(ValueError, match="a number of entries, or a percentage"):
            parse_sizes(text)


class TestContenders:
    """Who takes part."""

    @pytest.mark.parametrize(
        "contender",
        [LAPSE["lru"], *(rival for rival in RIVALS if "LRU" in rival.name or "lru" in rival.name)],
        ids=lambda contender: contender.name,
    )
    def test_exact_lru(self, contender):
        """Every exact LRU hits as often as the model, whatever stretches it is asked in."""
        if contender.version is None:
            pytest.skip(f"{contender.package} is not installed")
        chosen = random.Random(3).choices(range(300), range(1, 301), k=6_000)
        for keys in (chosen, [f"/{key}" for key in chosen]):
            cache = contender.make(40)
            misses = sum(cache(keys[start : start + 1_000]) for start in range(0, 6_000, 1_000))

            assert len(keys) - misses == lru_hits(keys, 40)

    @pytest.mark.parametrize("contender", [*LAPSE.values(), *RIVALS], ids=lambda c: c.name)
    def test_each_is_a_cache(self, contender):
        """Whoever is installed hits what it holds, and never more often than the optimum."""
        if contender.version is None:
            pytest.skip(f"{contender.package} is not installed")
        keys = random.Random(4).choices(range(200), [1 / key for key in range(1, 201)], k=5_000)

        assert contender.make(50)([1, 1, 1, 1]) == 1
        for size in (contender.least, 12, 50):
            assert 0 < hits_of(contender.make, keys, size) <= hits_of(optimum(keys), keys, size)

    def test_packages_that_are_missing(self, monkeypatch, no_rivals, trace):
        """A rival whose package is not installed is left out, and named."""
        rivals = (Contender("nobody's", lambda capacity: 1 / 0, "no-such-package"),)
        monkeypatch.setattr(comparison_module, "RIVALS", rivals)
        with open_trace(trace) as opened:
            workload = read(opened, lambda done: None)
        found = compare(workload, lineup(workload, [Size(2)], [LAPSE["lru"]]), lambda done: None)

        assert [outcome.name for outcome in found.outcomes] == ["OPT", "lapse lru"]
        assert found.absent == {"nobody's": "no-such-package"}

    def test_sizes_that_are_too_small(self, monkeypatch, tmp_path, trace):
        """A policy that does not come in a size is left out there, in the picture, too."""
        pytest.importorskip("matplotlib")
        picky = Contender("picky", lambda capacity: len, least=2)
        monkeypatch.setattr(comparison_module, "RIVALS", (picky,))
        file = tmp_path / "out.json"
        files = ["--json", str(file), "--plot", str(tmp_path / "curve.svg")]

        assert main(["replay", str(trace), "--maxsize", "1,2,3", *files]) == 0
        outcomes = json.loads(file.read_text())["outcomes"]
        assert [o["maxsize"] for o in outcomes if o["name"] == "picky"] == [2, 3]


@needs_traces
class TestBound:
    """The optimum is one."""

    @pytest.mark.parametrize(
        ("name", "limit"), [(n, None) for n in SMALL] + [(n, 10_000) for n in LARGE]
    )
    def test_no_policy_beats_it(self, name, limit):
        """On each shared trace, at four sizes, nobody hits more often."""
        workload = workload_of(name, limit)
        runs = lineup(workload, parse_sizes("1%,3%,10%,30%"), list(LAPSE.values()))
        told = []
        found = compare(workload, runs, told.append)

        assert told[-1] == len(runs) * len(workload.requests)
        assert all(earlier < later for earlier, later in pairwise(told))
        best = {o.maxsize: o.hits for o in found.outcomes if o.name == "OPT"}
        assert len(best) == 4
        for outcome in found.outcomes:
            assert outcome.hits <= best[outcome.maxsize], outcome


class TestCommand:
    """`lapse replay --maxsize`, `--policy` and `--plot`."""

    @needs_traces
    @pytest.mark.parametrize(("name", "maxsize", "percent", "_opt"), KNOWN)
    def test_exact_lru(self, no_rivals, tmp_path, name, maxsize, percent, _opt):
        """LRU hits as often as published."""
        file = tmp_path / "out.json"
        size = ["--maxsize", str(maxsize), "--policy", "lru", "--json", str(file)]

        assert main(["replay", str(TRACES / name), *size]) == 0
        best, lru = json.loads(file.read_text())["outcomes"]
        assert (best["name"], lru["name"], lru["maxsize"]) == ("OPT", "lapse lru", maxsize)
        assert round(100 * lru["hit_ratio"], 2) == percent

    def test_table(self, no_rivals, capsys, trace):
        """A row a size and policy with hits, hit ratio and speed; the optimum is the first."""
        assert main(["replay", str(trace), "--maxsize", "2,34%"]) == 0

        out = capsys.readouterr().out.splitlines()
        rows = [line.split() for line in out[5:] if line.strip()]
        assert out[0] == f"{trace}: 8 requests for 3 distinct keys (lirs)"
        assert out[2].split() == [
            "maxsize",
            "of",
            "keys",
            "policy",
            "hits",
            "hit",
            "ratio",
            "requests",
        ]
        assert out[3].split() == ["entries", "%", "%", "/s"]
        assert rows[0] == ["1", "33.3", "OPT", "3", "37.50", "-"]
        assert {tuple(row[:4]) for row in rows[1:3]} == {
            ("1", "33.3", "lapse", "duel"),
            ("1", "33.3", "lapse", "lru"),
        }
        assert rows[3] == ["2", "66.7", "OPT", "4", "50.00", "-"]
        assert ["lapse", "lru", "3", "37.50"] in [row[2:6] for row in rows[4:6]]

    def test_table_fits_eighty_columns(self, capsys):
        """No name or figure is ever cut, and versions are given."""
        assert main(["replay", "--sample", "--limit", "5000", "--maxsize", "10%"]) == 0

        out = capsys.readouterr().out
        rows = out.partition("\nOPT ")[0].splitlines()[1:]
        assert any("lapse duel" in row for row in rows)
        assert all(len(row.rstrip()) <= 80 and "\u2026" not in row for row in rows)
        assert f"lapse {lapse.__version__}" in out

    def test_missing_packages_are_named(self, monkeypatch, capsys, trace):
        """The notes say what to install to see more rivals."""
        rivals = [Contender(name, lambda capacity: 1 / 0, "no-such") for name in ("SIEVE", "ARC")]
        monkeypatch.setattr(comparison_module, "RIVALS", rivals)

        assert main(["replay", str(trace), "--maxsize", "1"]) == 0
        assert "SIEVE, ARC (pip install no-such)" in capsys.readouterr().out

    def test_policies_are_chosen(self, no_rivals, tmp_path, trace):
        """Only the policies that are named take part, each once."""
        file = tmp_path / "out.json"
        chosen = ["--policy", "lru, lru", "--maxsize", "2,2,67%"]

        assert main(["replay", str(trace), *chosen, "--json", str(file)]) == 0
        outcomes = json.loads(file.read_text())["outcomes"]
        assert [outcome["name"] for outcome in outcomes] == ["OPT", "lapse lru"]

    def test_standard_input(self, monkeypatch, no_rivals, capsys):
        """A trace that can be read only once will do."""
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"1\n2\n1\n")))

        assert main(["replay", "-", "--maxsize", "50%", "--limit", "2"]) == 0
        assert "standard input: 2 requests for 2 distinct keys" in capsys.readouterr().out

    def test_progress_on_a_terminal(self, monkeypatch, no_rivals, capsys):
        """On a terminal a bar on standard error shows what is going on."""
        monkeypatch.setenv("FORCE_COLOR", "1")

        assert main(["replay", "--sample", "--maxsize", "10%"]) == 0
        out, err = capsys.readouterr()
        assert "reading web07.trace.xz" in err
        assert "comparing policies" in err
        assert "comparing" not in out

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--maxsize", "many"], "'many'"),
            (["--maxsize", "0"], "'0'"),
            (["--maxsize", "200%"], "'200%'"),
            (["--maxsize", "9", "--policy", "fifo"], "'fifo'; known: duel, lru"),
            (["--policy", "lru"], "--maxsize"),
            (["--maxsize", "9", "--ttl", "60"], "--ttl"),
            (["--maxsize", "9", "--cache", "sliding"], "--cache"),
            (["--plot", "curve.pdf"], "'curve.pdf'"),
            (["--plot", "curve"], ".svg or .png"),
        ],
    )
    def test_wrong_arguments(self, capsys, arguments, named):
        """Arguments that make no sense are named before the trace is read."""
        assert named in failure_of(capsys, "/no/such/trace", *arguments)

    def test_the_plot_needs_matplotlib(self, monkeypatch, capsys, trace):
        """Without matplotlib a plot is refused in one line before anything is replayed."""
        monkeypatch.setattr(plot, "can_plot", lambda: False)

        assert "lapse[bench]" in failure_of(capsys, trace, "--plot", "curve.svg")

    @pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("PNG", b"\x89PNG")])
    def test_plot(self, no_rivals, tmp_path, capsys, trace, suffix, magic):
        """The picture is written; without sizes there are some for a curve."""
        pytest.importorskip("matplotlib")
        path = tmp_path / f"curve.{suffix}"

        assert main(["replay", str(trace), "--plot", str(path)]) == 0
        assert path.read_bytes().startswith(magic)
        assert "OPT" in capsys.readouterr().out

    def test_a_plot_that_cannot_be_written(self, no_rivals, tmp_path, capsys, trace):
        """A picture that cannot be written is named after the table has been printed."""
        pytest.importorskip("matplotlib")
        path = tmp_path / "no" / "curve.svg"

        assert main(["replay", str(trace), "--plot", str(path)]) == 2
        out, err = capsys.readouterr()
        assert "OPT" in out
        assert str(path) in err

    def test_lines_that_are_the_same_are_one(self, monkeypatch, tmp_path, trace):
        """All exact LRUs share a line, and the optimum is dashed."""
        pytest.importorskip("matplotlib")
        path = tmp_path / "curve.svg"
        monkeypatch.setattr(comparison_module, "RIVALS", RIVALS[:1])

        assert main(["replay", str(trace), "--policy", "lru", "--plot", str(path)]) == 0
        picture = path.read_text()
        assert "<!-- lapse lru, lru_cache -->" in picture
        assert "stroke-dasharray" in picture
