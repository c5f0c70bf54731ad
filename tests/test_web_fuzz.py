"""Hostile requests: mutated and replayed webhooks, random bodies, paths and headers.

Nothing of them is accepted, and no answer is a 500. LAPSE_LONG=1 tries five times as many.
"""

from __future__ import annotations

import io
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("flask", reason="the extra `web` is not installed")

import lapse
from lapse.web import sign
from lapse.web.admin import AdministrativeInvalidation
from lapse.web.api import APIInvalidation
from lapse.web.webhook import WebhookInvalidation
from support import PATIENCE
from web_support import SECRET, served

MANY = 10_000 if os.environ.get("LAPSE_LONG") else 2_000
NOW = 1_700_000_000
OTHER = "whsec_" + "B" * 43 + "="
KEYS = [f"users:{i}" for i in range(50)]
HEADERS = ["webhook-id", "webhook-timestamp", "webhook-signature"]

Headers = dict[str, str]
Mutation = Callable[[random.Random, Headers, bytes], tuple[Headers, bytes]]


def message(rng: random.Random) -> bytes:
    """A message that would remove something."""
    target = rng.choice(KEYS)
    return json.dumps(
        rng.choice(
            [
                {"type": "invalidate_key", "key": target},
                {"type": "invalidate_pattern", "pattern": target[:6] + "*"},
                {"type": "invalidate_table", "table": "users"},
                {"type": "clear_all"},
            ]
        )
    ).encode()


# --- Mutations of a signed message: each makes another one of it ---


