"""What the HTTP interfaces share: a Flask app and blueprint, admission, answers, counts.

    request ──► guard ──► view ──► queue.apply() ──► the cache
                  │         │            │
                  └─────────┴────────────┴──► an answer in JSON, counted, and in the audit log

Invariants
    1. A request is admitted before anything of it is acted on.
    2. Whatever a request holds and whatever the cache raises, the answer is JSON and its status is
       none of the 500s but 503. What was raised goes to the log, never to the client.
    3. Nothing but the queue removes from the cache. A 2xx says that it has, or will.
    4. Other sites' pages get nothing: no CORS, and bodies must say that they are JSON, which a page
       may not send elsewhere without asking.

All of Flask that lapse uses is imported here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from lapse.invalidation.message import Invalidation
from lapse.invalidation.process import watch
from lapse.invalidation.queue import Applied, OptimizedInvalidation
from lapse.web import audit
from lapse.web.guards import Bearer, Caller, Guard, Loopback
from lapse.web.refusal import Refused
from lapse.web.serving import Server, check_address
from lapse.web.stats import Tally, WebStats
from lapse.web.tokens import Scope, Tokens

try:
    from flask import Blueprint, Flask, Request, Response, request
    from werkzeug.exceptions import HTTPException
    from werkzeug.routing import BaseConverter
except ModuleNotFoundError as error:
    raise ImportError("lapse.web needs Flask: pip install 'lapse[web]'") from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = ["HTTPInvalidation", "token_guard"]

log = logging.getLogger("lapse.web")
MOST_BODY_BYTES = 1 << 16

PUSH: dict[str, Callable[[OptimizedInvalidation, Any], None]] = {
    "key": OptimizedInvalidation.invalidate_key,
    "pattern": OptimizedInvalidation.invalidate_pattern,
    "table": OptimizedInvalidation.invalidate_table,
    "tag": OptimizedInvalidation.invalidate_tag,
    "all": lambda queue, _: queue.invalidate_all(),
}

View = Callable[..., dict[str, Any]]


class _AnyPath(BaseConverter):
    """The rest of a path, whatever it is: slashes, line ends, nothing at all."""

    regex = r"[\s\S]*"
    part_isolating = False


class HTTPInvalidation:
    """A cache's invalidation over HTTP; the interfaces derive from it and add their routes.

    `app` is a Flask app of its own; `blueprint` can be registered in another one instead. Safe from
    any thread.
    """

    #: The name where none is given.
    default_name = "web"

    def __init__(
        self,
        cache: Any,
        guard: Guard,
        *,
        name: str | None = None,
        window: float = 0.0,
        capacity: int = 65_536,
    ) -> None:
        if not window >= 0:
            raise ValueError(f"window must not be negative, but is {window!r}")
        self.cache = cache
        self.name = name or self.default_name
        #: Applies what requests ask for.
        self.queue = OptimizedInvalidation(
            cache, batch_timeout=window or 1.0, capacity=capacity, start=window > 0, name=self.name
        )
        self._guard = guard
        self._tally = Tally()
        self._servers: list[Server]
        self._closed = False
        self._renew_in_child()
        watch(self)
        self._endpoints: set[str] = set()
        self.blueprint = Blueprint(f"lapse-{self.name}", __name__)
        self.blueprint.record(_add_converter)
        self.app = Flask(__name__, static_folder=None)
        self.app.url_map.merge_slashes = False
        self.app.register_error_handler(HTTPException, self._unrouted)
        self.setup_routes()
        self.app.register_blueprint(self.blueprint)

    # --- Routes ---

    def setup_routes(self) -> None:
        """Add the routes; called once by the constructor, after which it does nothing."""
        raise NotImplementedError

    def _route(self, method: str, rule: str, view: View) -> None:
        """Let `view(request, caller, **parts of the path)` answer: with a dict, or Refused."""

        def handle(**parts: Any) -> Response:
            return self._handle(request._get_current_object(), view, parts)  # type: ignore[attr-defined]

        endpoint = view.__name__.strip("_")
        if endpoint not in self._endpoints:
            self._endpoints.add(endpoint)
            self.blueprint.add_url_rule(
                rule, endpoint, handle, methods=[method], provide_automatic_options=False
            )

    def _handle(self, request: Request, view: View, parts: Mapping[str, Any]) -> Response:
        """Answer a request to one of the routes."""
        request.max_content_length = MOST_BODY_BYTES
        try:
            caller = self._guard.admit(request)
            response = self._response(200, view(request, caller, **parts), {})
        except Refused as refused:
            return self._refuse(refused)
        except HTTPException as error:
            return self._unrouted(error)
        except Exception:
            log.exception("%s: a request failed", self.name)
            return self._refuse(Refused(503, "failed", "The request failed"))
        self._tally.answered(200)
        return response

    def _unrouted(self, error: HTTPException) -> Response:
        """The answer where Flask refuses a request: there is no such route, the body is too big."""
        status = error.code or 503
        allow = getattr(error, "valid_methods", None)
        headers = {"Allow": ", ".join(allow)} if allow else {}
        if not 400 <= status < 500:
            return self._refuse(Refused(503, "failed", "The request failed"))
        return self._refuse(
            Refused(status, _REASONS.get(status, "malformed"), error.name, **headers)
        )

    def _refuse(self, refused: Refused) -> Response:
        self._tally.answered(refused.status, refused.reason)
        body = {"status": "error", "message": refused.message}
        return self._response(refused.status, body, refused.headers)

    def _response(self, status: int, body: Any, headers: Mapping[str, str]) -> Response:
        """An answer in JSON, for the caller alone, and of this moment."""
        text = self.app.json.dumps(body)
        return Response(text, status, {**_HEADERS, **headers}, content_type="application/json")

    # --- For views ---

    def _apply(self, caller: Caller, invalidations: Iterable[Invalidation]) -> list[Applied]:
        """Apply them now. Refuses with 503 if that is not possible, or one of them fails."""
        with self._unless_closed():
            outcome = self.queue.apply(invalidations)
        done = [each for each in outcome if each.error is None]
        self._tally.applied(len(done), sum(each.removed for each in done))
        audit.record(caller, ((each.invalidation, each.removed) for each in done))
        if len(done) < len(outcome):
            raise Refused(503, "failed", "The cache has failed", Retry_After="1")
        return outcome

    def _queue(self, caller: Caller, invalidations: Sequence[Invalidation]) -> None:
        """Queue them. Refuses with 503 if that is not possible, or there is no room for all."""
        if self.queue.stats().depth + len(invalidations) > self.queue.capacity:
            raise Refused(503, "full", "Too many invalidations are waiting", Retry_After="1")
        with self._unless_closed():
            for each in invalidations:
                PUSH[each.kind](self.queue, each.target)
        self._tally.applied(len(invalidations), 0)
        audit.record(caller, ((each, None) for each in invalidations))

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            if not self.queue.closed:
                raise
            raise Refused(503, "closed", "The interface is closed", Retry_After="1") from None

    # --- Serving ---

    def run(self, host: str = "127.0.0.1", port: int = 5000, *, threads: int = 2) -> None:
        """Serve until close(), or an interrupt, by waitress.

        Args:
            host: an address of this machine, or "localhost". One that others can reach is refused
                unless tokens or secrets are configured.
            port: 0 = any that is free.
            threads: requests that are handled at a time.

        Raises ValueError for such an address, OSError if it is not to be had, ImportError without
        waitress, RuntimeError once closed.
        """
        server = self._server(host, port, threads)
        log.info("%s: serving http://%s:%d", self.name, *server.address)
        with suppress(KeyboardInterrupt):
            server.run()

    def serve(
        self, host: str = "127.0.0.1", port: int = 5000, *, threads: int = 2
    ) -> tuple[str, int]:
        """run() in a thread of its own; the address and the port that it listens at."""
        server = self._server(host, port, threads)
        name = f"lapse-{self.name}-{server.address[1]}"
        threading.Thread(target=server.run, name=name, daemon=True).start()
        return server.address

    def _server(self, host: str, port: int, threads: int) -> Server:
        check_address(host, self._guard.remote)
        with self._short:
            self._check_open()
            server = Server(self.app, host, port, threads)
            self._servers.append(server)
            if self._closed:  # a signal handler has, meanwhile: run() ends at once
                server.close(0)
        return server

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def close(self) -> None:
        """Stop serving, and apply what is queued; requests are refused from now on. Idempotent."""
        with self._short:
            self._closed = True
            servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        self.queue.close()

    def _renew_in_child(self) -> None:
        """In a forked child, and at the beginning: nothing is served, and nobody holds the lock."""
        self._servers = []
        self._short = threading.RLock()  # a signal handler may close in the middle of it

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{type(self).__name__} is closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- Figures ---

    def stats(self) -> WebStats:
        """Requests and what became of them, at one instant. O(1)."""
        return self._tally.stats()

    def get_stats(self) -> dict[str, Any]:
        """The same as a JSON-ready dict, with the name and the class, and the queue's figures."""
        figures = self.stats()._asdict() | {"name": self.name, "class": type(self).__name__}
        figures["statuses"] = {str(status): n for status, n in figures["statuses"].items()}
        return figures | {"queue": self.queue.get_stats()}

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"requests={self.stats().requests}"
        return f"{type(self).__name__}({self.name!r}, {state})"


def token_guard(tokens: Mapping[str, Scope] | None) -> Guard:
    """The guard for tokens, as the interfaces take them."""
    return Loopback() if tokens is None else Bearer(Tokens(tokens))


def _add_converter(state: Any) -> None:
    """Called when the blueprint is registered in an app."""
    state.app.url_map.converters["lapse_any_path"] = _AnyPath


_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_REASONS = {404: "not_found", 405: "method", 413: "too_large", 415: "not_json"}
