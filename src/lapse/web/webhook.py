"""Webhooks: other services say in signed messages what has changed.

    POST /webhook/invalidate
        {"type": "invalidate_key", "key": ...}  {"type": "invalidate_pattern", "pattern": ...}
        {"type": "invalidate_table", "table": ...}  {"type": "invalidate_tag", "tag": ...}
        {"type": "clear_all"}  {"type": "batch", "items": [any of these, ...]}

    200 {"status": "success"}                      it is in force, or queued
    4xx {"status": "error", "message": ...}        it will never be accepted
    503 {"status": "error", "message": ...}        not now: send it again

Invariants
    1. An id is remembered once its message is known to be signed and well formed, by the one of
       several equal requests that comes first.
    2. It is forgotten again if the answer is not 2xx, so that the sender's next attempt counts.
       Until the answer is known, another attempt is told to come again: it is not called a replay
       of what may yet fail.
    3. It is kept at least until the signature is too old to be accepted. None is given up before:
       where there is no room for another, the message is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lapse.caches import TTLCache
from lapse.web.app import HTTPInvalidation
from lapse.web.bodies import invalidations_of, read_object
from lapse.web.guards import Caller, Guard, Loopback, Signed
from lapse.web.refusal import Refused
from lapse.web.signatures import Signatures

if TYPE_CHECKING:
    from werkzeug.wrappers import Request

__all__ = ["WebhookInvalidation"]

TYPES = frozenset(
    ["invalidate_key", "invalidate_pattern", "invalidate_table", "invalidate_tag", "clear_all",
     "batch"]
)  # fmt: skip
MARGIN = 60.0  # seconds that ids are kept for longer, lest the wall clock is set back a little


class WebhookInvalidation(HTTPInvalidation):
    """Invalidates what signed webhooks name.

    Args:
        cache: a cache of lapse, or any object with `delete(key)` and `delete_pattern(pattern)`.
        secrets: what senders sign with, by the Standard Webhooks scheme: "whsec_" and base64, or
            bytes; any of them is good, so that they can be rotated. None: only this machine is
            served, and nothing need be signed.
        tolerance: seconds that a timestamp may differ from the clock. Each message is accepted
            once; the memory of that is this process's.
        window: seconds that an invalidation may wait for others, to be applied in a batch; the
            answer says then that it is queued. 0 = applied before the answer.
        capacity: invalidations that may wait, if there is a window; one more is answered 503.
        remembered: ids that are remembered at most; one more is answered 503.
        clock: a callable that returns Unix seconds; None = the machine's.
        name: shown in statistics, logs and the threads' names; no dots.

    Raises ValueError for a bad secret or number.
    """

    default_name = "webhook"

    def __init__(
        self,
        cache: Any,
        *,
        secrets: Iterable[str | bytes] | str | bytes = (),
        tolerance: float = 300.0,
        window: float = 0.0,
        capacity: int = 65_536,
        remembered: int = 1_000_000,
        clock: Callable[[], float] | None = None,
        name: str | None = None,
    ) -> None:
        secrets = [secrets] if isinstance(secrets, (str, bytes)) else list(secrets)
        guard: Guard = Loopback()
        self._seen: _Seen | None = None
        if secrets:
            guard = Signed(Signatures(secrets, tolerance=tolerance, clock=clock or time.time))
            self._seen = _Seen(2 * tolerance + MARGIN, remembered, clock)
        self._queues = window > 0
        super().__init__(cache, guard, name=name, window=window, capacity=capacity)

    def setup_routes(self) -> None:
        self._route("POST", "/webhook/invalidate", self._invalidate)

    def _invalidate(self, request: Request, caller: Caller) -> dict[str, Any]:
        invalidations = invalidations_of(read_object(request), TYPES)
        take = self._queue if self._queues else self._apply
        if self._seen is None:
            take(caller, invalidations)
        else:
            with self._seen.once(request.headers["webhook-id"]):
                take(caller, invalidations)
        return {"status": "success"}


class _Seen:
    """The ids of messages, for `keep` seconds each; `most` of them. Their value: accepted yet?"""

    def __init__(self, keep: float, most: int, clock: Callable[[], float] | None) -> None:
        self._ids: TTLCache[str, bool] = TTLCache(keep, cleanup_interval=60, clock=clock)
        self._most = most

    @contextmanager
    def once(self, id: str) -> Iterator[None]:
        """Refuse an id that was here before; forget this one if what follows raises."""
        if not self._ids.add(id, False):
            if not self._ids.get(id):
                raise Refused(503, "busy", "The message is being applied", Retry_After="1")
            raise Refused(409, "replayed", "The message has been accepted before")
        try:
            if len(self._ids) > self._most:
                raise Refused(503, "full", "Too many messages in a short time", Retry_After="60")
            yield
        except BaseException:
            self._ids.delete(id)
            raise
        self._ids[id] = True
