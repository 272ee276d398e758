"""What a client raises."""

from __future__ import annotations


class Denied(Exception):
    """The server refuses this client, and another attempt would change nothing.

    `get_token` may raise it too: no user is logged in.

    Attributes:
        code: The HTTP status of the handshake, or the close code.
        reason: Why, in the server's words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason


class CallFailed(Exception):
    """A call failed, or an event was not sent.

    Attributes:
        code: An error code of the protocol; `timeout` when no answer came; `closed` when there is no connection (for
            `send`: when there will be none any more); `queue_full` when too many events wait for a connection.
        retry_after: Seconds after which the same call may succeed, if the server says so.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after = retry_after


class NoToken(Exception):
    """`get_token` failed; what it raised is the cause."""
