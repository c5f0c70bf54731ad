"""Rows of the HTTP interfaces: every route, by Flask's own client and by a server."""

from __future__ import annotations

import http.client
import threading
from typing import Any

from conformance import Recorder, has_defaults, ours, row
from servers.ports import free_port
from support import PATIENCE, wait_until

# --- HTTP ---


def http_interface(name: str) -> None:
    """The rows that the HTTP classes share."""

    @row(name, "(cache), app, setup_routes()")
    def app() -> None:
        has_defaults(ours(name), "cache")
        with ours(name)(Recorder()) as it:
            it.setup_routes()
            assert it.app.test_client().get("/nowhere").status_code == 404

    @row(name, "run(host, port)")
    def run() -> None:
        port = free_port()
        with ours(name)(Recorder()) as it:
            thread = threading.Thread(target=it.run, args=("127.0.0.1", port))
            thread.start()
            assert wait_until(lambda: answers(port))
        thread.join(PATIENCE)
        assert not thread.is_alive()


def answers(port: int) -> bool:
    """Is there a server?"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/nowhere")
        return connection.getresponse().status == 404
    except OSError:
        return False
    finally:
        connection.close()


def route(
    name: str, method: str, path: str, body: Any, answer: Any, asked: str | None = None
) -> None:
    """A row for one request: what comes back, and what the cache is asked."""

    @row(name, f"{method} {path}" + (f" {body}" if body is not None else ""))
    def is_answered() -> None:
        with ours(name)(Recorder(**{"users:1": 1})) as it:
            got = it.app.test_client().open(path, method=method, json=body).get_json()
            assert {key: got[key] for key in answer} == answer
            assert it.cache.asked == (set() if asked is None else {asked})


SUCCESS, ERROR = {"status": "success"}, {"status": "error"}
THREE = {"status": "success", "count": 3}
WEBHOOK, ADMIN, API = "WebhookInvalidation", "AdministrativeInvalidation", "APIInvalidation"
MATCHES = "pattern a:*"

HOOK = "/webhook/invalidate"
http_interface(WEBHOOK)
route(WEBHOOK, "POST", HOOK, {"type": "invalidate_key", "key": "k"}, SUCCESS, "k")
route(WEBHOOK, "POST", HOOK, {"type": "invalidate_pattern", "pattern": "a:*"}, SUCCESS, MATCHES)
route(WEBHOOK, "POST", HOOK, {"type": "invalidate_table", "table": "a"}, SUCCESS, MATCHES)
route(WEBHOOK, "POST", HOOK, {"type": "unknown"}, ERROR)

BY_PATTERN = "/admin/cache/invalidate-pattern"
REQUIRED = {"status": "error", "message": "Pattern required"}
http_interface(ADMIN)
route(ADMIN, "DELETE", "/admin/cache/invalidate/users:1", None, SUCCESS, "users:1")
route(ADMIN, "DELETE", "/admin/cache/invalidate/absent", None, ERROR, "absent")
route(ADMIN, "POST", BY_PATTERN, {"pattern": "a:*"}, THREE, MATCHES)
route(ADMIN, "POST", BY_PATTERN, {}, REQUIRED)
route(ADMIN, "DELETE", "/admin/cache/clear", None, SUCCESS, "everything")
route(ADMIN, "GET", "/admin/cache/stats", None, {"hits": 7})

PATH = "/api/cache/invalidate"
http_interface(API)
route(API, "POST", PATH, {"type": "key", "key": "users:1"}, SUCCESS, "users:1")
route(API, "POST", PATH, {"type": "key", "key": "absent"}, ERROR, "absent")
route(API, "POST", PATH, {"type": "pattern", "pattern": "a:*"}, THREE, MATCHES)
route(API, "POST", PATH, {"type": "table", "table": "a"}, THREE, MATCHES)
route(API, "POST", PATH, {"type": "unknown"}, ERROR)
