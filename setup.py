"""The extensions of lapse: `lapse._core`, the table, and `lapse._queue`, the invalidation queue.

Every C file of `csrc/` is part of the one or the other.

Environment switches:
    LAPSE_DEBUG=1                  no optimisation, debug symbols, C assertions and structure checks
    LAPSE_SANITIZE=address|thread  build with that sanitizer (address adds undefined)
    LAPSE_PORTABLE=1               no SIMD: the portable probe and scan
"""

import os
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
DEBUG = os.environ.get("LAPSE_DEBUG") == "1"
SANITIZE = os.environ.get("LAPSE_SANITIZE", "")
PORTABLE = os.environ.get("LAPSE_PORTABLE") == "1"


def macros() -> list[tuple[str, str | None]]:
    """What the C files may test for."""
    chosen: list[tuple[str, str | None]] = [("_GNU_SOURCE", "1")]
    if not DEBUG:
        chosen.append(("NDEBUG", None))
    if PORTABLE:
        chosen.append(("LAPSE_PORTABLE", "1"))
    if sys.platform == "win32" and sysconfig.get_config_var("Py_GIL_DISABLED"):
        chosen.append(("Py_GIL_DISABLED", "1"))  # its pyconfig.h leaves this to the builder
    return chosen


def msvc() -> dict[str, list[str]]:
    """Arguments for MSVC; mincore has the precise interrupt time of clock.h."""
    level = ["/Od", "/Z7", "/UNDEBUG"] if DEBUG else ["/O2", "/guard:cf"]
    return {
        "extra_compile_args": ["/std:c11", "/experimental:c11atomics", *level],
        "extra_link_args": ["/DEBUG"] if DEBUG else ["/guard:cf"],
        "libraries": ["mincore"],
    }


def gcc() -> dict[str, list[str]]:
    """Arguments for GCC and Clang."""
    compile_args = ["-std=c11", "-O3", "-fvisibility=hidden", "-fno-strict-aliasing"]
    link_args = []
    if sys.platform == "linux":
        compile_args.append("-fno-plt")
        link_args += ["-Wl,-z,relro", "-Wl,-z,now"]
    if SANITIZE:
        compile_args += [f"-fsanitize={SANITIZERS[SANITIZE]}", "-fno-omit-frame-pointer", "-g"]
        link_args.append(f"-fsanitize={SANITIZERS[SANITIZE]}")
    if DEBUG:
        compile_args += ["-O0", "-g", "-UNDEBUG"]
    elif not SANITIZE:
        hardening = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
        compile_args += ["-g0", *hardening]
    return {
        "extra_compile_args": compile_args,
        "extra_link_args": link_args,
        "libraries": ["m"],
    }


if SANITIZE and SANITIZE not in SANITIZERS:
    sys.exit(f"LAPSE_SANITIZE={SANITIZE}: choose one of {', '.join(SANITIZERS)}")

C_FILES = {path.as_posix() for path in Path("csrc").glob("*.c")}
QUEUE_ONLY = {"csrc/queue.c"}
QUEUE = QUEUE_ONLY | {"csrc/memory.c"}


def extension(name: str, c_files: set[str]) -> Extension:
    """`lapse.NAME`, of its .pyx and these C files."""
    headers = [*Path("csrc").glob("*.h"), *Path("src/lapse").glob("*.h")]
    return Extension(
        f"lapse.{name}",
        sources=[f"src/lapse/{name}.pyx", *sorted(c_files)],
        depends=sorted(map(str, headers)),
        include_dirs=["csrc", "src/lapse"],
        define_macros=macros(),
        **(msvc() if sys.platform == "win32" else gcc()),
    )


extensions = [extension("_core", C_FILES - QUEUE_ONLY), extension("_queue", QUEUE)]
setup(ext_modules=cythonize(extensions, language_level=3))
