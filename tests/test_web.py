"""What the HTTP interfaces share: serving, apps, closing, imports."""

from __future__ import annotations

import doctest
import http.client
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flask", reason="the extra `web` is not installed")
pytest.importorskip("waitress", reason="the extra `web` is not installed")

import flask

import lapse
from lapse.web import serving
from lapse.web.admin import AdministrativeInvalidation
from lapse.web.api import APIInvalidation
from lapse.web.webhook import WebhookInvalidation
from support import PATIENCE, SOON, in_child_of_another_thread, run_python, wait_until
from web_support import SECRET, ask, raw, served

URL = "/api/cache/invalidate"
MESSAGE = {"type": "key", "key": "a"}
INTERFACES = [WebhookInvalidation, AdministrativeInvalidation, APIInvalidation]


@pytest.fixture
def cache() -> Any:
    return lapse.TTLCache(60, cleanup_interval=None)


@pytest.fixture(params=INTERFACES, ids=lambda each: each.__name__)
def interface(request, cache):
    with request.param(cache) as interface:
        yield interface


def guarded(cache: Any) -> list[Any]:
    """Each interface with tokens or secrets."""
    tokens = {"t" * 20: "clear"}
    return [
        WebhookInvalidation(cache, secrets=[SECRET]),
        AdministrativeInvalidation(cache, tokens=tokens),
        APIInvalidation(cache, tokens=tokens),
    ]


# --- Serving ---


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "", "127.0.0.1.nip.io"]
)
def test_addresses_that_others_reach(interface, host):
    """Without tokens or secrets only this machine's own addresses are served."""
    for serve in (interface.run, interface.serve):
        with pytest.raises(ValueError, match="no secrets or tokens are configured"):
            serve(host, 0)


def test_addresses_of_this_machine(cache, interface):
    """The loopback addresses, in IPv6 too, and localhost are served."""
    hosts = ["127.0.0.1", "localhost"]
    if socket.has_ipv6:
        hosts += ["::1", "[::1]"]
    for host in hosts:
        try:
            address = interface.serve(host, 0)
        except OSError:
            assert ":" in host  # a machine without IPv6
            continue
        assert ask(address, "GET", "/nowhere").status == 404


def test_guarded_addresses(cache):
    """With tokens or secrets any address may be served."""
    for interface in guarded(cache):
        with interface:
            address = interface.serve("0.0.0.0", 0)
            assert ask(("127.0.0.1", address[1]), "GET", "/nowhere").status == 404


def test_run_blocks_until_closed(interface, monkeypatch):
    """run() serves until another thread closes the interface, which takes no time."""
    monkeypatch.setattr(serving, "LOOK_ROUND", 1000)  # it is woken up, and does not just look round
    thread = threading.Thread(target=interface.run, kwargs={"port": 0})
    thread.start()
    assert wait_until(lambda: interface._servers)
    address = interface._servers[0].address
    idle = socket.create_connection(address)
    assert ask(address, "GET", "/nowhere").status == 404
    before = time.monotonic()
    interface.close()
    assert time.monotonic() - before < SOON
    thread.join(PATIENCE)
    assert not thread.is_alive()
    idle.close()
    with pytest.raises(OSError, match=r"refused|reset"):
        ask(address, "GET", "/nowhere")
    with pytest.raises(RuntimeError, match="closed"):
        interface.run(port=0)
    interface.close()


def test_an_interrupt_ends_run():
    """An interrupt ends run() quietly; then the interface can be closed."""
    done = run_python(
        "import _thread, lapse, socket, time\n"
        "from lapse.web.api import APIInvalidation\n"
        "import threading\n"
        "api = APIInvalidation(lapse.TTLCache(60))\n"
        "def interrupt():\n"
        "    while not api._servers:\n"
        "        time.sleep(0.001)\n"
        "    with socket.create_connection(api._servers[0].address) as connection:\n"
        "        connection.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
        "        connection.recv(1)  # it serves\n"
        "    _thread.interrupt_main()\n"
        "threading.Thread(target=interrupt).start()\n"
        "api.run(port=0)\n"
        "api.close()\n"
        "print('ended')\n"
    )
    assert (done.stdout, done.stderr) == ("ended\n", "")


def test_the_thread_has_a_name(interface):
    """serve() runs in a daemon thread whose name says whose it is."""
    port = interface.serve(port=0)[1]
    (thread,) = [t for t in threading.enumerate() if t.name == f"lapse-{interface.name}-{port}"]
    assert thread.daemon


