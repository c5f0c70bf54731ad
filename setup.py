"""The one extension of lapse: `lapse._core`, from `_core.pyx` and every C file of `csrc/`.

Environment switches:
    LAPSE_DEBUG=1                  -O0 -g, C assertions and structure checks on
    LAPSE_SANITIZE=address|thread  build with that sanitizer (address adds undefined)
    LAPSE_PORTABLE=1               no SIMD: the portable probe and scan
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

GCC_FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-fno-strict-aliasing", "-fstack-protector-strong"]
GCC_LINK = []
MSVC_FLAGS = ["/std:c11", "/experimental:c11atomics", "/O2", "/guard:cf"]


def build_flags() -> tuple[list[str], list[str], list[tuple[str, str | None]]]:
    """Compiler flags, linker flags and macros for this platform and these switches."""
    debug = os.environ.get("LAPSE_DEBUG") == "1"
    sanitize = os.environ.get("LAPSE_SANITIZE")
    macros: list[tuple[str, str | None]] = [] if debug else [("NDEBUG", None)]
    if os.environ.get("LAPSE_PORTABLE") == "1":
        macros.append(("LAPSE_PORTABLE", "1"))
    if sys.platform == "win32":
        return list(MSVC_FLAGS), [], macros
    compile_args, link_args = list(GCC_FLAGS), list(GCC_LINK)
    if sys.platform == "linux":
        link_args += ["-Wl,-z,relro", "-Wl,-z,now"]
    if debug:
        compile_args += ["-O0", "-g", "-UNDEBUG"]
    elif not sanitize:
        compile_args += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    if sanitize:
        kinds = {"address": "address,undefined", "thread": "thread"}[sanitize]
        compile_args += [f"-fsanitize={kinds}", "-fno-omit-frame-pointer", "-g"]
        link_args += [f"-fsanitize={kinds}"]
    return compile_args, link_args, macros


compile_args, link_args, macros = build_flags()
extension = Extension(
    "lapse._core",
    sources=["src/lapse/_core.pyx", *sorted(map(str, Path("csrc").glob("*.c")))],
    depends=[*map(str, Path("csrc").glob("*.h")), *map(str, Path("src/lapse").glob("*.[hp]*"))],
    include_dirs=["csrc", "src/lapse"],
    define_macros=[("_GNU_SOURCE", "1"), *macros],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
setup(ext_modules=cythonize([extension], language_level=3))
