"""Whose handshake it is, as far as an address tells: behind proxies the last one that they did not add themselves."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from realtime.limits import Bucket

Address = IPv4Address | IPv6Address
MOST = 10_000
"""So many addresses are remembered."""
IPV6_PREFIX = 64
"""What one customer of a provider has is one address here (RFC 6177)."""


def client_address(peer: str, forwarded: str, trusted: tuple[str, ...]) -> str:
    """The address that a handshake comes from, as text to count by.

    `forwarded` is X-Forwarded-For: each proxy appends whom it heard it from, so it is read from the right, and only
    as far as `trusted` proxies wrote it.
    """
    address = _parse(peer)
    for text in reversed(forwarded.split(",")):
        if address is None or not _is_trusted(address, trusted) or not text.strip():
            break
        address = _parse(text.strip())
    if isinstance(address, IPv6Address):
        return str(ip_network((address, IPV6_PREFIX), strict=False))
    return str(address or "unknown")


def _parse(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_trusted(address: Address, trusted: tuple[str, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks(trusted))


@lru_cache(maxsize=1)
def networks(trusted: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    """`TRUSTED_PROXIES` parsed. Raises `ValueError`."""
    return tuple(ip_network(text) for text in trusted)


class Addresses:
    """A bucket for each address, as many as were seen lately."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, address: str, now: float, rate: float) -> float:
        """0 when one more handshake may come from there now, else the seconds to wait."""
        if not rate:
            return 0.0
        bucket = self._buckets.pop(address, None) or Bucket()
        self._buckets[address] = bucket
        if len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        return bucket.take(now, rate, 4 * rate)