def test_ports_that_are_taken(cache):
    """A port that is taken is an OSError, at once."""
    with served(APIInvalidation(cache)) as address, pytest.raises(OSError, match="in use"):
        APIInvalidation(cache).run(port=address[1])


# --- Apps ---


def test_mounting(cache):
    """The blueprints of all three can be registered in another app, under a prefix, and guarded."""
    app = flask.Flask("other")
    app.config["MAX_CONTENT_LENGTH"] = 10
    for interface in guarded(cache):
        app.register_blueprint(interface.blueprint, url_prefix="/cache")
    client = app.test_client()
    headers = {"Authorization": "Bearer " + "t" * 20}
    cache["a//b"] = cache["a"] = 1
    path = "/cache/admin/cache/invalidate/a%2F%2Fb"
    assert client.delete(path).status_code == 401
    assert client.delete(path, headers=headers).get_json() == {"status": "success"}
    answer = client.post("/cache" + URL, json=MESSAGE, headers=headers)
    assert answer.get_json() == {"status": "success"}
    assert client.post("/cache/webhook/invalidate", json=MESSAGE).status_code == 401
    assert len(cache) == 0


def test_setup_routes_again(interface):
    """setup_routes() is there, as in the reference, and does no harm when called again."""
    rules = len(list(interface.app.url_map.iter_rules()))
    interface.setup_routes()
    assert len(list(interface.app.url_map.iter_rules())) == rules


def test_own_routes(cache):
    """A subclass adds routes of its own to the app, as with the reference."""

    class Mine(APIInvalidation):
        def setup_routes(self) -> None:
            super().setup_routes()
            self.app.add_url_rule("/hello", view_func=lambda: "hello")
            self.app.add_url_rule("/bad", endpoint="bad", view_func=lambda: 1 / 0)

    client = Mine(cache).app.test_client()
    assert client.get("/hello").data == b"hello"
    answer = client.get("/bad")
    assert (answer.status_code, answer.get_json()["status"]) == (503, "error")
    assert client.post(URL, json=MESSAGE).status_code == 200


def test_an_unexpected_exception(cache, caplog):
    """What a handler raises is logged and answered 503, without a word of it, and counted."""
    api = APIInvalidation(cache)

    def apply(batch: Any) -> None:
        raise ZeroDivisionError("hunter2")

    api.queue = type("Queue", (), {"apply": staticmethod(apply), "closed": False})
    answer = api.app.test_client().post(URL, json=MESSAGE)
    assert (answer.status_code, answer.get_json()["status"]) == (503, "error")
    assert b"hunter2" not in answer.data
    assert "hunter2" in caplog.text
    assert api.stats().refused == {"failed": 1}
    app = flask.Flask("other")
    app.testing = True  # lets exceptions through to the tests
    app.register_blueprint(api.blueprint)
    assert app.test_client().post(URL, json=MESSAGE).status_code == 503


def test_large_requests(cache):
    """Waitress refuses what is far too large before it has read it, in headers and body."""
    with served(APIInvalidation(cache)) as address:
        head = b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % URL.encode()
        kind = b"Content-Type: application/json\r\n"
        assert b" 413 " in raw(address, head + kind + b"Content-Length: 99999999\r\n\r\nx")
        answer = raw(address, head + b"X: " + b"x" * 70_000 + b"\r\n\r\n")
        assert b" 431 " in answer or not answer  # cut off before the answer was read
        chunked = head + kind + b"Transfer-Encoding: chunked\r\n\r\n"
        chunk = b"11170\r\n" + b" " * 70_000 + b"\r\n"
        answer = raw(address, chunked + chunk + b"0\r\n\r\n")
        assert b" 413 " in answer
        assert b'"status": "error"' in answer
        body = b"1e\r\n" + json.dumps(MESSAGE).encode().ljust(30) + b"\r\n0\r\n\r\n"
        assert b'"status": "error"}' in raw(address, chunked + body)  # no such entry
        assert ask(address, "POST", URL, MESSAGE).status == 200


def test_persistent_connections(cache):
    """Many requests go over one connection, refused ones and some with unread bodies among them."""
    with served(APIInvalidation(cache)) as address:
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
        for status, path, kind in [
            (200, URL, "application/json"),
            (415, URL, "text/plain"),
            (404, "/nowhere", "application/json"),
            (200, URL, "application/json"),
        ]:
            connection.request("POST", path, json.dumps(MESSAGE), {"Content-Type": kind})
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())["status"]) == (status, "error")
        connection.close()


