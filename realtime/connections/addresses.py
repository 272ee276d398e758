"""The address that a request comes from: behind proxies, the last one that no trusted proxy has added."""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from realtime.connections.rate_limit import Bucket

Address = IPv4Address | IPv6Address
MOST = 10_000
"""Addresses that are remembered at once."""
IPV6_PREFIX = 64
"""Bits of an IPv6 address that count: a provider gives each customer such a prefix (RFC 6177)."""
MOST_PROXIES = 16
"""Entries of X-Forwarded-For that are read at most."""
LONGEST_ENTRY = 100
"""Characters; a longer entry is no address and is not parsed."""
_ENTRY = re.compile(
    r"""
    \[ (?P<v6> [0-9A-Fa-f:.]+ ) (?: % [^\]]* )? \]  (?: : [0-9A-Za-z._-]* )?  # [2001:db8::1]:443
    | (?P<v4> [0-9.]+ ) : [0-9A-Za-z._-]*                                    # 203.0.113.9:50001
    """,
    re.VERBOSE | re.ASCII,
)
"""An address with what proxies add to it: brackets and a port, which may be a name (RFC 7239 §6)."""


def client_address(peer: str, forwarded: str, trusted: tuple[str, ...]) -> str:
    """The address that a request comes from, as text to count by.

    `forwarded` is X-Forwarded-For: each proxy appends the address that it got the request from, so it is read from the
    right, and only as far as `trusted` proxies wrote it. Requests with an entry that is no address share one text,
    `unknown`.
    """
    address = _parse(peer)
    for _ in range(MOST_PROXIES):
        if address is None or not _is_trusted(address, trusted) or not forwarded.strip():
            break
        forwarded, _, entry = forwarded.rpartition(",")
        if entry.strip():
            address = _parse(entry)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))
    return str(address or "unknown")


def _parse(entry: str) -> Address | None:
    """The address of an entry: bare, with a port, in brackets or in quotes. None: it has none."""
    entry = entry.strip()
    return _read(entry) if len(entry) <= LONGEST_ENTRY else None


@lru_cache(maxsize=1000)
def _read(entry: str) -> Address | None:
    text = entry.removeprefix('"').removesuffix('"')
    if found := _ENTRY.fullmatch(text):
        text = found["v6"] or found["v4"]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


@lru_cache(maxsize=1000)
def _is_trusted(address: Address, trusted: tuple[str, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks(trusted))


@lru_cache(maxsize=1)
def networks(trusted: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    """`TRUSTED_PROXIES` parsed. Raises `ValueError`."""
    return tuple(ip_network(text) for text in trusted)


class Addresses:
    """A bucket for each of the `MOST` addresses that were seen last."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str, now: float, rate: float) -> float:
        """0 when one more request may come from there now, else the seconds to wait."""
        if not rate:
            return 0.0
        bucket = self._buckets.pop(address, None) or Bucket()
        self._buckets[address] = bucket
        if len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        return bucket.take(now, rate, 4 * rate)
