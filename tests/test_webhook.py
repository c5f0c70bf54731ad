"""WebhookInvalidation: messages, signatures, answers that senders can rely on."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

pytest.importorskip("flask", reason="the extra `web` is not installed")

import lapse
from lapse.web import sign
from lapse.web.webhook import WebhookInvalidation
from support import wait_until
from web_support import SECRET, WEBHOOK, Broken, Sender, ask, hooked, served

OTHER = "whsec_" + "A" * 32


@pytest.fixture
def cache() -> Any:
    """Some users and an order, one of them tagged."""
    cache: lapse.TTLCache[Any, Any] = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many({"users:1": 1, "users:2": 2, "orders:1": 3, 7: 4})
    cache.set("page", 5, tags=["news"])
    return cache


_clock, _hook, _sender = hooked()


@pytest.mark.parametrize(
    ("message", "gone"),
    [
        ({"type": "invalidate_key", "key": "users:1"}, {"users:1"}),
        ({"type": "invalidate_key", "key": 7}, {7}),
        ({"type": "invalidate_key", "key": "nobody"}, set()),
        ({"type": "invalidate_pattern", "pattern": "*:1"}, {"users:1", "orders:1"}),
        ({"type": "invalidate_table", "table": "users"}, {"users:1", "users:2"}),
        ({"type": "invalidate_tag", "tag": "news"}, {"page"}),
        ({"type": "clear_all"}, {"users:1", "users:2", "orders:1", 7, "page"}),
        (
            {
                "type": "batch",
                "items": [
                    {"type": "invalidate_key", "key": "users:1"},
                    {"type": "invalidate_table", "table": "orders"},
                ],
            },
            {"users:1", "orders:1"},
        ),
    ],
)
def test_messages(cache, sender, message, gone):
    """Each type of message removes what it names, and is answered as in the reference."""
    before = set(cache)
    assert sender.post(message) == (200, {"status": "success"})
    assert before - set(cache) == gone


@pytest.mark.parametrize(
    "message",
    [
        {"type": "key", "key": "users:1"},
        {"type": "invalidation", "invalidation_type": "key", "key": "users:1"},
        {"type": "invalidate_everything"},
        {"type": "heartbeat", "origin": "a", "sequence": 1},
        {"type": None},
        {"type": ["invalidate_key"], "key": "users:1"},
        {"key": "users:1"},
        {"type": "batch", "items": [{"type": "key", "key": "users:1"}]},
        {"type": "batch", "items": ["users:1"]},
        {},
    ],
)
def test_unknown_types(cache, hook, sender, message):
    """Types of other interfaces, unknown ones and none are 400, where the reference answers 200."""
    expected = {"status": "error", "message": "Invalid invalidation type"}
    assert sender.post(message) == (400, expected)
    assert len(cache) == 5
    assert hook.stats().refused == {"unknown_type": 1}


@pytest.mark.parametrize(
    "message",
    [
        {"type": "invalidate_key"},
        {"type": "invalidate_key", "key": {"a": 1}},
        {"type": "invalidate_key", "key": ["users", 1]},
        {"type": "invalidate_pattern", "pattern": 5},
        {"type": "invalidate_pattern", "pattern": "x" * 2000},
        {"type": "invalidate_table", "table": None},
        {"type": "invalidate_tag", "tag": True},
        {"type": "batch", "items": [{"type": "invalidate_key"}]},
        {"type": "batch", "items": [{"type": "batch", "items": []}]},
        {"type": "batch", "items": 3},
        {"type": "batch"},
    ],
)
def test_malformed_messages(cache, sender, message):
    """A message without its target, or with one of the wrong type or size, is 400."""
    status, answer = sender.post(message)
    assert (status, answer["status"]) == (400, "error")
    assert len(cache) == 5


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b"\xff", b'{"type": NaN}', b"[" * 60_000, b'{"a":' * 10_000,
     b'{"type": "clear_all", "type": "clear_all"}', b'{"type": ' + b"1" * 5000 + b"}",
     b'\xef\xbb\xbf{"type": "clear_all"}'],
)  # fmt: skip
def test_bodies_that_are_no_json_object(cache, sender, body):
    """What is no JSON object, nests too deeply or has a field twice is 400, though it is signed."""
    status, answer = sender.post(body)
    assert (status, answer["status"]) == (400, "error")
    assert len(cache) == 5


def test_the_content_type(cache, sender):
    """A body that does not say it is JSON is 415, so that no page can send one unasked."""
    message = {"type": "clear_all"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"):
        assert sender.post(message, Content_Type=kind)[0] == 415
    assert len(cache) == 5
    assert sender.post(message, Content_Type="application/json; charset=utf-8")[0] == 200


def test_large_bodies(cache, sender):
    """A body above 64 KiB is 413; one of just that size is read."""
    frame = b'{"type": "clear_all", "x": "%s"}'
    room = 65536 - len(frame % b"")
    assert sender.post(frame % (b"x" * (room + 1)))[0] == 413
    assert len(cache) == 5
    assert sender.post(frame % (b"x" * room))[0] == 200


def test_unsigned_messages(cache, hook, sender):
    """Without a signature, with another secret's, or an old one: 401, and nothing goes."""
    message = {"type": "clear_all"}
    answer = sender.client.post(WEBHOOK, json=message)
    assert (answer.status_code, answer.get_json()["status"]) == (401, "error")
    assert sender.post(message, secret=OTHER)[0] == 401
    assert sender.post(message, webhook_timestamp="1")[0] == 401
    assert sender.post(message, webhook_signature="nonsense")[0] == 400
    assert len(cache) == 5
    assert hook.stats().refused == {"unsigned": 1, "wrong_signature": 2, "malformed": 1}


