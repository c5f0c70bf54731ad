"""The layers of the package: every module imports only from those to its left.

    _core -> flight -> caches -> loading, invalidation -> sources -> distributed -> web, scenarios
          -> cli, integrations

Up to the invalidation layer nothing but the standard library is imported from outside.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lapse

PACKAGE = Path(lapse.__file__).parent
UNITS = {
    "_core": ["_core", "_queue"],
    "flight": [
        "flight",
        "flight_board",
        "flight_gates",
        "flight_lead",
        "flight_refresh",
        "shortage",
    ],
    "caches": ["caches", "bounds", "views", "sweeper", "forks", "stops", "events", "stats"],
    "loading": ["loading"],
    "invalidation": ["invalidation"],
    "sources": ["sources"],
    "distributed": ["distributed"],
    "web": ["web"],
    "scenarios": ["scenarios"],
    "cli": [
        "cli",
        "commands",
        "traces",
        "replay",
        "bench",
        "contenders",
        "demo",
        "policies",
        "terminal",
    ],
    "integrations": ["integrations"],
}
LAYERS = [
    ["_core"], ["flight"], ["caches"], ["loading", "invalidation"], ["sources"],
    ["distributed"], ["web", "scenarios"], ["cli", "integrations"],
]  # fmt: skip
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
UNIT_OF = {module: unit for unit, modules in UNITS.items() for module in modules}
STDLIB_ONLY_UP_TO = RANK["invalidation"]
FACADE = "__init__"


def imported(source: str, package: list[str]) -> Iterator[str]:
    """Full names of what `source`, a module of `package`, imports at run time."""
    tree = ast.parse(source)
    hints = {child for node in ast.walk(tree) if _for_types(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if node in hints:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            below = name == "lapse"  # `from lapse import caches` names a module, or a class
            yield from (f"lapse.{alias.name}" for alias in node.names) if below else [name]


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def faults(source: str, module: list[str], packages: list[str]) -> list[str]:
    """What the module lapse.<module>, in the package `packages`, imports against the arrow."""
    unit = UNIT_OF[module[0]]
    found = []
    for name in imported(source, packages):
        top, _, rest = name.partition(".")
        if top == "lapse":
            other = UNIT_OF.get(rest.partition(".")[0], FACADE)
            if other == FACADE:
                allowed = RANK[unit] > RANK["caches"]
            else:
                allowed = other == unit or RANK[other] < RANK[unit]
        else:
            allowed = top in sys.stdlib_module_names or RANK[unit] > STDLIB_ONLY_UP_TO
        if not allowed and not _is_optional(top, unit):
            found.append(name)
    return found


def _is_optional(top: str, unit: str) -> bool:
    """NumPy in the caches' snapshot(): an extra, imported within the method."""
    return (top, unit) == ("numpy", "caches")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_module_has_a_layer():
    """A new module says where it belongs, here and in the documentation."""
    names = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in modules()}
    assert names - {"__main__"} <= set(UNIT_OF)
    assert len(names) >= 2


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_left(path):
    """Each module imports only from the layers to its left, and from its own unit."""
    module = list(path.relative_to(PACKAGE).with_suffix("").parts)
    package = ["lapse", *module[:-1]]
    if module != ["__main__"]:
        assert faults(path.read_text(encoding="utf-8"), module, package) == []


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("from lapse.caches import TTLCache", "flight", ["lapse.caches"]),
        ("from lapse import cli", "caches", ["lapse.cli"]),
        ("from . import web", "caches", ["lapse.web"]),
        ("from .web import app", "sources", ["lapse.web"]),
        ("import lapse.invalidation.rules", "loading", ["lapse.invalidation.rules"]),
        ("def f():\n    import flask", "caches", ["flask"]),
        ("from lapse import TTLCache", "caches", ["lapse.TTLCache"]),
        ("if TYPE_CHECKING:\n    import flask", "caches", []),
        ("import flask, json\nfrom lapse import TTLCache\nfrom lapse.caches import x", "web", []),
        ("from lapse import sweeper\nfrom lapse._core import Cache\nimport numpy", "caches", []),
        ("from lapse.traces import read", "replay", []),
    ],
)
def test_the_check_itself(source, module, expected):
    """The walk finds imports against the arrow in every form, and no others."""
    assert faults(source, [module], ["lapse"]) == expected


def test_the_facade_imports_nothing_foreign():
    """`lapse/__init__.py` may import from every layer, but only lapse and the standard library."""
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    tops = {name.partition(".")[0] for name in imported(source, ["lapse"])}
    assert tops - {"lapse"} <= set(sys.stdlib_module_names)
    assert "lapse" in tops
