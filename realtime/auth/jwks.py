"""The keys that an identity provider publishes (`JWT_JWK_URL`): fetched in a thread, and kept through an outage."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

from jwt import PyJWK

from realtime.auth.download import download
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

KEYS_SECONDS = 300.0
"""The age at which keys are fetched again: a key that the provider has withdrawn is refused here after this."""
REFETCH_SECONDS = 1.0
"""The shortest time between two fetches."""
GIVE_UP = 4
"""Time-outs after which a fetch no longer holds up the next one: nothing bounds the resolver of names."""
KEYS_BYTES = 512 * 1024
"""The longest answer that is read."""


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
        algorithm: that of the tokens, for example "RS256"; keys for another one are left out.
        timeout: the longest wait for a fetch, in seconds.
        outage: how long keys outlive `KEYS_SECONDS` while the endpoint does not answer, in seconds.
    """

    def __init__(self, url: str, algorithm: str, *, timeout: float, outage: float) -> None:
        self.url = url
        self.algorithm = algorithm
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
            document = download(self.url, timeout=self.timeout, most=KEYS_BYTES)
            self._keys = _parse(document, self.algorithm)
            self._fetched_at = time.monotonic()
            self._is_down = False
        except Exception as error:
            # No answer may end this thread without a result: known keys remain valid meanwhile.
            self._is_down = True
            logger.warning("no answer from JWT_JWK_URL", extra={"error": spelled(error)})
        finally:
            self._tried_at = time.monotonic()
            done.set_result(None)


def _parse(body: bytes, algorithm: str) -> Mapping[str, PyJWK]:
    """The keys for signatures of this algorithm, by id. Raises `ValueError` when there is none."""
    document = json.loads(body)
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("expected a JSON object with a list of keys")
    usable = {str(key.key_id): key for key in (_usable(data, algorithm) for data in keys) if key}
    if not usable:
        raise ValueError(f"no key for {algorithm} among {len(keys)} keys")
    return usable


def _usable(data: Any, algorithm: str) -> PyJWK | None:
    """The key, if it has an id and is for signatures of this algorithm: others may be listed, by the same id, too."""
    try:
        is_meant = data["kid"] and data.get("use") in (None, "sig") and data.get("alg") in (None, algorithm)
        return PyJWK(data, algorithm) if is_meant else None
    except Exception:
        return None  # for an odd key the library raises any exception; it is not to take the others with it
