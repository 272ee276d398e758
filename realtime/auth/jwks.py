"""The keys that an identity provider publishes (`JWT_JWK_URL`): fetched in a thread, and kept through an outage."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

from jwt import PyJWK, PyJWKSet

from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

KEYS_SECONDS = 300.0
"""The keys are asked for again after so long: a key that was taken away there is refused here."""
REFETCH_SECONDS = 1.0
"""At least so long between two fetches."""
GIVE_UP = 4
"""After so many time-outs a fetch whose answer drips in is left to itself, and another one begins."""
KEYS_BYTES = 512 * 1024
"""The largest key set that is read."""


class UnknownKey(Exception):
    """A key set that was just fetched does not have the key."""


class KeysUnavailable(Exception):
    """The key is not known, and the identity provider does not answer: whether it exists can't be told."""


class KeySet:
    """The keys of `JWT_JWK_URL` by their id.

    A token waits for a fetch only when its key is unknown, or was last seen more than `KEYS_SECONDS` ago. A client can
    make up unknown keys: so only one fetch runs at a time, and they are `REFETCH_SECONDS` apart, also when the endpoint
    hangs. While it can't be asked, known keys stay good for `outage` seconds more.
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
        """Whether the key was there when the keys were fetched, at most so long ago."""
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
        """Wait for the fetch that is running, if there is one, but not for longer than `timeout`."""
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
            # A server that answers anything at all must not end this: known keys stay good meanwhile.
            self._is_down = True
            logger.warning("no answer from JWT_JWK_URL", extra={"error": spelled(error)})
        finally:
            self._tried_at = time.monotonic()
            done.set_result(None)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead from https to http."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _download(url: str, timeout: float) -> bytes:
    """What is there, if it is not too large and does not come too slowly. Blocks. Raises `OSError` or `ValueError`."""
    deadline, body = time.monotonic() + timeout, bytearray()
    with urllib.request.build_opener(_NoRedirects).open(url, timeout=timeout) as response:
        while part := response.read1(KEYS_BYTES):
            body += part
            if len(body) > KEYS_BYTES:
                raise ValueError(f"more than {KEYS_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete after {timeout:g} s")
    return bytes(body)


def _parse(body: bytes) -> Mapping[str, PyJWK]:
    """The keys that sign, by id. Raises `ValueError` or `jwt.PyJWTError`."""
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("expected a JSON object with keys")
    keys = PyJWKSet.from_dict(document).keys
    return {str(key.key_id): key for key in keys if key.key_id and key.public_key_use in {"sig", None}}
