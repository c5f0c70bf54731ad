"""For administrators: one entry, the entries of a pattern, or all of them; and statistics.

    DELETE /admin/cache/invalidate/<key>         scope key       {"status": "success" | "error"}
    POST   /admin/cache/invalidate-pattern       scope pattern   {"status": "success", "count": 3}
               {"pattern": ...}, with {"dry_run": true} only counted
    DELETE /admin/cache/clear                    scope clear     {"status": "success"}
    GET    /admin/cache/stats                    scope read      the cache's get_stats()

`<key>` is all that follows, decoded: "a/b" and "a%2Fb" are one key, "%2Fa" begins with a slash.
With "?type=int" it is a number. The status "error" says that there was no such entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lapse.web.app import HTTPInvalidation, token_guard
from lapse.web.bodies import invalidations_of, read_object
from lapse.web.guards import Caller
from lapse.web.refusal import Refused
from lapse.web.tokens import Scope, scope_of

if TYPE_CHECKING:
    from werkzeug.wrappers import Request

__all__ = ["AdministrativeInvalidation"]

_INT = re.compile(r"-?[0-9]{1,32}", re.ASCII)


class AdministrativeInvalidation(HTTPInvalidation):
    """Lets administrators look and remove.

    Args:
        cache: a cache of lapse, or any object with `delete(key)`, `delete_pattern(pattern)`,
            `clear()` and `get_stats()`; a dry run needs `get_keys_matching_pattern(pattern)` too.
        tokens: the scope of each bearer token, which is given as it is or as `hash_token()` makes
            it: "read", "key", "pattern" or "clear". A pattern such as "*" needs "clear". None: only
            this machine is served, and may do everything.
        name: shown in statistics, logs and the threads' names; no dots.

    Raises ValueError for a bad token, an unknown scope, or no token in `tokens`.
    """

    default_name = "admin"

    def __init__(
        self, cache: Any, *, tokens: Mapping[str, Scope] | None = None, name: str | None = None
    ) -> None:
        super().__init__(cache, token_guard(tokens), name=name)

    def setup_routes(self) -> None:
        invalidate = "/admin/cache/invalidate"
        self._route("DELETE", f"{invalidate}/<lapse_any_path:key>", self._invalidate_key)
        self._route("POST", f"{invalidate}-pattern", self._invalidate_pattern)
        self._route("DELETE", "/admin/cache/clear", self._clear_all)
        self._route("GET", "/admin/cache/stats", self._get_stats)

    def _invalidate_key(self, request: Request, caller: Caller, key: str) -> dict[str, Any]:
        caller.need("key")
        message = {"type": "key", "key": _typed(request, key)}
        (done,) = self._apply(caller, invalidations_of(message, ["key"]))
        return {"status": "success" if done.removed else "error"}

    def _invalidate_pattern(self, request: Request, caller: Caller) -> dict[str, Any]:
        body = read_object(request)
        dry_run = body.get("dry_run", False)
        if not body.get("pattern"):
            raise Refused(400, "malformed", "Pattern required")
        if not isinstance(dry_run, bool) or not body.keys() <= {"pattern", "dry_run"}:
            raise Refused(400, "malformed", "There may be a pattern, and a dry_run: true or false")
        message = {"type": "pattern", "pattern": body["pattern"]}
        invalidations = invalidations_of(message, ["pattern"])
        caller.need(scope_of(invalidations[0]))
        if dry_run:
            count = len(self.cache.get_keys_matching_pattern(body["pattern"]))
        else:
            count = self._apply(caller, invalidations)[0].removed
        return {"status": "success", "count": count}

    def _clear_all(self, request: Request, caller: Caller) -> dict[str, Any]:
        caller.need("clear")
        self._apply(caller, invalidations_of({"type": "clear_all"}, ["clear_all"]))
        return {"status": "success"}

    def _get_stats(self, request: Request, caller: Caller) -> dict[str, Any]:
        caller.need("read")
        figures: dict[str, Any] = self.cache.get_stats()
        return figures


def _typed(request: Request, key: str) -> str | int:
    """The key that a path and a query mean."""
    try:  # strictly, where Flask puts a mark for bytes that are no text
        request.environ["PATH_INFO"].encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise Refused(400, "malformed", "The key is not in UTF-8") from None
    kind = request.args.get("type", "str")
    if kind == "int" and _INT.fullmatch(key):
        return int(key)
    if kind != "str":
        raise Refused(400, "malformed", "The type of a key is str, or int for a whole number")
    return key
