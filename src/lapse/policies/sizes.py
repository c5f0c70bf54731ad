"""How large a cache is to be: a number of entries, or percent of a trace's distinct keys."""

from __future__ import annotations

__all__ = ["Size", "parse_sizes"]

import re
from dataclasses import dataclass

_FORM = re.compile(r"(?P<entries>\d+)|(?P<percent>\d+(\.\d+)?)%", re.ASCII)


@dataclass(frozen=True, slots=True)
class Size:
    """A bound on a cache: entries or, where `is_percent`, percent of the distinct keys."""

    amount: float
    is_percent: bool = False

    def entries(self, distinct: int) -> int:
        """The bound in entries: at least one, and no more than there are keys."""
        amount = distinct * self.amount / 100 if self.is_percent else self.amount
        return min(max(1, round(amount)), distinct)


def parse_sizes(text: str) -> list[Size]:
    """The sizes in a list such as `1000,10%`.

    Raises:
        ValueError: One of them is neither a number of entries, 1 or more, nor a percentage above 0
            and up to 100.
    """
    return [_parse(part.strip()) for part in text.split(",")]


def _parse(text: str) -> Size:
    found = _FORM.fullmatch(text)
    if found and found["entries"] and int(found["entries"]) >= 1:
        return Size(int(found["entries"]))
    if found and found["percent"] and 0 < float(found["percent"]) <= 100:
        return Size(float(found["percent"]), is_percent=True)
    raise ValueError(f"a size is a number of entries, or a percentage such as 10%, not {text!r}")
