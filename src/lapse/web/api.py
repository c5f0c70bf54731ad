"""An API for programs: one route, and the type of the message says what is to go.

    POST /api/cache/invalidate
        {"type": "key", "key": ...}            scope key        {"status": "success" | "error"}
        {"type": "pattern", "pattern": ...}    scope pattern    {"status": "success", "count": 3}
        {"type": "table", "table": ...}        scope pattern    {"status": "success", "count": 3}
        {"type": "tag", "tag": ...}            scope pattern    {"status": "success", "count": 3}
        {"type": "all"}                        scope clear      {"status": "success"}

The status "error" says that there was no such entry. Keys are text, numbers, true, false, null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lapse.web.app import HTTPInvalidation, token_guard
from lapse.web.bodies import invalidations_of, read_object
from lapse.web.guards import Caller
from lapse.web.tokens import Scope, scope_of

if TYPE_CHECKING:
    from werkzeug.wrappers import Request

__all__ = ["APIInvalidation"]

TYPES = frozenset(["key", "pattern", "table", "tag", "all"])


class APIInvalidation(HTTPInvalidation):
    """Lets programs remove.

    Args:
        cache: a cache of lapse, or any object with `delete(key)` and `delete_pattern(pattern)`, and
            `delete_tag(tag)` and `clear()` where those are used.
        tokens: the scope of each bearer token, which is given as it is or as `hash_token()` makes
            it: "key", "pattern" or "clear". A pattern such as "*" needs "clear". None: only this
            machine is served, and may do everything.
        name: shown in statistics, logs and the threads' names; no dots.

    Raises ValueError for a bad token, an unknown scope, or no token in `tokens`.
    """

    default_name = "api"

    def __init__(
        self, cache: Any, *, tokens: Mapping[str, Scope] | None = None, name: str | None = None
    ) -> None:
        super().__init__(cache, token_guard(tokens), name=name)

    def setup_routes(self) -> None:
        self._route("POST", "/api/cache/invalidate", self._invalidate)

    def _invalidate(self, request: Request, caller: Caller) -> dict[str, Any]:
        (invalidation,) = invalidations_of(read_object(request), TYPES)
        caller.need(scope_of(invalidation))
        (done,) = self._apply(caller, [invalidation])
        if invalidation.kind == "key":
            return {"status": "success" if done.removed else "error"}
        if invalidation.kind == "all":
            return {"status": "success"}
        return {"status": "success", "count": done.removed}
