"""Helpers shared by the tests of channels: a transport that plays a script."""

from __future__ import annotations

from collections import deque
from typing import Any

from lapse import ManualClock
from lapse.invalidation.alerts import Alerts
from lapse.invalidation.channel import Channel
from lapse.invalidation.message import spell_queue
from lapse.invalidation.source import Batch, Resync

NOW = 1700000000.0


class Script:
    """A transport whose receive() plays `coming`: messages, exceptions, or calls to make."""

    def __init__(self, *coming: Any):
        self.coming = deque(coming)
        self.sent: list[Any] = []
        #: What the next sends raise; None for one that works.
        self.failing: deque[Exception | None] = deque()

    def receive(self, timeout: float) -> Any:
        step = self.coming.popleft() if self.coming else None
        if isinstance(step, BaseException):
            raise step
        return step() if callable(step) else step

    def publish(self, message: Any) -> None:
        error = self.failing.popleft() if self.failing else None
        if error is not None:
            raise error
        self.sent.append(message)


class Played:
    """A channel over a script, with a clock that stands still and a list of its alerts."""

    def __init__(self, *coming: Any, **options: Any):
        self.script = Script(*coming)
        self.clock = ManualClock(100.0)
        self.alerts: list[tuple[str, str]] = []
        self.channel = Channel(
            self.script.receive, self.script.publish,
            **{
                "spell": spell_queue, "clock": self.clock, "wall": lambda: NOW, "wait": 0.001,
                "heartbeat": None, "alerts": Alerts(self._alerted),
                **options,
            },
        )  # fmt: skip
        self.origin = self.channel.origin.id

    def _alerted(self, alert: Any) -> None:
        self.alerts.append((alert.kind, alert.source))

    def events(self) -> list[Batch | Resync]:
        """What the channel yields until the script is at its end, empty batches aside."""
        found = []
        for event in self.channel:
            if event != Batch() or event.commit:
                found.append(event)
            if not self.script.coming:
                self.script.coming.append(self.channel.close)
        return found

    def summary(self) -> list[Any]:
        """The same in short: reasons of resyncs, targets of invalidations."""
        found: list[Any] = []
        for event in self.events():
            if isinstance(event, Resync):
                found.append(f"resync: {event.reason}")
            else:
                found.extend(item.target for item in event.invalidations)
        return found


def key(target: Any, origin: str | None = None, sequence: int | None = None) -> dict[str, Any]:
    """A message that invalidates a key."""
    message: dict[str, Any] = {"type": "invalidate_key", "key": target}
    if origin is not None:
        message |= {"origin": origin, "sequence": sequence}
    return message
