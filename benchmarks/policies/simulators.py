"""The simulators in C, compiled anew for each run; a file is a policy, or several of a kind."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from pairs import Keys

#: What is simulated, by the name of its `..._policy` in C.
POLICIES = (
    "duel",
    "duel_frequency",
    "duel_recency",
    "lru",
    "fifo",
    "clock",
    "sieve",
    "twoq",
    "arc",
    "s3fifo",
    "wtinylfu",
    "wtinylfu_climbing",
)

#: Hit ratios in percent of these that the README of the traces gives, by trace and size.
EXACT = ("lru", "fifo", "clock", "sieve")
KNOWN: dict[tuple[str, int], tuple[float | None, ...]] = {
    ("web07", 1024): (50.56, 47.88, 51.16, 53.44),
    ("web07", 4096): (61.03, 58.74, 61.50, 62.56),
    ("arc-oltp", 1000): (32.83, 28.53, 33.27, 32.56),
    ("arc-oltp", 10000): (60.70, 57.29, 60.98, 60.47),
    ("lirs-sprite", 400): (70.77, 66.14, 70.42, 64.43),
    ("zipf-1.0", 100): (57.53, 51.98, 58.89, 67.12),
    ("orm-night", 4096): (84.33, 81.12, 83.26, 84.13),
    ("orm-night", 1024): (67.36, None, None, None),
}


class Simulators:
    """The compiled simulators."""

    def __init__(self) -> None:
        """Raises OSError or CalledProcessError: there is no C compiler, or it is not content."""
        here = Path(__file__).parent
        with TemporaryDirectory() as folder:
            library = Path(folder) / "policies.so"
            compiler = [os.environ.get("CC", "cc"), "-std=c11", "-O2", "-shared", "-fPIC"]
            subprocess.run([*compiler, "-o", library, *sorted(here.glob("*.c"))], check=True)
            self._library = ctypes.CDLL(str(library))
        self._library.replay.restype = ctypes.c_uint64

    def hit_ratio(self, policy: str, keys: Keys, capacity: int) -> float:
        """The percent of hits of a replay."""
        sizes = ctypes.c_uint32(capacity), ctypes.c_uint32(keys.distinct)
        address, length = keys.requests.buffer_info()
        trace = ctypes.c_void_p(address), ctypes.c_uint64(length)
        which = ctypes.c_char.in_dll(self._library, f"{policy}_policy")
        return float(100 * self._library.replay(ctypes.byref(which), *trace, *sizes) / length)

    def mistakes(self, keys: Keys) -> list[str]:
        """What differs from the known answers for this trace."""
        wrong = []
        for (name, size), answers in KNOWN.items():
            if name != keys.name:
                continue
            for policy, percent in zip(EXACT, answers, strict=True):
                found = self.hit_ratio(policy, keys, size)
                if percent is not None and round(found, 2) != percent:
                    wrong.append(f"{name} at {size}: {policy} {found:.2f}, not {percent:.2f}")
        return wrong
