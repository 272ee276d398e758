"""Access tokens: asked for once at a time, and kept until shortly before they expire."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
import time
from collections.abc import Awaitable, Callable

from .errors import Denied, NoToken

GetToken = Callable[[], str | Awaitable[str]]

SKEW_SECONDS = 10.0
"""A token that expires within this time counts as expired: it takes time to arrive."""

logger = logging.getLogger(__name__)


class Tokens:
    """The token there is, and the one request for another."""

    def __init__(self, get_token: GetToken, timeout: float) -> None:
        self._get_token = get_token
        self._timeout = timeout
        self._token: str | None = None
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
        request = self._request
        # Not awaited itself: a caller that is cancelled must not end a request that another one may need.
        await asyncio.wait([request])
        cause = None if request.cancelled() else request.exception()
        if isinstance(cause, Denied):
            raise cause
        if request.cancelled() or cause is not None:
            logger.warning("get_token failed", exc_info=cause)
            raise NoToken(f"get_token failed: {cause!r}") from cause
        return request.result()

    def forget(self) -> None:
        """Drop the token: the server does not accept it any more."""
        self._token = None

    async def close(self) -> None:
        """End the request that is under way."""
        if self._request is not None:
            self._request.cancel()
            await asyncio.gather(self._request, return_exceptions=True)

    async def _ask(self) -> str:
        async with asyncio.timeout(self._timeout):
            token = self._get_token()
            self._token = await token if inspect.isawaitable(token) else token
        return self._token


def expiry(token: str) -> float:
    """When a JWT expires, in seconds since the epoch; 0 when it does not say, or is none."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (LookupError, TypeError, ValueError):
        return 0.0