def test_the_tolerance(cache, clock):
    """A message older than the tolerance is 401, a minute later as at once."""
    hook = WebhookInvalidation(cache, secrets=[SECRET], tolerance=10, clock=clock)
    sender = Sender(hook, lambda: clock() - 11)
    assert sender.post({"type": "clear_all"})[0] == 401
    assert hook.stats().refused == {"expired": 1}
    sender.clock = lambda: clock() - 9
    assert sender.post({"type": "clear_all"})[0] == 200


def test_rotation(cache):
    """Of several secrets each is good; a lone str is one secret."""
    sender = Sender(WebhookInvalidation(cache, secrets=[OTHER, SECRET]))
    for secret in (SECRET, OTHER):
        assert sender.post({"type": "invalidate_key", "key": 7}, secret=secret)[0] == 200
    sender = Sender(WebhookInvalidation(cache, secrets=SECRET))
    assert sender.post({"type": "invalidate_key", "key": 7})[0] == 200
    assert sender.post({"type": "invalidate_key", "key": 7}, secret=OTHER)[0] == 401


# --- Not now ---


def test_a_cache_that_fails(clock, caplog):
    """An invalidation that fails is 503 without details, and the next attempt is accepted."""
    cache = Broken()
    hook = WebhookInvalidation(cache, secrets=[SECRET], clock=clock)
    sender = Sender(hook, clock)
    for message in (
        {"type": "invalidate_key", "key": "a"},
        {"type": "invalidate_pattern", "pattern": "a*"},
        {"type": "clear_all"},
    ):
        cache.raises = True
        id = f"msg_{message['type']}"
        status, answer = sender.post(message, webhook_id=id)
        assert (status, answer["status"]) == (503, "error")
        assert "hunter2" not in str(answer)
        cache.raises = False
        assert sender.post(message, webhook_id=id)[0] == 200
        assert sender.post(message, webhook_id=id)[0] == 409
    assert "hunter2" in caplog.text


def test_a_closed_interface(cache, sender, hook, clock):
    """After the queue is closed, messages are 503, and their ids are not remembered."""
    hook.queue.close()
    status, answer = sender.post({"type": "clear_all"}, webhook_id="msg_1")
    assert (status, answer["status"]) == (503, "error")
    assert sender.post({"type": "clear_all"}, webhook_id="msg_1")[0] == 503
    hook.close()
    assert sender.post({"type": "clear_all"}, webhook_id="msg_1")[0] == 503
    assert len(cache) == 5
    assert set(hook.stats().refused) == {"closed"}


def test_a_window(cache):
    """With a window a message is answered when it is queued, and applied in a batch soon after."""
    with WebhookInvalidation(cache, secrets=[SECRET], window=0.02) as hook:
        sender = Sender(hook)
        assert sender.post({"type": "invalidate_key", "key": "users:1"})[0] == 200
        batch = [{"type": "invalidate_tag", "tag": "news"}, {"type": "invalidate_key", "key": 7}]
        batch.append({"type": "invalidate_pattern", "pattern": "users:*"})
        batch.append({"type": "invalidate_table", "table": "orders"})
        assert sender.post({"type": "batch", "items": batch})[0] == 200
        assert wait_until(lambda: len(cache) == 0)
        cache["a"] = 1
        assert sender.post({"type": "clear_all"})[0] == 200
        assert wait_until(lambda: len(cache) == 0)
        assert hook.stats().invalidations == 6


