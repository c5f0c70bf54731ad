"""Fixtures of the benchmarks: what `lapse.bench` times, one contender or entrant at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from lapse.bench import CONTESTS
from lapse.bench.cases import CASES, Case
from lapse.bench.contenders import CONTENDERS, Contender
from lapse.bench.contest import Contest
from lapse.bench.engine import Plan


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--quick`, the small plan of `lapse bench --quick`."""
    parser.addoption("--quick", action="store_true", help="100,000 entries for a million, 5 rounds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test for every contender, and every case or contest entrant that it marks."""
    if "contender" in metafunc.fixturenames:
        metafunc.parametrize("contender", CONTENDERS, ids=str)
    if "case" in metafunc.fixturenames:
        operations = metafunc.definition.get_closest_marker("operations").args
        cases = [case for case in CASES if case.name.startswith(operations)]
        metafunc.parametrize("case", cases, ids=str)
    if "contest" in metafunc.fixturenames:
        names = metafunc.definition.get_closest_marker("contests").args
        contests = [contest for contest in CONTESTS if contest.name in names]
        pairs = [(contest, entrant) for contest in contests for entrant in contest.entrants]
        metafunc.parametrize(("contest", "entrant"), pairs, ids=str)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of this folder."""
    config.addinivalue_line("markers", "operations(*prefixes): the cases that a file asks")
    config.addinivalue_line("markers", "contests(*names): the contests that a file holds")


@pytest.fixture(autouse=True)
def _present(request: pytest.FixtureRequest) -> None:
    if "contender" not in request.fixturenames:
        return
    contender: Contender = request.getfixturevalue("contender")
    if not contender.installed:
        pytest.skip(f"{contender} is not installed")


@pytest.fixture
def plan(request: pytest.FixtureRequest) -> Plan:
    """Sizes and rounds."""
    return Plan.quick(5) if request.config.getoption("--quick") else Plan()


@pytest.fixture
def time_case(benchmark, plan: Plan) -> Callable[[Case, Contender], None]:
    """A function that times a case for one contender, a timed loop of `lapse bench` a round."""

    def time(case: Case, contender: Contender) -> None:
        if not case.statement(contender):
            pytest.skip(f"{contender} has no such operation")
        track = case.track(case, contender, case.material(plan), seat=0)
        if case.too_slow(track, plan):
            pytest.skip(f"{contender} is too slow to time")
        steps = itertools.count()

        def prepare() -> tuple[tuple[Any, Any], dict[str, Any]]:
            cache, keys = track.prepare(next(steps))
            benchmark.extra_info["operations"] = len(keys) * case.weight(plan)
            return (cache, keys), {}

        benchmark.group = case.name
        benchmark.pedantic(track.timed, setup=prepare, rounds=plan.rounds)

    return time


@pytest.fixture
def time_trial(benchmark, plan: Plan) -> Callable[[Contest, str], None]:
    """A function that times one entrant of a contest, a call of `lapse bench` a round."""

    def time(contest: Contest, entrant: str) -> None:
        trials = contest.trials(plan)
        trial = trials[entrant]
        answers: list[object] = []

        def settle() -> None:
            while answers:
                trial.finish(answers.pop())

        def prepare() -> None:
            settle()
            trial.prepare()
            benchmark.extra_info["operations"] = trial.operations

        benchmark.group = contest.name
        try:
            rounds = contest.rounds(plan)
            benchmark.pedantic(lambda: answers.append(trial.call()), setup=prepare, rounds=rounds)
            settle()
        finally:
            for each in trials.values():
                each.close()

    return time
