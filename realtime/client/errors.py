"""What a client raises."""

from __future__ import annotations


class Denied(Exception):
    """The server refuses this client, and another attempt would change nothing.

    `get_token` may raise it too: no user is logged in.

    Attributes:
        code: The HTTP status of the handshake, or the close code.
        reason: Why, in the server's words.
        status: The HTTP status of the handshake; None if there was none, or it was accepted.
        error: The error code of the protocol, such as `forbidden_role`; empty if there is none.
        message: The reason without the error code.
    """

    def __init__(
        self, code: int, reason: str, *, status: int | None = None, error: str = "", message: str = ""
    ) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason
        self.status = status
        self.error = error
        self.message = message or reason


class CallFailed(Exception):
    """A call failed, or an event was not sent.

    Attributes:
        code: An error code of the protocol; `timeout` when no answer came; `closed` when the connection was lost, or
            there will be none any more; `queue_full` when too many events wait for a connection; `too_large` when
            the server would not take the frame.
        message: Why, in a sentence.
        retry_after: Seconds after which the same call may succeed, if the server says so.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after


class NoToken(Exception):
    """`get_token` failed; what it raised is the cause."""