def test_a_full_queue(cache, clock):
    """What finds no room in the queue is 503, loses nothing of what waits, and may come again."""
    hook = WebhookInvalidation(cache, secrets=[SECRET], window=3600, capacity=4, clock=clock)
    sender = Sender(hook, clock)
    for key in ("a", "b", "users:1"):
        assert sender.post({"type": "invalidate_key", "key": key})[0] == 200
    two = {"type": "batch", "items": [{"type": "invalidate_key", "key": key} for key in "cd"]}
    assert sender.post(two, webhook_id="msg_1")[0] == 503
    assert hook.stats().refused == {"full": 1}
    hook.queue.flush()
    assert sender.post(two, webhook_id="msg_1")[0] == 200
    hook.queue.close()
    assert sender.post(two, webhook_id="msg_2")[0] == 503
    assert "users:1" not in cache
    assert "users:2" in cache


# --- The rest ---


def test_without_secrets(cache):
    """Without secrets this machine may send unsigned messages, also twice the same, nobody else."""
    client = WebhookInvalidation(cache).app.test_client()
    for _ in range(2):
        answer = client.post(WEBHOOK, json={"type": "invalidate_key", "key": "users:1"})
        assert (answer.status_code, answer.get_json()) == (200, {"status": "success"})
    elsewhere = {"REMOTE_ADDR": "10.0.0.7"}
    answer = client.post(WEBHOOK, json={"type": "clear_all"}, environ_overrides=elsewhere)
    assert (answer.status_code, answer.get_json()["status"]) == (403, "error")
    assert len(cache) == 4


def test_other_methods_and_paths(hook, sender):
    """A wrong method is 405 and says which is right; another path is 404; both in JSON."""
    for method in ("get", "put", "delete", "patch", "options", "head"):
        answer = getattr(sender.client, method)(WEBHOOK)
        assert answer.status_code == 405
        assert answer.headers["Allow"] == "POST"
    for path in ("/", "/webhook/invalidate/", "/webhook//invalidate", "/static/x"):
        answer = sender.client.post(path)
        assert (answer.status_code, answer.get_json()["status"]) == (404, "error")
    assert hook.stats().refused == {"method": 6, "not_found": 4}
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_figures(hook, sender):
    """stats() counts requests by status and reason, invalidations and entries; JSON-ready too."""
    sender.post({"type": "invalidate_table", "table": "users"})
    sender.post({"type": "nonsense"})
    stats = hook.stats()
    assert (stats.requests, stats.accepted, stats.statuses) == (2, 1, {200: 1, 400: 1})
    assert (stats.refused, stats.invalidations, stats.removed) == ({"unknown_type": 1}, 1, 2)
    plain = json.loads(json.dumps(hook.get_stats()))
    assert plain["statuses"] == {"200": 1, "400": 1}
    assert (plain["class"], plain["name"]) == ("WebhookInvalidation", "webhook")
    assert repr(hook) == "WebhookInvalidation('webhook', requests=2)"


def test_the_audit_log(sender, caplog):
    """Each invalidation is a line of JSON that names the message, the target and the count."""
    caplog.set_level(logging.INFO, "lapse.audit")
    sender.post({"type": "invalidate_pattern", "pattern": "users:*"}, webhook_id="msg_1")
    sender.post({"type": "invalidate_key", "key": 'x"\n\u2028{"who": "root"}' + "y" * 1000})
    first, second = (record.getMessage() for record in caplog.records)
    assert json.loads(first) == {
        "who": "webhook msg_1",
        "address": "127.0.0.1",
        "what": "pattern",
        "target": "'users:*'",
        "removed": 2,
    }
    assert len(second.splitlines()) == 1
    assert second.isascii()
    assert len(second) < 400


def test_over_a_socket(cache):
    """Behind waitress: a signed message is accepted, its replay is not, nor an unsigned one."""
    body = json.dumps({"type": "invalidate_table", "table": "users"}).encode()
    headers = sign(SECRET, body) | {"Content-Type": "application/json"}
    with served(WebhookInvalidation(cache, secrets=[SECRET])) as address:
        answers = [ask(address, "POST", WEBHOOK, body, headers) for _ in range(2)]
        answers.append(ask(address, "POST", WEBHOOK, {"type": "clear_all"}))
    assert [answer.status for answer in answers] == [200, 409, 401]
    assert [answer.body["status"] for answer in answers] == ["success", "error", "error"]
    assert "server" not in answers[0].headers
    assert set(cache) == {"orders:1", 7, "page"}
