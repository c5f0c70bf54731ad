"""The audit log: a line for each invalidation that came over HTTP, to the logger `lapse.audit`.

    {"who": "token 5e884898da28", "address": "10.0.0.7", "what": "pattern", "target": "'users:*'",
     "removed": 12}

One line of ASCII JSON at level INFO. The target is a repr within JSON, so nothing that a client
sends ends the line or begins another.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from lapse.invalidation.message import Invalidation
from lapse.web.guards import Caller

__all__ = ["record"]

log = logging.getLogger("lapse.audit")
MOST_CHARS = 200  # of a target's repr


def record(caller: Caller, done: Iterable[tuple[Invalidation, int | None]]) -> None:
    """Write down invalidations, and what each removed; None: it is only queued yet."""
    if not log.isEnabledFor(logging.INFO):
        return
    for invalidation, removed in done:
        line = {"who": caller.name, "address": caller.address, "what": invalidation.kind}
        if invalidation.kind != "all":
            line["target"] = f"{invalidation.target!r:.{MOST_CHARS}}"
        log.info("%s", json.dumps(line | {"removed": removed}))