def flip(rng: random.Random, data: bytes) -> bytes:
    """One bit, or some, are others."""
    mutated = bytearray(data)
    for place in rng.sample(range(8 * len(data)), rng.choice([1, 1, 1, 2, 5])):
        mutated[place // 8] ^= 1 << place % 8
    return bytes(mutated)


def edit(rng: random.Random, data: bytes) -> bytes:
    """Some bytes are missing, doubled, or new."""
    at = rng.randrange(len(data))
    piece = rng.choice([b"", data[at : at + 1] * 2, bytes([rng.randrange(256)]) * 2])
    return data[:at] + piece + data[at + 1 :]


def of_body(change: Callable[[random.Random, bytes], bytes]) -> Mutation:
    return lambda rng, headers, body: (headers, change(rng, body))


def of_header(change: Callable[[random.Random, bytes], bytes]) -> Mutation:
    def mutate(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        name = rng.choice(HEADERS)
        text = change(rng, headers[name].encode("latin-1")).decode("latin-1")
        return headers | {name: text}, body

    return mutate


def truncated(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    text = headers["webhook-signature"]
    return headers | {"webhook-signature": text[: rng.randrange(len(text))]}, body


def same_bytes(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """Other base64 that a careless reader decodes to the same signature."""
    text = headers["webhook-signature"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    loose = letters[letters.index(text[-2]) ^ rng.randrange(1, 4)]
    at = rng.randrange(3, len(text))
    forms = [text[:-2] + loose + "=", text[:-1], text + "=", text[:at] + "!" + text[at:]]
    return headers | {"webhook-signature": rng.choice(forms)}, body


def missing(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    gone = rng.choice(HEADERS)
    return {name: text for name, text in headers.items() if name != gone}, body


def wrong_secret(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    return sign(OTHER, body, id=headers["webhook-id"], timestamp=NOW), body


def another_time(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """Rightly signed, but for long ago or far ahead."""
    off = rng.choice([-1, 1]) * rng.choice([301, 302, 3600, 10**6, NOW])
    return sign(SECRET, body, id=headers["webhook-id"], timestamp=NOW + off), body


def unsigned_time(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """The time is another than the signed one, within the tolerance, or spelt otherwise."""
    off = rng.choice([-1, 1]) * rng.randrange(1, 300)
    forms = [f"{NOW + off}", f"0{NOW}", f"+{NOW}", f"{NOW}.0", f"{NOW}e0"]
    return headers | {"webhook-timestamp": rng.choice(forms)}, body


def spliced(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """One header, or the body, is that of another signed message."""
    other = sign(SECRET, b'{"type": "clear_all" }', timestamp=NOW - 1)
    part = rng.choice([*HEADERS, "body"])
    if part == "body":
        return headers, b'{"type": "clear_all" }'
    return headers | {part: other[part]}, body


def nonsense(rng: random.Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """Headers of arbitrary characters."""
    text = "".join(chr(rng.randrange(256)) for _ in range(rng.randrange(80)))
    lists = ["v1", ",", "v1,", "v1,,", "v1 v1", " ", "v1," + text, text + "," + text]
    return headers | {rng.choice(HEADERS): rng.choice([text, *lists])}, body


MUTATIONS: dict[str, Mutation] = {
    "bit of the body": of_body(flip),
    "edited body": of_body(edit),
    "bit of a header": of_header(flip),
    "edited header": of_header(edit),
    "truncated": truncated,
    "same bytes": same_bytes,
    "missing": missing,
    "wrong secret": wrong_secret,
    "another time": another_time,
    "unsigned time": unsigned_time,
    "spliced": spliced,
    "nonsense": nonsense,
}


def attacks(rng: random.Random, count: int) -> Iterator[tuple[str, Headers, bytes]]:
    """So many requests, none of which may be accepted, and what each is."""
    names = list(MUTATIONS)
    while count:
        body = message(rng)
        good = sign(SECRET, body, id=f"msg_{rng.getrandbits(64):x}", timestamp=NOW)
        name = rng.choice(names)
        headers, mutated = MUTATIONS[name](rng, good, body)
        as_read = {name: text.strip() for name, text in headers.items()}
        if (as_read, mutated) != (good, body):
            count -= 1
            yield name, headers, mutated


# --- Requests ---


def call(app: Any, method: str, path: str, body: bytes, headers: Headers) -> tuple[int, bytes]:
    """Status and body of the answer of a WSGI app; header values are latin-1, as on the wire."""
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, text in headers.items():
        environ["HTTP_" + name.upper().replace("-", "_")] = text
    statuses: list[str] = []
    answer = b"".join(app(environ, lambda status, _headers: statuses.append(status)))
    return int(statuses[0][:3]), answer


def exchange(connection: socket.socket, body: bytes, headers: Headers) -> int | None:
    """The status of a webhook's answer over a socket; None if it was cut off without one."""
    lines = [f"{name}: {text}".encode("latin-1") for name, text in headers.items()]
    head = [
        b"POST /webhook/invalidate HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
        *lines,
    ]
    connection.sendall(b"\r\n".join(head) + b"\r\n\r\n" + body)
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return int(received[9:12]) if received else None


@pytest.fixture
def cache() -> Any:
    return lapse.TTLCache(None, cleanup_interval=None)


# --- Webhooks ---


def test_mutated_webhooks(cache):
    """Of many messages that were changed after they were signed, none is accepted, in no way."""
    rng = random.Random(20261126)
    hook = WebhookInvalidation(cache, secrets=[SECRET], clock=lambda: NOW)
    cache.set_many(dict.fromkeys(KEYS, 1))
    seen: Counter[tuple[str, int]] = Counter()
    for name, headers, body in attacks(rng, MANY):
        status, answer = call(hook.app, "POST", "/webhook/invalidate", body, headers)
        assert status in (400, 401), (name, headers, body)
        assert json.loads(answer)["status"] == "error"
        seen[name, status] += 1
    assert {name for name, _ in seen} == set(MUTATIONS)
    assert len(cache) == len(KEYS)
    assert hook.stats().accepted == hook.stats().invalidations == 0
    body = message(rng)
    headers = sign(SECRET, body, timestamp=NOW)
    assert call(hook.app, "POST", "/webhook/invalidate", body, headers)[0] == 200


def test_replayed_webhooks(cache):
    """Each of many messages is accepted once, however often it is sent and resigned."""
    rng = random.Random(2)
    hook = WebhookInvalidation(cache, secrets=[SECRET, OTHER], clock=lambda: NOW)
    sent: list[tuple[Headers, bytes]] = []
    replays = 0
    while replays < MANY // 2:
        if not sent or rng.random() < 0.05:
            body = message(rng)
            headers = sign(SECRET, body, timestamp=NOW + rng.randrange(-300, 301))
            sent.append((headers, body))
            expected = 200
        else:
            headers, body = rng.choice(sent)
            if rng.random() < 0.3:  # the same id, signed anew
                secret = rng.choice([SECRET, OTHER])
                at = NOW + rng.randrange(-300, 301)
                headers = sign(secret, body, id=headers["webhook-id"], timestamp=at)
            expected = 409
            replays += 1
        status, _ = call(hook.app, "POST", "/webhook/invalidate", body, headers)
        assert status == expected
    assert hook.stats().accepted == len(sent)


def test_mutated_webhooks_over_sockets(cache):
    """The same over sockets: waitress and we refuse all of it, and go on."""
    rng = random.Random(3)
    cache.set_many(dict.fromkeys(KEYS, 1))
    hook = WebhookInvalidation(cache, secrets=[SECRET], clock=lambda: NOW)
    statuses: Counter[int | None] = Counter()
    with served(hook) as address:
        for _, headers, body in attacks(rng, MANY // 5):
            text = {n: t.translate(LINE_ENDS) for n, t in headers.items()}
            with socket.create_connection(address, timeout=PATIENCE) as connection:
                statuses[exchange(connection, body, text)] += 1
        body = b'{"type": "clear_all"}'
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            assert exchange(connection, body, sign(SECRET, body, timestamp=NOW)) == 200
    assert set(statuses) <= {400, 401}, statuses
    assert hook.stats().accepted == 1
    assert len(cache) == 0


LINE_ENDS = {ord("\r"): "\x01", ord("\n"): "\x02"}  # what ends a header is no part of it


# --- Bodies, paths and tokens ---


def junk(rng: random.Random, depth: int = 0) -> Any:
    """Something that JSON can hold."""
    kind = rng.randrange(9 if depth < 4 else 7)
    if kind == 7:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        names = ["type", "key", "pattern", "table", "tag", "items", "dry_run", "version", "x"]
        return {rng.choice(names): junk(rng, depth + 1) for _ in range(rng.randrange(4))}
    words = [
        "key",
        "pattern",
        "invalidate_key",
        "batch",
        "clear_all",
        "all",
        "*",
        "a\x00\ud800",
        "",
    ]
    return [None, True, 1e308, -7, 10 ** rng.randrange(400), rng.choice(words), "x" * 2000][kind]


def bodies(rng: random.Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        fields = {"type": junk(rng), "key": junk(rng), "pattern": junk(rng), "items": junk(rng)}
        chosen = rng.sample(sorted(fields), rng.randrange(5))
        data = json.dumps({name: fields[name] for name in chosen}).encode()
        how = rng.randrange(8)
        if how == 0:
            data = flip(rng, data)
        elif how == 1:
            data = edit(rng, data)
        elif how == 2:
            data = rng.randbytes(rng.randrange(200))
        elif how == 3:
            data = rng.choice([b"[", b'{"a":', b'{"', b"[{", b"\\"]) * rng.randrange(20_000)
        yield data


def test_random_bodies(cache):
    """Whatever a body holds, the answer is JSON, and is 200, 400 or 413."""
    rng = random.Random(4)
    interfaces = [
        (WebhookInvalidation(cache), "/webhook/invalidate"),
        (APIInvalidation(cache), "/api/cache/invalidate"),
        (AdministrativeInvalidation(cache), "/admin/cache/invalidate-pattern"),
    ]
    for body in bodies(rng, MANY // 5):
        for interface, path in interfaces:
            status, answer = call(interface.app, "POST", path, body, {})
            assert status in (200, 400, 413), (path, body)
            assert json.loads(answer)["status"] in ("success", "error")


def test_random_paths(cache):
    """Whatever a path holds, nothing is removed but the entry that it names, if it is text."""
    rng = random.Random(5)
    admin = AdministrativeInvalidation(cache)
    pieces = [
        "/",
        "//",
        ".",
        "..",
        "%",
        "%2F",
        "?",
        "\x00",
        "\n",
        "\xff",
        "\xc3\xa9",
        "a",
        "*",
        "[",
    ]
    for _ in range(MANY // 5):
        path = "".join(rng.choice(pieces) for _ in range(rng.randrange(8)))
        cache.clear()
        cache["other"] = 1
        try:
            key = path.encode("latin-1").decode()
            cache[key] = 1
            expected = (200, "success")
        except UnicodeDecodeError:
            expected = (400, "error")
        status, answer = call(admin.app, "DELETE", f"/admin/cache/invalidate/{path}", b"", {})
        assert (status, json.loads(answer)["status"]) == expected, path
        assert len(cache) == 1


def test_random_tokens(cache):
    """Whatever the header holds, who has no token is refused."""
    rng = random.Random(6)
    token = "token-of-the-test"
    api = APIInvalidation(cache, tokens={token: "clear"})
    body = b'{"type": "all"}'
    for _ in range(MANY // 5):
        text = flip(rng, f"Bearer {token}".encode()).decode("latin-1")
        if text.partition(" ")[2].strip() == token:  # the word itself may be in any case
            continue
        status, _ = call(api.app, "POST", "/api/cache/invalidate", body, {"authorization": text})
        assert status == 401, text
    headers = {"authorization": f"Bearer {token}"}
    assert call(api.app, "POST", "/api/cache/invalidate", body, headers)[0] == 200
