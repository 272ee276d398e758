from __future__ import annotations

import pytest

from realtime import addresses
from realtime.addresses import Addresses, client_address

PROXIES = ("10.0.0.0/8", "127.0.0.1", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # no proxy of ours: what it says is not believed
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),  # the first one is what the client made up
        ("127.0.0.1", "198.51.100.1, 10.2.3.4", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "nonsense", "unknown"),
        ("10.0.0.1", "1.1.1.1, nonsense", "unknown"),
        ("10.0.0.1", "x" * 100_000, "unknown"),
        ("", "", "unknown"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("fd00::1", "2001:db8:1:2:aaaa::7", "2001:db8:1:2::/64"),
    ],
)
def test_address_is_the_last_one_that_our_proxies_did_not_add(peer: str, forwarded: str, address: str):
    assert client_address(peer, forwarded, PROXIES) == address


def test_one_address_does_not_use_up_what_another_may():
    known = Addresses()
    assert not any(known.take("a", 1000.0, 1) for _ in range(4))
    assert known.take("a", 1000.0, 1) > 0
    assert known.take("b", 1000.0, 1) == 0
    assert known.take("a", 1001.0, 1) == 0


def test_rate_of_zero_is_no_limit():
    known = Addresses()
    assert not any(known.take("a", 1000.0, 0) for _ in range(100))


def test_addresses_are_remembered_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(addresses, "MOST", 10)
    known = Addresses()
    for number in range(100):
        known.take(str(number), 1000.0, 1)
    assert list(known._buckets) == [str(number) for number in range(90, 100)]
