"""The commands of `lapse`, and how a replay looks on a terminal. Needs the extra `cli`."""

from __future__ import annotations

__all__ = ["app", "run"]

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from lapse import __version__
from lapse.contenders import CACHES
from lapse.replay import SAMPLE_EVERY, Report, Result
from lapse.replay import replay as run_replay
from lapse.terminal import output, reading
from lapse.traces import FORMATS, Trace, open_sample, open_trace

if TYPE_CHECKING:
    from lapse.policies import Comparison

_UNKNOWN = "-"
_STANDARD = ("dict", "lru_cache")

app = typer.Typer(
    name="lapse",
    help="Expiring caches: replay real traces through them, and measure them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; failures are raised, not printed."""
    try:
        status = app(args=arguments, prog_name="lapse", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return status or 0


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Without a command: the version, or this help."""
    if version:
        typer.echo(f"lapse {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def replay(
    trace: Annotated[
        str | None,
        typer.Argument(metavar="TRACE", help="A trace file (plain, .gz, .xz), or - for stdin."),
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="The trace that lapse ships.")] = False,
    format: Annotated[
        str | None, typer.Option(help=f"Trace format: {', '.join(FORMATS)}; guessed by default.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help=f"The lapse cache: {', '.join(CACHES)}; ttl by default.")
    ] = None,
    ttl: Annotated[
        float | None, typer.Option(help="Lifetime of an entry in seconds; 3600 by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after so many requests.")] = None,
    maxsize: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Compare policies of bounded caches: entries, or percent of the distinct keys,"
            " as in 1000,10%. Nothing expires then.",
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Of lapse, as in duel,lru; all by default.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the miss ratios by size: .svg, .png.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there, too.")
    ] = None,
) -> None:
    """Replay an access trace through a lapse cache, dict, lru_cache, cachetools and cachebox.

    With --maxsize or --plot: through bounded caches, beside the optimum.
    """
    if sample == (trace is not None):
        raise ValueError("name one trace: a TRACE file, - for standard input, or --sample")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, not {limit}")

    def opened() -> Trace:
        return open_sample(format, limit) if trace is None else open_trace(trace, format, limit)

    report: Report | Comparison
    if maxsize is None and plot is None:
        if policy is not None:
            raise ValueError("--policy goes with --maxsize or --plot: else nothing is evicted")
        report = _replay_unbounded(opened, limit, cache, ttl)
    else:
        if cache is not None or ttl is not None:
            raise ValueError("--cache and --ttl do not go with --maxsize or --plot")
        from lapse.policies import compare_policies

        report = compare_policies(opened, limit, maxsize, policy, plot)
    if json_path:
        json_path.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")


def _replay_unbounded(
    opened: Callable[[], Trace], limit: int | None, cache: str | None, ttl: float | None
) -> Report:
    with opened() as trace, reading(trace, limit, "replaying") as advance:
        lifetime = 3600.0 if ttl is None else ttl
        report = run_replay(trace, "ttl" if cache is None else cache, lifetime, advance)
    _show(report)
    return report


@app.command()
def bench(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of each question.")] = 25,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, smaller caches.")] = False,
    only: Annotated[str | None, typer.Option(help="Questions whose name contains this.")] = None,
    targets: Annotated[bool, typer.Option("--targets", help="Status 1 if one is missed.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")
    ] = None,
    svg_path: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the figures there.")
    ] = None,
) -> None:
    """Benchmark the lapse caches beside dict and what rivals are installed."""
    from lapse.bench import run as run_bench

    status = run_bench(
        only=only,
        rounds=rounds,
        quick=quick,
        targets=targets,
        json_path=json_path,
        svg_path=svg_path,
    )
    raise typer.Exit(status)


@app.command()
def demo(
    world: Annotated[
        str, typer.Argument(metavar="WORLD", help="ecommerce, social or analytics.")
    ] = "ecommerce",
    seconds: Annotated[float, typer.Option(help="Seconds of each of the two runs.")] = 8.0,
    readers: Annotated[int, typer.Option(help="Threads that read.")] = 4,
    writers: Annotated[int, typer.Option(help="Threads that change the database.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the traffic.")] = 1,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live view.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there, too.")
    ] = None,
) -> None:
    """Check every read of a cache in front of a database that changes; status 1 for a stale one."""
    from lapse.demo import run as run_demo

    status = run_demo(
        world,
        seconds=seconds,
        readers=readers,
        writers=writers,
        seed=seed,
        plain=plain,
        json_path=json_path,
    )
    raise typer.Exit(status)


# --- The report ---


def _show(report: Report) -> None:
    """Print a report: what was replayed, a row for each contender, how to read the figures."""
    console = output()
    console.print(_headline(report), style="bold")
    console.print(_table(report))
    console.print(_notes(report), style="dim")


def _headline(report: Report) -> str:
    if report.span_seconds is None:
        time = "no timestamps"
    else:
        time = f"{timedelta(seconds=round(report.span_seconds))} of timestamps"
    return (
        f"{report.trace}: {report.requests:,} requests for {report.distinct_keys:,} distinct keys"
        f" ({report.format}, {time})"
    )


def _table(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("cache\n")
    for heading in (
        "requests\n/s",
        "hits\n%",
        "expired\nentries",
        "read p50\nns",
        "p99\nns",
        "p99.9\nns",
        "memory\nKiB",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in report.results:
        style = "bold" if result.name.startswith("lapse ") else None
        table.add_row(*_row(result), style=style)
    return table


def _row(result: Result) -> tuple[str, ...]:
    memory = None if result.memory_bytes is None else result.memory_bytes / 1024
    return (
        result.name,
        _number(result.requests_per_second),
        f"{100 * result.hit_ratio:.2f}",
        _number(result.expirations),
        _number(result.read_p50_ns),
        _number(result.read_p99_ns),
        _number(result.read_p999_ns),
        _number(memory),
    )


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _notes(report: Report) -> Table:
    """How the figures came about."""
    notes = Table(box=None, show_header=False, pad_edge=False)
    notes.add_column(no_wrap=True)
    notes.add_column()
    notes.add_row(
        "requests/s",
        "the bare loop: a read and, on a miss, a store; the caches take turns in one process",
    )
    notes.add_row(
        "read",
        f"one request in {SAMPLE_EVERY}, timed on its own and not part of requests/s;"
        f" about {report.timer_ns} ns of each figure is the timer",
    )
    notes.add_row(
        "memory", "growth of the process, keys and values aside; rough below a thousand KiB"
    )
    notes.add_row("expired", _expiry(report))
    notes.add_row("versions", _versions(report))
    return notes


def _expiry(report: Report) -> str:
    """What made entries expire, or why none did."""
    after = f"after {report.ttl_seconds:,g} s"
    never = f"never in {' and '.join(_STANDARD)}"
    if report.span_seconds is None:
        return f"{after} of real time, as the trace has no timestamps; {never}"
    driven = " and ".join(result.name for result in report.results if result.trace_time)
    own = [n.name for n in report.results if not n.trace_time and n.name not in _STANDARD]
    real = f" of real time, its only clock, in {own[0]};" if own else ""
    return f"{after} of the timestamps in {driven};{real} {never}"


def _versions(report: Report) -> str:
    packages = (n for n in report.results if n.name not in _STANDARD)
    named = (f"{package.name.partition(' ')[0]} {package.version}" for package in packages)
    return ", ".join([f"Python {report.python}", *named])
