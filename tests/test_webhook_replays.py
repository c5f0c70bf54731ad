"""WebhookInvalidation accepts a message once: ids that were here before."""

from __future__ import annotations

import threading
from typing import Any

import pytest

pytest.importorskip("flask", reason="the extra `web` is not installed")

import lapse
from lapse.web.webhook import WebhookInvalidation
from support import PATIENCE
from web_support import SECRET, Sender, hooked

OTHER = "whsec_" + "A" * 32


@pytest.fixture
def cache() -> Any:
    cache: lapse.TTLCache[str, Any] = lapse.TTLCache(60, cleanup_interval=None)
    cache["users:1"] = 1
    return cache


_clock, _hook, _sender = hooked()


def test_a_replay_is_refused(cache, hook, sender, clock):
    """The same id again is 409, until long after its signature is too old."""
    message = {"type": "invalidate_key", "key": "users:1"}
    assert sender.post(message, webhook_id="msg_1")[0] == 200
    cache["users:1"] = "new"
    for _ in range(3):
        assert sender.post(message, webhook_id="msg_1") == (
            409,
            {"status": "error", "message": "The message has been accepted before"},
        )
        clock.advance(200)
    assert cache["users:1"] == "new"
    assert hook.stats().refused == {"replayed": 3}
    clock.advance(61)
    assert sender.post(message, webhook_id="msg_1")[0] == 200


def test_a_message_from_ahead_is_not_replayed(cache, clock):
    """A message dated ahead by the tolerance is accepted once in all the time that it is good."""
    sender = Sender(WebhookInvalidation(cache, secrets=[SECRET], clock=clock), clock)
    ahead = clock() + 300
    sender.clock = lambda: ahead
    statuses = []
    for _ in range(121):
        statuses.append(sender.post({"type": "clear_all"}, webhook_id="msg_1")[0])
        clock.advance(5)
    assert statuses == [200] + [409] * 120
    assert sender.post({"type": "clear_all"}, webhook_id="msg_1")[0] == 401


def test_only_signed_ids_are_remembered(sender):
    """Who cannot sign cannot have another's id refused; nor does a malformed message use it up."""
    good = {"type": "clear_all"}
    assert sender.post(good, secret=OTHER, webhook_id="msg_1")[0] == 401
    assert sender.post({"type": "nonsense"}, webhook_id="msg_1")[0] == 400
    assert sender.post(good, webhook_id="msg_1")[0] == 200


def test_of_equal_requests_one_wins(cache):
    """Of many threads that post the same message at once, exactly one is told of success."""
    sender = Sender(WebhookInvalidation(cache, secrets=[SECRET]))
    start, statuses = threading.Barrier(8), []

    def post() -> None:
        start.wait()
        statuses.append(sender.post({"type": "clear_all"}, webhook_id="msg_1")[0])

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses)[0] == 200
    assert set(sorted(statuses)[1:]) <= {409, 503}


def test_what_may_yet_fail_is_no_replay(clock):
    """While a message is being applied the same one is 503; after that has failed, it counts."""

    class Slow:
        """A cache whose first delete waits, and then raises."""

        def __init__(self) -> None:
            self.entered, self.go = threading.Event(), threading.Event()

        def delete(self, key: str) -> bool:
            if self.entered.is_set():
                return True
            self.entered.set()
            self.go.wait(PATIENCE)
            raise OSError("the store is gone")

        def delete_pattern(self, pattern: str) -> int:
            return 0

    slow = Slow()
    sender = Sender(WebhookInvalidation(slow, secrets=[SECRET], clock=clock), clock)
    message, first = {"type": "invalidate_key", "key": "a"}, []
    thread = threading.Thread(
        target=lambda: first.append(sender.post(message, webhook_id="msg_1")[0])
    )
    thread.start()
    assert slow.entered.wait(PATIENCE)
    assert sender.post(message, webhook_id="msg_1")[0] == 503
    slow.go.set()
    thread.join()
    assert first == [503]
    assert sender.post(message, webhook_id="msg_1")[0] == 200
    assert sender.post(message, webhook_id="msg_1")[0] == 409


def test_the_memory_of_ids_is_bounded(cache, clock):
    """Where no further id can be remembered, a message is 503; the old ones stay refused."""
    hook = WebhookInvalidation(cache, secrets=[SECRET], remembered=3, clock=clock)
    sender = Sender(hook, clock)
    message = {"type": "invalidate_key", "key": "users:1"}
    for i in range(3):
        assert sender.post(message, webhook_id=f"msg_{i}")[0] == 200
    assert sender.post(message, webhook_id="msg_3")[0] == 503
    assert sender.post(message, webhook_id="msg_0")[0] == 409
    clock.advance(2 * 300 + 60)
    assert sender.post(message, webhook_id="msg_3")[0] == 200
