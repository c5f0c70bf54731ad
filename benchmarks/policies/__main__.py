"""Which entry should go? Every shared trace, at four sizes, by many policies and by other caches.

    python benchmarks/policies                        everything, some minutes
    python benchmarks/policies --no-rivals            lapse and the simulators only, a minute
    python benchmarks/policies --only lirs --json figures.json --svg curves.svg

`lapse` is the default policy as the caches run it; the others are simulators in C, compiled first,
and checked against the known answers in the README of the traces, and rivals, those of `lapse
replay`, used through their Python interfaces. Rivals not installed are left out:
pip install libcachesim theine moka-py cachebox cachetools. `--limit` cuts every trace for
everybody, so the sizes, which are percent of the distinct keys, shrink with it.

Status 1 if a known answer is missed, or a promise about the default policy is broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pairs import SIZES, Keys, read_traces
from report import Pair, complaints, show, write_json, write_svg
from rich.console import Console
from simulators import POLICIES, Simulators

from lapse.bench.plot import can_plot
from lapse.policies.contenders import LAPSE, RIVALS, Contender, plain
from lapse.policies.optimum import NAME as OPT
from lapse.policies.optimum import optimum

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"


#: Rivals that decide as another does which takes part.
TWINS = {"cachetools LRU", "cachebox LRU", "lru-dict", "cachetools LFU"}
#: As it comes; the rival is told to hold its size.
UNHELD = Contender("moka, unheld", plain("moka_py.Moka", "set", policy="tiny_lfu"), "moka-py")


def percent_of_hits(keys: Keys, contender: Contender, capacity: int) -> float:
    """Of a new cache; 0 at a size that the contender cannot have."""
    if capacity < contender.least:
        return 0.0
    return 100 - 100 * contender.make(capacity)(keys.requests) / len(keys.requests)


def replay(
    keys: Keys, simulators: Simulators, rivals: Sequence[Contender], unheld: Sequence[Contender]
) -> Iterator[Pair]:
    """All sizes of one trace."""
    best = Contender(OPT, optimum(keys.requests))
    for percent in SIZES:
        capacity = keys.capacity(percent)
        yield Pair(
            trace=keys.name,
            requests=len(keys.requests),
            percent=percent,
            capacity=capacity,
            optimum=percent_of_hits(keys, best, capacity),
            ours=percent_of_hits(keys, LAPSE["duel"], capacity),
            simulated={name: simulators.hit_ratio(name, keys, capacity) for name in POLICIES},
            rivals={rival.name: percent_of_hits(keys, rival, capacity) for rival in rivals},
            unheld={other.name: percent_of_hits(keys, other, capacity) for other in unheld},
        )


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which entry should go?")
    parser.add_argument("--traces", type=Path, default=TRACES, help="the folder with the traces")
    parser.add_argument("--only", help="traces whose name contains this")
    parser.add_argument("--limit", type=int, help="requests of each trace")
    parser.add_argument("--no-rivals", action="store_true", help="the simulators only")
    parser.add_argument("--unheld", action="store_true", help="also moka-py as it comes")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--svg", type=Path, help="write a plot there (needs matplotlib)")
    options = parser.parse_args()
    if options.svg and not can_plot():
        parser.error("--svg needs matplotlib")
    if not options.traces.is_dir():
        parser.error(f"there is no folder {options.traces}")
    return options


def main() -> int:
    options = options_given()
    rivals = [] if options.no_rivals else [r for r in RIVALS if r.version and r.name not in TWINS]
    unheld = [UNHELD] if options.unheld and UNHELD.version else []
    simulators, console, errors = Simulators(), Console(width=200), Console(stderr=True)
    pairs: list[Pair] = []
    wrong: list[str] = []
    for keys in read_traces(options.traces, options.only, options.limit):
        began = time.perf_counter()
        if options.limit is None:
            wrong += simulators.mistakes(keys)
        pairs += replay(keys, simulators, rivals, unheld)
        errors.print(f"{keys.name}: {time.perf_counter() - began:.0f} s")
    if not pairs:
        errors.print("no such trace")
        return 2
    versions = {rival.package: rival.version for rival in (*LAPSE.values(), *rivals)}
    console.print(", ".join(f"{package} {version}" for package, version in versions.items()))
    show(pairs, console)
    if options.json:
        write_json(options.json, pairs, versions)
    if options.svg:
        write_svg(options.svg, pairs)
    wrong += complaints(pairs)
    for line in wrong:
        errors.print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
