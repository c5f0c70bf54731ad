"""The experiment of examples/stale_comeback.py: lapse never serves what was invalidated."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support import PATIENCE

SCRIPT = Path(__file__).parents[1] / "examples" / "stale_comeback.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the examples are not here")


def loaded() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("stale_comeback", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


experiment: Any = loaded() if SCRIPT.is_file() else None
WAYS = list(experiment.WAYS) if experiment else []
KINDS = list(experiment.KINDS) if experiment else []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["threads", "asyncio"])
@pytest.mark.parametrize("way", WAYS)
def test_lapse_is_fresh(way: str, mode: str, kind: str) -> None:
    """Whatever invalidates while a load runs, the next read gets the new value."""
    made = experiment.WAYS[way][mode == "asyncio"]
    assert experiment.one(mode, made, experiment.KINDS[kind]) == "fresh"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_without_an_invalidation_it_is_stale(way: str, mode: str) -> None:
    """The experiment can fail: with nobody to tell the cache, it serves what was loaded."""
    made = experiment.WAYS[way][mode == "asyncio"]
    assert experiment.one(mode, made, lambda cache, origin: None) == "STALE"


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_set_is_stale(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can tell the difference: get() and set() around a load bring the old value back."""
    monkeypatch.setattr(experiment, "BLOCKED", PATIENCE)  # this one waits for no load
    assert experiment.one("threads", experiment.get_and_set, experiment.KINDS[kind]) == "STALE"


def test_the_standard_library_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """functools.lru_cache is always there, and does not fence."""
    rivals = iter(experiment.rival_results())
    with monkeypatch.context() as patient:
        patient.setattr(experiment, "BLOCKED", PATIENCE)  # it waits for no load
        name, results = next(rivals)
    assert (name, [result.served for result in results]) == ("functools", ["STALE"])
    assert [name, *(other for other, _ in rivals)] == list(experiment.RIVALS)


def test_the_script_prints_its_tables() -> None:
    """It runs as it is, names what is not installed, and ends well if lapse was fresh."""
    source = Path(sys.modules["lapse"].__file__ or "").parents[1]
    code = f"import sys; sys.path.insert(0, {str(source)!r}); sys.argv = ['x', '--plain']\n"
    code += f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in [*WAYS, *KINDS, *experiment.RIVALS]:
        assert name in done.stdout, name
    assert "lapse, for contrast" in done.stdout
