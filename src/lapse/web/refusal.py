"""A request that is refused, and what is told of it: to the client, and in the statistics."""

from __future__ import annotations

__all__ = ["Refused"]


class Refused(Exception):
    """Ends a request: `status` and `message` for the client, `reason` for the statistics.

    Neither message nor reason says more than the client knows: no keys, no secrets, no exceptions.
    """

    def __init__(self, status: int, reason: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        #: Further headers of the answer, with "_" for "-".
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
