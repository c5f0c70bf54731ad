"""The README and the pages behind it: examples run, commands, links and test names are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = [
    "python3 -m venv .venv && .venv/bin/pip install -q '.[cli]' && .venv/bin/lapse demo",
    "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/python -m pytest",
]

if not README.exists():
    pytest.skip("the README is not beside these tests", allow_module_level=True)


def blocks(language: str, page: Path = README) -> list[str]:
    """The fenced blocks of a page in that language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples_run(number: int):
    """Each Python block runs on its own, from its own imports on."""
    exec(compile(blocks("python")[number], f"README.md, block {number}", "exec"), {})


def test_the_example_of_bounds_runs():
    """The guide to bounded caches holds what it shows."""
    for block in blocks("python", ROOT / "docs" / "bounded.md"):
        exec(compile(block, "bounded.md", "exec"), {})


def test_an_example_comes_first():
    """The README shows code before its 20th line."""
    before = README.read_text(encoding="utf-8").splitlines()[:20]
    assert "```python" in before


def test_commands_are_copied_from_the_readme():
    """The first two commands install and run the demo, install and run the tests."""
    assert [block.strip() for block in blocks("sh")] == COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    """Every relative link of a page names a file or folder of the project."""
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_named_tests_exist():
    """Every test that a page names as holding a promise is there."""
    named = {
        name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text("utf-8"))
    }
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()
