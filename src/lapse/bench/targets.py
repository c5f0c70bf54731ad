"""What `lapse bench --targets` holds the caches to: one line a promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .engine import BASELINE, Series, Table, fresh_process

__all__ = ["IMPORTS", "TARGETS", "Target", "Verdict", "foreign_imports", "judge"]

TTL, SLIDING, PROBABILISTIC = (
    f"lapse.{name}" for name in ("TTLCache", "SlidingTTLCache", "ProbabilisticTTLCache")
)
CACHEBOX = "cachebox.TTLCache"
IMPORTS = "imports"  #: the question that `foreign_imports` answers


@dataclass(frozen=True)
class Target:
    """A promise: `contender` scores at most `limit` in `table`, times `rival` if there is one."""

    question: str  #: the case or probe that measures it
    limit: float
    rival: str | None = BASELINE
    contender: str = TTL
    table: str = ""  #: where it is not the question's own name
    what: str = ""

    def measured(self, tables: Mapping[str, Table]) -> float | None:
        """The figure or ratio to judge; None if it could not be measured."""
        table = tables.get(self.table or self.question)
        if table is None:
            return None
        if self.rival is None:
            return table.figure(self.contender)
        return table.ratio(self.contender, self.rival)


@dataclass(frozen=True)
class Verdict:
    """A target and what came of it, in words and as a yes or no."""

    what: str
    target: str
    measured: str
    ok: bool


TARGETS: tuple[Target, ...] = (
    Target("get-hit-1k", 1.25),
    Target("get-hit-1k", 0.6, CACHEBOX),
    Target("get-hit-1m", 1.0),
    Target("get-subscript-1k", 1.4),
    Target("gather-1k", 0.4),
    Target("gather-1m", 0.2),
    *(
        Target(f"set-{kind}-{size}", limit, rival)
        for kind in ("overwrite", "new")
        for size in ("1k", "1m")
        for limit, rival in ((0.75, CACHEBOX), (1.0, BASELINE))
    ),
    Target("delete-1k", 2.0),
    Target("delete-1m", 2.0),
    Target("get-hit-1k", 1.6, contender=SLIDING),
    Target("get-hit-1k", 1.6, contender=PROBABILISTIC),
    *(
        Target(f"cached-{kind}{bound}", limit, rival, way)
        for kind, bound, limit, rival in (
            ("hit", "", 0.95, "functools.cache"),
            ("hit", "-bounded", 0.95, "functools.lru_cache"),
            ("async", "", 1.3, "bare"),
            ("async", "-bounded", 1.3, "bare"),
        )
        for way in ("cached", "cached, ttl")
    ),
    Target("get-or-load-hit", 1.5, "get", "get_or_load"),
    Target("get-or-load-hit", 1.5, "get, maxsize", "get_or_load, maxsize"),
    Target("get-hit-bounded", 1.35, contender="TTLCache"),
    *(Target(f"evict-{size}", 2.5, "no bound", "TTLCache") for size in ("1k", "1m")),
    *(
        Target(f"zipf-{size}", limit, rival, "TTLCache")
        for size in ("1k", "10k", "100k")
        for rival, limit in (("OrderedDict", 1 / 2), ("cachebox LRU", 1 / 1.1))
    ),
    Target("growth-stall", 1 / 20, table="growth-slowest"),
    Target("growth-stall", 300, None, table="growth-tenth"),
    Target("sweep", 2, None, table="sweep-time"),
    Target("sweep", 0, None, table="sweep-error"),
    Target("gc", 1, None, table="gc-collect"),
    Target("memory", 64, None, table="memory-rss"),
    Target("memory", 64, None, table="memory-sizeof"),
    Target("pattern", 1_000, None, "one table"),
    Target("pattern", 3, "one table", "100 tables"),
    Target("pattern", 3, "one table", "100 parts"),
    Target("pattern", 50, None, "no such table"),
    Target("pattern-index", 1.1, "plain keys", "table keys", table="index-set"),
    Target("pattern-index", 1.05, "plain keys", "table keys", table="index-sizeof"),
    Target("pattern-glob", 1 / 20, "fnmatchcase", "lapse"),
    Target("pattern-rare", 1 / 20, "fnmatchcase", "lapse"),
    *(
        Target("pattern-stars", 50, None, stars)
        for stars in ("'a*' * 50 + 'b'", "'a*' * 50 + 'b*'", "'*a' * 50 + 'b*'")
    ),
    *(Target("tag", 300, None, size) for size in ("1k", "100k", "1m")),
    *(
        Target(f"tag-{kind}-{size}", 2.5, "untagged", "tagged")
        for kind in ("set", "new")
        for size in ("1k", "1m")
    ),
    Target("queue-put", 1.5, "SimpleQueue", "lapse"),
    *(
        Target("queue-apply", 200, None, f"{size}, {kind}")
        for size in ("100k", "1m")
        for kind in ("present", "absent")
    ),
    Target("queue-backlog", 1 / 40, "reference", "lapse"),
    Target("queue-stream", 1 / 40, "reference", "lapse"),
    Target("pattern-read", 2, "quiet", "busy", table="read-p99"),
    Target("pattern-read", 5_000, None, "busy", table="read-p99.99"),
    Target(IMPORTS, 0, None, "lapse", what="foreign modules of `import lapse`"),
)


def judge(target: Target, tables: Mapping[str, Table]) -> Verdict:
    """Whether `target` is met by what was measured; what could not be measured is not met."""
    table = tables.get(target.table or target.question)
    rival = f" x {target.rival}" if target.rival else f" {table.unit}" if table else ""
    measured = target.measured(tables)
    what = target.what or f"{target.table or target.question} · {target.contender}"
    return Verdict(
        what=what,
        target=f"<= {target.limit:,g}{rival}",
        measured="not measured" if measured is None else f"{measured:,.3g}",
        ok=measured is not None and measured <= target.limit,
    )


def foreign_imports() -> Table:
    """How many modules `import lapse` loads from outside the standard library and lapse."""
    code = (
        "import sys; before = set(sys.modules); import lapse; "
        "names = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(len(names - set(sys.stdlib_module_names) - {'lapse'}))"
    )
    series = [Series("lapse", [float(fresh_process(code))])]
    return Table(IMPORTS, "foreign imports", "modules", series, baseline=None)
