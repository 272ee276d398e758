from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.connections import addresses
from realtime.connections.addresses import Addresses, client_address

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
        ("10.0.0.1", "::1", "::/64"),
        # What some load balancers add to an address.
        ("10.0.0.1", "203.0.113.9:50001", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9:", "203.0.113.9"),
        ("10.0.0.1", '"203.0.113.9:50001"', "203.0.113.9"),
        ("10.0.0.1", "[2001:db8:1:2::7]", "2001:db8:1:2::/64"),
        ("10.0.0.1", "[2001:db8:1:2::7]:443", "2001:db8:1:2::/64"),
        ("10.0.0.1", '"[2001:db8:1:2::7]:443"', "2001:db8:1:2::/64"),
        ("10.0.0.1", '"[2001:db8:1:2::7]"', "2001:db8:1:2::/64"),
        ("10.0.0.1", "[2001:db8:1:2::7]:_hidden", "2001:db8:1:2::/64"),  # RFC 7239: a port may be a name
        ("10.0.0.1", "fe80::1%eth0", "fe80::/64"),
        ("10.0.0.1", "[fe80::1%eth0]:443", "fe80::/64"),
        ("10.0.0.1", "[::ffff:203.0.113.9]:443", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9:1, 10.0.0.2:2", "203.0.113.9"),  # a trusted proxy with a port is trusted
        ("10.0.0.1", "203.0.113.9, [::ffff:10.0.0.2]:80", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9,, ,10.0.0.2,", "203.0.113.9"),  # empty elements of a list mean nothing
        ("10.0.0.1", "[203.0.113.9]", "203.0.113.9"),
        # No addresses: counted together, and as the address of no client that has one.
        ("10.0.0.1", "unknown", "unknown"),
        ("10.0.0.1", "_hidden", "unknown"),
        ("10.0.0.1", "203.0.113.9:50001:1", "unknown"),
        ("10.0.0.1", "[2001:db8::1", "unknown"),
        ("10.0.0.1", "2001:db8::1]:443", "unknown"),
        ("10.0.0.1", "203.0.113.9.:1", "unknown"),
        ("10.0.0.1", "٢٠٣.0.113.9:1", "unknown"),
        ("10.0.0.1", "[" + ":" * 60_000 + "]", "unknown"),
        ("10.0.0.1", "203.0.113.9:" + "1" * 60_000, "unknown"),
    ],
)
def test_address_is_the_last_one_that_our_proxies_did_not_add(peer: str, forwarded: str, address: str):
    assert client_address(peer, forwarded, PROXIES) == address


def test_chain_of_proxies_is_followed_so_far_and_no_further():
    assert client_address("10.0.0.1", "203.0.113.9" + ",10.0.0.2" * 15, PROXIES) == "203.0.113.9"
    assert client_address("10.0.0.1", "203.0.113.9" + ",10.0.0.2" * 6_000, PROXIES) == "10.0.0.2"


def test_each_client_of_a_proxy_that_adds_ports_has_a_bucket_of_its_own():
    """Before, all of them together had one: `unknown`."""
    known = Addresses()
    noisy, quiet = (
        client_address("10.0.0.1", entry, PROXIES) for entry in ("203.0.113.9:50001", "203.0.113.10:50001")
    )
    assert any(known.take(noisy, 1000.0, 1) for _ in range(10))
    assert known.take(quiet, 1000.0, 1) == 0
    again = client_address("10.0.0.1", "203.0.113.9:50002", PROXIES)
    assert known.take(again, 1000.0, 1) > 0


@given(st.text() | st.text(alphabet='0123456789abcdef.:[]%",_ '))
def test_no_header_is_too_odd(forwarded: str):
    assert client_address("10.0.0.1", forwarded, PROXIES)


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
    assert len(known) == 10
    refused = [number for number in range(90, 100) if known.take(str(number), 1000.0, 0.25)]
    assert refused == list(range(90, 100))  # the latest are the ones that are remembered
