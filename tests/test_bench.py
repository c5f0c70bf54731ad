"""The engine of `lapse bench` on made-up contenders, and one small real run."""

from __future__ import annotations

import gc
import json
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="lapse bench needs the cli extra")

from rich.console import Console

from lapse import bench
from lapse.bench import engine, probes, report, targets
from lapse.bench.bounded import PEERS
from lapse.bench.cases import CASES, Case, Emptying, Growing
from lapse.bench.contenders import CONTENDERS, Contender, compile_loop, compile_stall
from lapse.bench.engine import Plan, Series, Table
from lapse.bench.targets import TARGETS, Target, judge

TINY = Plan(rounds=3, operations=40, small=10, large=100)
DICT = CONTENDERS[0]


def no_progress(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def table(**values: list[float]) -> Table:
    """A table of made-up figures."""
    return Table("t", "a title", "ns", [Series(name, list(row)) for name, row in values.items()])


def test_ratio_pairs_rounds():
    """A ratio is the median of the rounds' ratios, which two medians can't tell."""
    scores = table(dict=[1.0, 10.0, 100.0], cache=[3.0, 20.0, 100.0])

    assert scores.ratio("cache") == 2.0
    assert scores.ratio("dict", "cache") == 0.5
    assert scores.figure("cache") == 20.0
    assert scores.spread("cache") == (1.5, 2.5)


def test_unpaired_ratio_divides_summaries():
    """Where rounds don't pair up, the ratio is that of the summaries."""
    scores = table(dict=[1.0, 10.0, 100.0], cache=[50.0, 20.0, 5.0])
    scores.paired, scores.summary = False, max

    assert scores.ratio("cache") == 0.5
    assert scores.spread("cache") is None


def test_absent_contender_has_no_ratio():
    """Who did not take part has neither figure nor ratio, nor is anybody measured by it."""
    scores = table(cache=[1.0, 2.0])

    assert scores.figure("dict") is None
    assert scores.ratio("cache") is None
    assert scores.ratio("dict") is None
    assert scores.spread("cache") is None


def test_contender_with_a_note_is_shown(capsys: pytest.CaptureFixture[str]):
    """A table with a contender too slow to time still prints, with the note for its figure."""
    scores = table(dict=[1.0, 2.0])
    scores.series.append(Series("sloth", [], "too slow"))

    report.show_table(Console(width=80), scores)

    assert "too slow" in capsys.readouterr().out
    assert scores.ratio("sloth") is None
    assert scores.spread("sloth") is None


def test_seating_gives_everybody_every_place():
    """Over twice as many rounds as contenders each takes each place equally often."""
    names = ["a", "b", "c", "d"]
    places = Counter(
        (place, name)
        for number in range(2 * len(names))
        for place, name in enumerate(engine.seating(names, number))
    )

    assert {2} == set(places.values())
    assert len(names) ** 2 == len(places)


def test_race_interleaves_and_drops_the_warm_up():
    """Each round calls each track once; the round before the first is not counted."""
    calls: list[tuple[int, str]] = []

    def track(name: str, ns: float):
        def run(number: int) -> float:
            calls.append((number, name))
            return ns * (number + 1)

        return run

    steps: list[tuple[int, int]] = []
    times = engine.race(
        {"a": track("a", 1.0), "b": track("b", 2.0)}, 3, lambda *step: steps.append(step)
    )

    assert times == {"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}
    assert [number for number, _ in calls] == [-1, -1, 0, 0, 1, 1, 2, 2]
    assert [{"a", "b"}] * 4 == [{name for _, name in calls[i : i + 2]} for i in range(0, 8, 2)]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_gc_paused_restores_what_was_set():
    """Collection is off inside and afterwards what it was before, on or off."""
    with engine.gc_paused():
        assert not gc.isenabled()
        with engine.gc_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_compiled_loops_are_their_own():
    """Each compiled loop runs its statement over all keys, in a code object of its own."""
    cache: dict[str, int] = {}
    loop, other = compile_loop("c.__setitem__(k, v)"), compile_loop("c.__setitem__(k, v)")

    assert loop(cache, ["a", "b"], 7) > 0
    assert cache == {"a": 7, "b": 7}
    assert loop.__code__ is not other.__code__


def test_stall_times_each_call():
    """The stall loop writes one time for each key."""
    cache: dict[str, int] = {}
    out = [0, 0]

    compile_stall("c.__setitem__(k, v)")(cache, ["a", "b"], 7, out)

    assert cache == {"a": 7, "b": 7}
    assert all(time > 0 for time in out)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_material_has_every_operation(case: Case):
    """A case looks up as many keys as a round has operations, hits or misses as it says."""
    material = case.material(TINY)
    keys = [key for chunk in material.chunks for key in chunk]
    if case.operation == "gather":
        keys = [key for batch in keys for key in batch]
    stored = set(material.keys)

    assert case.entries(TINY) == len(stored) == len(material.values)
    assert case.entries(TINY) == len(set(keys))
    assert (case.name == "get-miss-1k") == stored.isdisjoint(keys)
    assert (case.name == "get-equal-1k") == (
        not stored.isdisjoint(keys) and {*map(id, material.keys)}.isdisjoint(map(id, keys))
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_measures_dict(case: Case):
    """Each case runs on a dict and gives a positive time a round."""
    (scores,) = case.measure([DICT], TINY, no_progress)

    assert scores.unit == "ns"
    assert TINY.rounds == len(scores.values("dict"))
    assert all(time > 0 for time in scores.values("dict"))


def test_growing_starts_from_empty():
    """A growing track hands out a new, empty cache each time."""
    case = next(case for case in CASES if case.track is Growing)
    track = Growing(case, DICT, case.material(TINY), seat=0)

    cache, keys = track.prepare(0)
    track.timed(cache, keys)
    again, _ = track.prepare(1)

    assert TINY.small == len(cache)
    assert again == {}


def test_emptying_refills_what_it_took():
    """An emptying track restores the deleted keys before the next loop."""
    case = next(case for case in CASES if case.name == "delete-1m")
    track = Emptying(case, DICT, case.material(TINY), seat=0)

    for step in range(4):
        cache, keys = track.prepare(step)
        assert TINY.large == len(cache)
        track.timed(cache, keys)
        assert TINY.large - len(keys) == len(cache)


def test_slow_contender_is_listed_not_timed(monkeypatch: pytest.MonkeyPatch):
    """Who would take too long gets a note in the place of figures."""
    monkeypatch.setattr("lapse.bench.cases.SLOWEST_ROUND", 0.0)

    (scores,) = CASES[0].measure([DICT], TINY, no_progress)

    assert scores.values("dict") == []
    assert scores.series[0].note.startswith("too slow")


def test_contender_without_the_operation_is_left_out():
    """A contender that lacks an operation does not take part in its case."""
    case = next(case for case in CASES if case.operation == "delete")
    lacking = Contender("lacking", dict, delete=None)

    (scores,) = case.measure([DICT, lacking], TINY, no_progress)

    assert [series.contender for series in scores.series] == ["dict"]


def test_a_memoised_function_cannot_miss():
    """`lru_cache` stores what it misses, so it has no part in the case of misses."""
    case = next(case for case in CASES if case.name == "get-miss-1k")

    (scores,) = case.measure(CONTENDERS[:2], TINY, no_progress)

    assert [series.contender for series in scores.series] == ["dict"]


def test_sweep_counts_what_it_removed():
    """The sweep probe finds exactly the expired entries in each round."""
    plan = Plan(rounds=2, large=5_000)

    took, errors = probes.PROBES[0].measure(CONTENDERS, plan, no_progress)

    assert errors.figure("lapse.TTLCache") == 0
    assert len(took.values("lapse.TTLCache")) == 2


def test_growth_stall_has_slowest_and_tenth():
    """The stall probe reports the slowest `set`, and one no slower, in each run."""
    stall = next(probe for probe in probes.PROBES if probe.name == "growth-stall")

    slowest, tenth = stall.measure([DICT], TINY, no_progress)

    assert TINY.rounds == len(slowest.values("dict")) == len(tenth.values("dict"))
    assert tenth.figure("dict") <= slowest.figure("dict")


def test_memory_of_a_dict():
    """A dict of 100,000 entries takes between 30 and 110 bytes an entry by either account."""
    answer = probes.memory_of(DICT, 100_000)

    assert 30 < answer["sizeof"] < 110
    assert answer["rss"] is None or 30 < answer["rss"] < 110


def test_gc_thaws_what_it_froze():
    """The collection probe leaves nothing frozen behind."""
    probe = next(probe for probe in probes.PROBES if probe.name == "gc")
    witness: list[list[int]] = [[]]  # what is frozen is in no generation that can be listed

    (scores,) = probe.measure([DICT], TINY, no_progress)

    assert TINY.rounds == len(scores.values("dict"))
    assert any(found is witness for found in gc.get_objects())


@pytest.mark.parametrize(
    ("limit", "rival", "ok"),
    [(2.0, "dict", True), (1.9, "dict", False), (20.0, None, True), (19.0, None, False)],
)
def test_judge_compares_ratio_or_figure(limit: float, rival: str | None, ok: bool):
    """A target with a rival is judged by the ratio, one without by the figure."""
    scores = table(dict=[5.0, 10.0, 20.0], cache=[10.0, 20.0, 40.0])

    verdict = judge(Target("t", limit, rival, contender="cache"), {"t": scores})

    assert ok is verdict.ok


def test_unmeasured_target_is_missed():
    """A target that could not be measured does not count as met."""
    assert not judge(TARGETS[0], {}).ok


def test_targets_name_known_questions_and_contenders():
    """Each target can be measured: question, contender and rival exist."""
    questions = {question.name for question in bench.QUESTIONS} | {targets.IMPORTS}
    names = {contender.name for contender in CONTENDERS} | {"lapse", None}
    entrants = {contest.name: {*contest.entrants, None} for contest in bench.CONTESTS}
    for name in ("zipf-1k", "zipf-10k", "zipf-100k"):
        entrants[name] |= {peer.name for peer in PEERS}  # whether they are installed or not
    entrants["pattern-index"] = {"plain keys", "table keys"}
    entrants["pattern-read"] = {"quiet", "busy", None}

    for target in TARGETS:
        assert target.question in questions
        assert {target.contender, target.rival} <= entrants.get(target.question, names)


def test_lapse_imports_nothing_foreign():
    """`import lapse` loads the standard library and lapse only."""
    assert targets.foreign_imports().figure("lapse") == 0


def test_run_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A small real run prints versions and table, and its JSON holds every round."""
    path = tmp_path / "run.json"

    assert bench.run(only="get-subscript-1k", quick=True, rounds=2, json_path=path) == 0

    document = json.loads(path.read_text())
    (question,) = document["questions"]
    results = {row["contender"]: row for row in question["results"]}
    assert {"machine", "versions", "plan", "questions", "targets"} == set(document)
    assert question["name"] == "get-subscript-1k"
    assert results["dict"]["ratio"] == 1.0
    assert len(results["lapse.TTLCache"]["values"]) == 2
    assert "cachebox" in document["versions"]
    assert "c[k]" in capsys.readouterr().out


def test_run_writes_svg(tmp_path: Path):
    """With matplotlib a picture with each contender's name is written."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.svg"
    from lapse.bench.plot import write_svg

    write_svg(path, [table(dict=[1.0, 2.0], cache=[2.0, 4.0])], "a caption")

    assert "</svg>" in path.read_text()
    assert "<!-- cache -->" in path.read_text()


def test_run_says_that_the_plot_needs_matplotlib(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Without matplotlib a plot is refused in one line before anything is measured."""
    monkeypatch.setattr(bench, "can_plot", lambda: False)

    assert bench.run(only="get-subscript-1k", svg_path=tmp_path / "run.svg") == 2

    captured = capsys.readouterr()
    assert "needs matplotlib" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"only": "no-such-question"}, "known: get-hit-1k"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"json_path": "/no/such/folder/run.json"}, "cannot write"),
    ],
)
def test_run_refuses_wrong_arguments(
    arguments: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
):
    """Arguments that can't be served end in status 2 and one line that says why."""
    assert bench.run(**arguments) == 2

    assert words in capsys.readouterr().err


def test_targets_run_fails_on_a_missed_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A targets run returns 1 when a promise is broken and 0 when it is kept."""
    for limit, status in ((1e-9, 1), (1e9, 0)):
        monkeypatch.setattr(bench, "TARGETS", (Target("get-subscript-1k", limit),))
        assert status == bench.run(quick=True, rounds=2, targets=True)

    assert "get-subscript-1k · lapse.TTLCache" in capsys.readouterr().out


def test_machine_names_python_and_date():
    """The report says which Python, on what, when."""
    where = report.machine()

    assert {"python", "implementation", "platform", "processor", "cpus", "date"} == set(where)
    assert where["processor"]
