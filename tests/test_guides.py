"""The guides' examples run as they stand."""

from __future__ import annotations

import doctest
import logging
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = sorted(path for path in DOCS.glob("*.md") if ">>>" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_examples(path: Path) -> None:
    """Every example of a guide prints what the guide says, in its order."""
    logging.getLogger("lapse").addHandler(logging.NullHandler())
    done = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert done.attempted > 0
    assert done.failed == 0


@pytest.mark.skipif(not DOCS.is_dir(), reason="the documents are not here")
def test_there_are_guides() -> None:
    """The walk finds the guides."""
    assert {"invalidation.md", "loading.md"} <= {path.name for path in GUIDES}
