"""The packaging: how the extension is built, what ships, and the workflow that builds wheels."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import types
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import lapse
from support import run_python

ROOT = Path(__file__).parents[1]
FORBIDDEN = ("-march=native", "-ffast-math", "-Ofast", "-mavx2")

if not (ROOT / "pyproject.toml").exists():
    pytest.skip("the project is not around these tests", allow_module_level=True)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- The extension ---


@pytest.fixture
def extension(monkeypatch):
    """A function: what setup.py passes to Extension, on a platform, with environment switches.

    `each` has the arguments of every extension by its name; the rest are those of lapse._core.
    """

    def described(platform: str = "linux", **switches: str) -> dict[str, Any]:
        each: dict[str, Any] = {}
        tools = types.SimpleNamespace(
            Extension=lambda name, **arguments: each.update({name: arguments}),
            setup=lambda **_: None,
            cythonize=lambda extensions, **_: extensions,
        )
        for name in ("Cython", "Cython.Build", "setuptools"):
            monkeypatch.setitem(sys.modules, name, tools)
        for name in ("LAPSE_DEBUG", "LAPSE_SANITIZE", "LAPSE_PORTABLE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in switches.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.chdir(ROOT)
        runpy.run_path("setup.py")
        return each["lapse._core"] | {"each": each}

    return described


def test_every_c_file_is_built(extension):
    """The extensions are made of all .pyx and all of csrc/*.c, and watch all headers."""
    built = extension()["each"]
    sources = {Path(name).as_posix() for each in built.values() for name in each["sources"]}
    c_files = {f"csrc/{path.name}" for path in (ROOT / "csrc").glob("*.c")}
    modules = {f"src/lapse/{path.name}" for path in (ROOT / "src/lapse").glob("*.pyx")}
    assert sources == c_files | modules
    assert set(built) == {f"lapse.{Path(name).stem}" for name in modules}
    assert len(c_files) > 1
    for each in built.values():
        watched = {Path(name).name for name in each["depends"]}
        assert {path.name for path in (ROOT / "csrc").glob("*.h")} < watched


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_wheel_runs_on_every_machine_of_its_platform(extension, platform):
    """No flag ties the build to the builder's processor or bends arithmetic; debug code is off."""
    built = extension(platform)
    flags = " ".join(built["extra_compile_args"])
    assert not [flag for flag in FORBIDDEN if flag in flags]
    assert ("NDEBUG", None) in built["define_macros"]
    assert "c11" in flags


def test_windows_links_the_precise_clock(extension):
    """MSVC gets its own flags, and the library of QueryInterruptTimePrecise."""
    built = extension("win32")
    assert built["libraries"] == ["mincore"]
    assert all(flag.startswith("/") for flag in built["extra_compile_args"])


def test_switches(extension):
    """Debug, sanitizer and portable builds differ as said; an unknown sanitizer is refused."""
    debug = extension(LAPSE_DEBUG="1")
    assert ("NDEBUG", None) not in debug["define_macros"]
    assert {"-O0", "-g", "-UNDEBUG"} <= set(debug["extra_compile_args"])
    for kind, flag in {
        "address": "-fsanitize=address,undefined",
        "thread": "-fsanitize=thread",
    }.items():
        checked = extension(LAPSE_SANITIZE=kind)
        assert flag in checked["extra_compile_args"]
        assert flag in checked["extra_link_args"]
    assert ("LAPSE_PORTABLE", "1") in extension(LAPSE_PORTABLE="1")["define_macros"]
    with pytest.raises(SystemExit, match=r"LAPSE_SANITIZE=memory: choose one of address, thread"):
        extension(LAPSE_SANITIZE="memory")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this build has a GIL")
def test_importing_lapse_leaves_the_gil_off():
    """A free-threaded interpreter stays free-threaded."""
    done = run_python("import lapse, sys; print(sys._is_gil_enabled())", "-W", "error")
    assert done.stdout.strip() == "False", done.stderr


# --- What ships ---


def test_the_version_is_one():
    """pyproject.toml and `lapse.__version__` say the same."""
    found = re.search(r'^version = "(.+)"$', text("pyproject.toml"), re.MULTILINE)
    assert found
    assert found[1] == lapse.__version__


def can_build() -> bool:
    """Are setup.py's own requirements there, as pyproject.toml states them?"""
    if not (find_spec("setuptools") and find_spec("Cython")):
        return False
    return int(version("setuptools").split(".")[0]) >= 77


def packed(folder: Path) -> set[str]:
    """The names in a new sdist of a copy of the project, below its one folder."""
    copy = folder / "copy"
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "*.so", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=ignored)
    code = "import setuptools.build_meta as b; b.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


@pytest.mark.skipif(not can_build(), reason="needs setuptools 77 or newer, and Cython")
def test_the_sdist_is_complete(tmp_path):
    """It holds all that is needed to build, test and check the project, and nothing built."""
    names = packed(tmp_path)
    patterns = [
        "*.toml", "*.yml", "*.in", "*.md", "LICENSE", "setup.py", ".clang-format", ".ci/*",
        ".github/workflows/*", "csrc/*.[ch]", "csrc/tests/*.[ch]", "src/lapse/**/*.py*",
        "src/lapse/*.h", "src/lapse/data/*", "tests/**/*.py", "benchmarks/*.py", "docs/**/*.md",
    ]  # fmt: skip
    wanted = {
        path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)
    }
    wanted = {name for name in wanted if not name.endswith((".pyc", ".pyd"))}
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if name.endswith((".so", ".pyc", "_core.c"))]


# --- The workflow ---


def test_the_workflow_that_runs_is_the_one_at_the_root():
    """wheels.yml and its copy in .github/workflows are the same, byte for byte."""
    copy = ROOT / ".github" / "workflows" / "wheels.yml"
    assert copy.read_bytes() == (ROOT / "wheels.yml").read_bytes()


def test_the_workflow_pins_what_it_uses():
    """Every action is named by a commit, every tool by a version."""
    workflow = text("wheels.yml")
    uses = re.findall(r"uses: (\S+)", workflow)
    assert uses
    assert [name for name in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name)] == []
    tools = " ".join(re.findall(r"run: python -m pip install (.+)", workflow)).split()
    assert tools
    assert [name for name in tools if "==" not in name] == []


def test_the_workflow_builds_every_promised_python():
    """Wheels exist for each CPython named in the classifiers, and free-threaded from 3.14 on."""
    promised = re.findall(r":: (3\.\d+)\"", text("pyproject.toml"))
    built = re.search(r"CIBW_BUILD: (.+)", text("wheels.yml"))
    assert built
    wanted = {f"cp{version.replace('.', '')}-*" for version in promised}
    assert set(built[1].split()) == wanted | {"cp314t-*", "cp315t-*"}
