"""After a connection is lost: why, and when to try again."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Self

from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI
from websockets.frames import Close

from .errors import Denied

NORMAL = 1000
ABNORMAL = 1006
NOT_FOUND = 404
TOKEN_EXPIRED = 4401
RATE_LIMITED = 4429
UNAUTHORIZED = 401
DENIED = frozenset({UNAUTHORIZED, 403, NOT_FOUND, 1002, 1007, 1009, 4400, 4403, 4409})
"""Statuses of a handshake and close codes after which another attempt would change nothing."""
PAUSE_SECONDS = 5.0
"""A client that was too fast stays away for at least this time."""
LONGEST_SECONDS = 600.0
"""A server can ask a client to stay away for at most this time."""


_CODE = re.compile(r"[a-z_]{1,40}")
"""What an error code of the protocol looks like."""


def backoff(attempt: int, first: float, most: float) -> float:
    """Seconds to wait before an attempt: full jitter under a cap that doubles.

    After M. Brooker, "Exponential Backoff And Jitter".

    Args:
        attempt: How many attempts have failed before.
        first: The longest first wait, in seconds.
        most: The longest wait of all, in seconds.

    >>> 0 <= backoff(3, first=0.5, most=20.0) <= 4.0
    True
    """
    return random.uniform(0, min(most, first * 2 ** min(attempt, 30)))  # noqa: S311


@dataclass(frozen=True, slots=True)
class Loss:
    """Why there is no connection, and for how many seconds the server asks the client to stay away."""

    code: int | None
    reason: str
    wait: float = 0.0
    status: int | None = None
    """The HTTP status of a handshake that was refused."""
    error: str = ""
    """The error code of the protocol with which it was refused. Empty: a proxy, or another application, refused it."""

    @property
    def is_explained(self) -> bool:
        """Whether the reason is the server's own, and not only the name of a status."""
        return bool(self.error)

    @property
    def message(self) -> str:
        """The reason without the error code."""
        return self.reason.removeprefix(f"{self.error}: ")

    @property
    def is_final(self) -> bool:
        """Whether another attempt would change nothing.

        A namespace that does not exist is final. A proxy, or another application that has the address while ours is
        replaced, does not know that.
        """
        return self.code in DENIED and (self.code != NOT_FOUND or self.error == "not_found")

    def denied(self) -> Denied:
        """The exception that it ends in."""
        return Denied(self.code or 0, self.reason, status=self.status, error=self.error, message=self.message)

    @classmethod
    def of(cls, error: Exception) -> Self:
        """The loss that an exception of a connection, or of an attempt, stands for."""
        match error:
            case InvalidStatus(response=response):
                pauses = response.headers.get_all("Retry-After")  # a proxy may have added its own
                return cls.refused(
                    response.status_code, response.reason_phrase, response.body or b"", *pauses
                )
            case ConnectionClosed(rcvd=Close(code=code, reason=reason)):
                return cls(code, reason, PAUSE_SECONDS if code == RATE_LIMITED else 0.0)
            case ConnectionClosed():
                return cls(ABNORMAL, str(error))
            case InvalidURI():
                return cls(None, "the server redirects to an address that is not a WebSocket's")
            case _:
                return cls(None, ": ".join(filter(None, (type(error).__name__, str(error)))))

    @classmethod
    def refused(cls, status: int, phrase: str, body: bytes | bytearray, *pauses: str) -> Self:
        """The loss that an answer of HTTP stands for, in the words of the server or of a proxy before it."""
        error, message = _error(body)
        reason = f"{error}: {message}" if error else phrase
        return cls(status, reason, max(map(_seconds, pauses), default=0.0), status, error)

    def __str__(self) -> str:
        return self.reason if self.code is None else f"{self.code} {self.reason}"


def _seconds(retry_after: str) -> float:
    """A Retry-After in seconds. The other form, a date, counts as none: the clocks may differ."""
    return min(float(retry_after), LONGEST_SECONDS) if retry_after.isdecimal() else 0.0


def _error(body: bytes | bytearray) -> tuple[str, str]:
    """Why a handshake was refused, in the server's words: an error code and a message; empty if it does not say."""
    try:
        error = json.loads(body)["error"]
        code, message = error["code"], error["message"]
    except (LookupError, TypeError, ValueError, RecursionError):
        return "", ""
    is_ours = isinstance(code, str) and _CODE.fullmatch(code) is not None
    return (code, str(message)) if is_ours else ("", "")


class Retries:
    """Decides after each loss when to try again, or that there is no point in it."""

    def __init__(self, delay: float, delay_max: float, most: int | None) -> None:
        self._delays = delay, delay_max
        self._most = most
        self._failed = 0
        self.needs_fresh_token = False
        """Whether the next attempt has to be made with a new token: the last one was refused."""

    def reset(self) -> None:
        """Begin again with a short wait."""
        self._failed = 0

    def is_at_once(self, loss: Loss) -> bool:
        """Whether to try again without a wait: a token that was refused may only have been too old."""
        if loss.code != UNAUTHORIZED or self.needs_fresh_token:
            return False
        self.needs_fresh_token = True
        return True

    def first_wait(self) -> float:
        """Seconds to wait when there is reason to believe that the next attempt succeeds."""
        return backoff(0, *self._delays)

    def next_wait(self, loss: Loss, cause: BaseException | None, *, is_urgent: bool) -> float:
        """Seconds to wait, beyond what the server asks for. An urgent attempt is made even if none is left.

        Raises `Denied` when another attempt would change nothing, and `ConnectionError` when no attempt is left.
        """
        if loss.is_final:
            raise loss.denied() from cause
        if self._most is not None and self._failed >= self._most and not is_urgent:
            attempts = f"no connection after {self._failed + 1} attempts"
            raise ConnectionError(f"{attempts}, the last: {loss}") from cause
        wait = backoff(self._failed, *self._delays)
        self._failed += 1
        self.needs_fresh_token = False
        return wait
