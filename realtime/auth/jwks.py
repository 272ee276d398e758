"""The keys that an identity provider publishes (`JWT_JWK_URL`): fetched in a thread, and kept through an outage."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future
from http.client import HTTPResponse
from threading import Thread
from typing import Any
from urllib.error import HTTPError

from jwt import PyJWK, PyJWKSet

from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

KEYS_SECONDS = 300.0
"""The age at which keys are fetched again: a key that the provider has withdrawn is refused here after this."""
REFETCH_SECONDS = 1.0
"""The shortest time between two fetches."""
GIVE_UP = 4
"""Time-outs after which a fetch whose answer trickles in no longer holds up the next fetch."""
KEYS_BYTES = 512 * 1024
"""The size of the largest key set that is read."""


class UnknownKey(Exception):
    """The identity provider's key set does not contain the key."""


class KeysUnavailable(Exception):
    """The key is not known, and the identity provider does not answer, so the key may exist."""


class KeySet:
    """The keys of `JWT_JWK_URL` by their id.

    A token waits for a fetch only when its key is unknown, or was last seen more than `KEYS_SECONDS` ago. Clients can
    invent key ids, so only one fetch runs at a time, and fetches are `REFETCH_SECONDS` apart, even when the endpoint
    hangs. While the endpoint does not answer, known keys remain valid for `outage` more seconds.

    Args:
        url: the address of the key set.
        timeout: the longest wait for a fetch, in seconds.
        outage: how long keys outlive `KEYS_SECONDS` while the endpoint does not answer, in seconds.
    """

    def __init__(self, url: str, *, timeout: float, outage: float) -> None:
        self.url = url
        self.timeout = timeout
        self.outage = outage
        self._keys: Mapping[str, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._is_down = False
        """The last fetch failed, or is overdue."""
        self._fetch: Future[None] | None = None

    async def find(self, kid: str) -> PyJWK:
        """The key. Raises `UnknownKey` or `KeysUnavailable`."""
        if not self._knows(kid, KEYS_SECONDS):
            self._begin_fetch()
            if not (self._is_down and self._knows(kid, KEYS_SECONDS + self.outage)):
                await self._wait()
        if self._knows(kid, KEYS_SECONDS + self.outage):
            return self._keys[kid]
        raise KeysUnavailable if self._is_down else UnknownKey

    def _knows(self, kid: str, seconds: float) -> bool:
        """Whether the key was in a key set that was fetched at most this many seconds ago."""
        return kid in self._keys and time.monotonic() < self._fetched_at + seconds

    def _begin_fetch(self) -> None:
        now = time.monotonic()
        is_running = self._fetch is not None and not self._fetch.done()
        if is_running and now < self._tried_at + GIVE_UP * self.timeout:
            return
        if now >= self._tried_at + REFETCH_SECONDS:
            self._tried_at = now
            fetch: Future[None] = Future()
            Thread(target=self._run, args=(fetch,), name="jwks", daemon=True).start()
            self._fetch = fetch

    async def _wait(self) -> None:
        """Wait for the running fetch, if there is one, for at most `timeout` seconds."""
        if self._fetch is None or self._fetch.done():
            return
        done, _ = await asyncio.wait([asyncio.wrap_future(self._fetch)], timeout=self.timeout)
        if not done:
            self._is_down = True

    def _run(self, done: Future[None]) -> None:
        try:
            self._keys = _parse(_download(self.url, self.timeout))
            self._fetched_at = time.monotonic()
            self._is_down = False
        except Exception as error:
            # No answer may end this thread without a result: known keys remain valid meanwhile.
            self._is_down = True
            logger.warning("no answer from JWT_JWK_URL", extra={"error": spelled(error)})
        finally:
            self._tried_at = time.monotonic()
            done.set_result(None)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: one could lead from https to http."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _download(url: str, timeout: float) -> bytes:
    """Download a document, in a thread. Raises `OSError`, or `ValueError` for more than `KEYS_BYTES`."""
    deadline, body = time.monotonic() + timeout, bytearray()
    with _open(url, timeout) as response:
        while part := response.read1(KEYS_BYTES):
            body += part
            if len(body) > KEYS_BYTES:
                raise ValueError(f"more than {KEYS_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete after {timeout:g} s")
    return bytes(body)


def _open(url: str, timeout: float) -> HTTPResponse:
    try:
        response: HTTPResponse = urllib.request.build_opener(_NoRedirects).open(url, timeout=timeout)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
    return response


def _parse(body: bytes) -> Mapping[str, PyJWK]:
    """The keys for signatures, by id. Raises `ValueError` or `jwt.PyJWTError`."""
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object with keys, got {type(document).__name__}")
    keys = PyJWKSet.from_dict(document).keys
    return {str(key.key_id): key for key in keys if key.key_id and key.public_key_use in {"sig", None}}
