"""Whether a request may come in now: decided by its head alone, before anything is made of it.

Every request is charged to the address that it comes from. A handshake is charged to the process as well, but only
after that: requests of an address beyond its limit take nothing from the other addresses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from http import HTTPStatus

from realtime.conf import conf
from realtime.connections.addresses import Addresses, client_address
from realtime.connections.handshake import Refused, at_capacity, check_capacity
from realtime.connections.rate_limit import Bucket
from realtime.protocol.namespaces import namespaces
from realtime.telemetry import metrics

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]
Peer = tuple[str, int] | None

LOG_SECONDS = 1.0
"""Seconds in which a flood of refused requests is one line in the log."""

_handshakes = Bucket()
_addresses = Addresses()


def check_address(peer: Peer, headers: Headers) -> None:
    """Charge a request to its address. Raises `Refused` when too many come from there.

    Only with `TRUSTED_PROXIES`: without, the address may be that of a proxy, and so that of every client.
    """
    rate, proxies = conf().limits.address_handshakes, conf().trusted_proxies
    if not (rate and proxies):
        return
    forwarded = ",".join(value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for")
    address = client_address(peer[0] if peer else "", forwarded, proxies)
    if _addresses.take(address, time.monotonic(), rate):
        raise at_capacity()


def check_process() -> None:
    """Charge a handshake to this process. Raises `Refused` when it has too many connections or handshakes."""
    check_capacity()
    rate = conf().limits.handshakes
    if _handshakes.take(time.monotonic(), rate, rate):
        raise at_capacity()


def refuse_request(peer: Peer, headers: Headers) -> Refused | None:
    """The refusal of a plain request that its address may not send now, logged; None: it may."""
    try:
        check_address(peer, headers)
    except Refused as refused:
        _log.add(refused)
        return refused
    return None


def refuse_handshake(peer: Peer, headers: Headers, path: bytes) -> Refused | None:
    """The refusal of a handshake that may not come in now, counted and logged; None: it may."""
    try:
        check_address(peer, headers)
        check_process()
    except Refused as refused:
        namespace = path.strip(b"/").decode("latin-1")
        metrics.HANDSHAKES.labels(namespace if namespace in namespaces() else "unknown", refused.code).inc()
        _log.add(refused)
        return refused
    return None


def response(refused: Refused, more: Headers) -> bytes:
    """The refusal as HTTP/1.1, with `more` headers; the connection is closed after it."""
    lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}".encode()]
    lines += [b"%b: %b" % header for header in more]
    lines += [f"{name.lower()}: {value}".encode() for name, value in refused.headers.items()]
    lines += [b"content-length: %d" % len(refused.body), b"connection: close", b"", refused.body]
    return b"\r\n".join(lines)


class _Log:
    """Logs requests that were refused, in one line for all of `LOG_SECONDS`."""

    def __init__(self) -> None:
        self._count = 0
        self._logged_at = float("-inf")

    def add(self, refused: Refused) -> None:
        """Count one more, and log the count unless a line was logged within `LOG_SECONDS`."""
        self._count += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            logger.info("requests refused", extra={"code": refused.code, "count": self._count})
            self._count, self._logged_at = 0, now


_log = _Log()
