"""The bound of a cache: which options go together.

`maxsize` counts entries; with a `weigher` it bounds what they weigh together. The table keeps the
bound (csrc/order.h), and the policy says who makes way (csrc/evict.c).
"""

from __future__ import annotations

from typing import Any

__all__ = ["POLICIES", "check_bounds", "check_maxsize"]

POLICIES = ("duel", "lru")


def check_maxsize(maxsize: object) -> None:
    """TypeError or ValueError for what is no number of entries, and no weight."""
    if isinstance(maxsize, bool) or not isinstance(maxsize, int):
        raise TypeError(f"maxsize must be an int or None, not {maxsize!r}")
    if not 0 <= maxsize < 2**63:
        raise ValueError(f"maxsize must be from 0 to 2**63 - 1, not {maxsize!r}")


def check_bounds(options: dict[str, Any]) -> None:
    """TypeError or ValueError for a bound that cannot be kept."""
    maxsize, policy, weigher = options["maxsize"], options["policy"], options["weigher"]
    if maxsize is not None:
        check_maxsize(maxsize)
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"policy must be None, 'duel' or 'lru', not {policy!r}")
    if weigher is not None and not callable(weigher):
        raise TypeError(f"weigher must be callable, not {weigher!r}")
    if weigher is not None and maxsize is None:
        raise ValueError("a weigher needs maxsize=, the weight that all entries may have together")
