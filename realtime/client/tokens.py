"""Access tokens: asked for once at a time, and kept until shortly before they expire."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable

from .errors import Denied, NoToken

GetToken = Callable[[], str | Awaitable[str]]

SHORTEST = 6
"""Characters from which a text is looked for as a token: a shorter one, as in a test, may be part of any word."""
SKEW_SECONDS = 10.0
"""A token that expires within this time counts as expired: it takes time to arrive."""

TOKEN_INVALID = "token_invalid"  # noqa: S105  (no secret)
"""The error code of the protocol for a token that cannot be one."""
_TOKEN = re.compile(r"[\x21-\x7e]+")
_JWT = re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]*){0,2}")
"""A JWT, or the beginning of one: a close reason has room for 123 bytes."""

logger = logging.getLogger(__name__)


class Tokens:
    """The token there is, and the one request for another."""

    def __init__(self, get_token: GetToken, timeout: float) -> None:
        self._get_token = get_token
        self._timeout = timeout
        self._token: str | None = None
        self._given: list[str] = []
        """The last tokens, which appear in no message."""
        self._request: asyncio.Task[str] | None = None

    async def get(self) -> str:
        """The token there is, or a new one. Raises `NoToken`, or `Denied` if `get_token` does."""
        if self._token is not None and time.time() < expiry(self._token) - SKEW_SECONDS:
            return self._token
        return await self.fresh()

    async def fresh(self) -> str:
        """A new token. Callers that ask during a request share its result. Raises what `get` raises."""
        if self._request is None or self._request.done():
            self._request = asyncio.create_task(self._ask(), name="client: get_token")
            # Otherwise asyncio logs a failure that no caller waits for any more, and what it quotes.
            self._request.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        request = self._request
        # Not awaited itself: a caller that is cancelled must not end a request that another one may need.
        await asyncio.wait([request])
        cause = None if request.cancelled() else request.exception()
        if isinstance(cause, Denied):
            raise cause if self.quotable(cause) else self._told(cause)
        if request.cancelled() or cause is not None:
            failure = self.scrub(f"get_token failed: {cause or asyncio.CancelledError()!r}")
            logger.warning(failure)
            raise NoToken(failure) from self.quotable(cause)
        return request.result()

    def _told(self, denied: Denied) -> Denied:
        """What `get_token` raised, without tokens."""
        reason, message = self.scrub(denied.reason), self.scrub(denied.message)
        return Denied(denied.code, reason, status=denied.status, error=denied.error, message=message)

    def forget(self) -> None:
        """Drop the token: the server does not accept it any more, or it is not needed any more."""
        self._token = None

    def scrub(self, text: str) -> str:
        """A text without tokens: a server or a proxy may quote what it was sent."""
        for token in self._given:
            if len(token) >= SHORTEST:
                text = text.replace(token, "…")
        return _JWT.sub("…", text)

    def quotable(self, error: BaseException | None) -> BaseException | None:
        """An exception as the cause of another; None if a traceback with it would show a token."""
        text = "" if error is None else "".join(traceback.format_exception(error))
        return error if self.scrub(text) == text else None

    async def close(self) -> None:
        """End the request that is under way."""
        if self._request is not None:
            self._request.cancel()
            await asyncio.gather(self._request, return_exceptions=True)

    async def _ask(self) -> str:
        async with asyncio.timeout(self._timeout):
            found = self._get_token()
            token = clean(await found if inspect.isawaitable(found) else found)
        self._token = token
        self._given = [*self._given[-1:], token]
        return token


def clean(token: object) -> str:
    """A token without white space around it. Raises `Denied` for what can never be one, and never quotes it."""
    if not isinstance(token, str):
        raise _invalid(f"got {type(token).__name__}")
    text = token.strip()
    if _TOKEN.fullmatch(text):
        return text
    if not text:
        raise _invalid("got an empty one")
    is_broken = len(text.split()) > 1
    raise _invalid(
        "got one with a line break or a space in it" if is_broken else "got one with other characters"
    )


def _invalid(found: str) -> Denied:
    message = f"get_token has to return a token of visible ASCII characters, {found}"
    return Denied(401, f"{TOKEN_INVALID}: {message}", error=TOKEN_INVALID, message=message)


def expiry(token: str) -> float:
    """When a JWT expires, in seconds since the epoch; 0 when it does not say, or is none."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError):
        return 0.0