# --- Life ---


def test_closed(interface):
    """A closed interface cannot be entered or served, answers 503, and says so."""
    interface.close()
    interface.close()
    assert interface.closed
    with pytest.raises(RuntimeError, match="closed"):
        interface.__enter__()
    with pytest.raises(RuntimeError, match="closed"):
        interface.serve(port=0)
    assert repr(interface) == f"{type(interface).__name__}('{interface.default_name}', closed)"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_serves_by_itself(interface):
    """It serves nothing that it inherits, waits for no lock of its parent's, and may serve anew."""
    address = interface.serve(port=0)

    def work() -> None:
        assert ask(interface.serve(port=0), "GET", "/nowhere").status == 404
        interface.close()

    with interface._short:
        assert in_child_of_another_thread(work) == 0
    assert ask(address, "GET", "/nowhere").status == 404


def test_names(cache):
    """A name is in the figures, and in another app's endpoints, where two may be told apart."""
    app = flask.Flask("other")
    for name in ("first", "second"):
        api = APIInvalidation(cache, name=name)
        assert api.get_stats()["name"] == name
        app.register_blueprint(api.blueprint, url_prefix=f"/{name}")
    assert app.test_client().post("/second" + URL, json=MESSAGE).status_code == 200


def test_windows_that_are_refused(cache):
    """A window is no negative number of seconds."""
    for window in (-1, float("nan")):
        with pytest.raises(ValueError, match="window"):
            WebhookInvalidation(cache, window=window)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_answers():
    """A child that is forked while requests are being counted answers its own."""
    done = run_python(
        "import os, threading, lapse\n"
        "from lapse.web import stats\n"
        "from lapse.web.api import APIInvalidation\n"
        "api = APIInvalidation(lapse.TTLCache(60))\n"
        "held, go = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with stats._lock:\n"
        "        held.set(); go.wait()\n"
        "threading.Thread(target=hold).start()\n"
        "held.wait()\n"
        "if not os.fork():\n"
        f"    os._exit(api.app.test_client().post({URL!r}, json={MESSAGE!r}).status_code - 200)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "go.set()\n"
    )
    assert done.stdout == "0\n", done.stderr


def test_the_guide():
    """Every example of docs/http.md runs as it stands."""
    guide = Path(__file__).parents[1] / "docs" / "http.md"
    if not guide.exists():
        pytest.skip("the project is not around these tests")
    failed, tried = doctest.testfile(str(guide), module_relative=False)
    assert tried > 20
    assert failed == 0


# --- What is imported ---


def test_without_flask():
    """Without Flask the classes raise an ImportError that names the extra; the tools work."""
    done = run_python(
        "import sys\n"
        "sys.modules['flask'] = None\n"
        "from lapse.web import hash_token, sign\n"
        "sign(b'x' * 24, b'')\n"
        "try:\n"
        "    import lapse.web.webhook\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "pip install 'lapse[web]'" in done.stdout, done.stderr


def test_without_waitress():
    """Without waitress serving raises an ImportError that names the extra; the app works."""
    done = run_python(
        "import sys, lapse\n"
        "sys.modules['waitress'] = None\n"
        "from lapse.web.api import APIInvalidation\n"
        "api = APIInvalidation(lapse.TTLCache(60))\n"
        f"print(api.app.test_client().post({URL!r}, json={MESSAGE!r}).status_code)\n"
        "try:\n"
        "    api.run()\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "200\n" in done.stdout, done.stderr
    assert "pip install 'lapse[web]'" in done.stdout


def test_the_loop_waits_for_a_thread_that_sends():
    """It does not ask again and again meanwhile, with the GIL, whether it may send the rest."""
    calls: list[Any] = []

    class Lock:
        def acquire(self, timeout: float) -> bool:
            calls.append(timeout)
            return len(calls) == 1

        def release(self) -> None:
            calls.append("release")

    class Channel:
        outbuf_lock = Lock()

        def handle_write(self) -> None:
            calls.append("write")

    channel = serving._patient(Channel)()
    channel.handle_write()
    channel.handle_write()  # the thread takes longer than that
    assert calls == [serving.PATIENCE, "write", "release", serving.PATIENCE, "write"]
