"""Requests and handshakes of an address share its limit, and the largest token comes in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from realtime.auth.credentials import MAX_TOKEN_LENGTH
from tests.e2e.harness import Stack

Header = tuple[str, str]
_addresses = (f"2001:db8:{number:x}::7" for number in itertools.count(1))


def sent_by(address: str) -> Header:
    """As a load balancer writes it that adds ports."""
    return ("X-Forwarded-For", f"[{address}]:50001")


def new_address() -> Header:
    """A client with an address of its own."""
    return sent_by(next(_addresses))


@pytest.fixture(scope="module")
def guarded(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A socket server behind a proxy. An address may send one request, the process many."""
    limits = {"TRUSTED_PROXIES": "127.0.0.1", "REALTIME_LIMIT_ADDRESS_HANDSHAKES": "0.001"}
    with Stack(tmp_path_factory.mktemp("guarded"), redis_url, **limits) as stack:
        stack.start_sockets()
        yield stack


@pytest.mark.parametrize("path", ["/healthz", "/hub/"])
async def test_plain_requests_share_the_limit_of_their_address_with_handshakes(guarded: Stack, path: str):
    stack, client = guarded, new_address()
    assert (await stack.http("GET", path, [client])).status != 503
    refused = await stack.http("GET", path, [client])
    assert (refused.status, refused.error["code"]) == (503, "at_capacity")
    assert int(refused.headers["retry-after"]) > 0
    handshake = await stack.handshake(token=stack.sign(), headers=[client])
    stack.assert_refused(handshake, 503, "at_capacity")
    assert int(handshake.headers["retry-after"]) > 0
    assert handshake.body == refused.body
    assert (await stack.http("GET", path, [new_address()])).status != 503


# --- One rule for the size of a head and of a token ------------------------------------------------------


@pytest.mark.parametrize("source", ["Authorization", "Sec-WebSocket-Protocol"])
async def test_largest_token_comes_in_beside_more_cookies_than_a_browser_has_for_most_sites(
    uvicorn_stack: Stack, source: str
):
    token = uvicorn_stack.sign_long(MAX_TOKEN_LENGTH)
    value = f"Bearer {token}" if source == "Authorization" else f"realtime.v1, bearer.{token}"
    headers = [("Cookie", "x=" + "y" * 20_000), (source, value)]
    assert (await uvicorn_stack.handshake(headers=headers)).status == 101
    verdict = await uvicorn_stack.http("GET", "/hub/", headers)
    assert verdict.status == (204 if source == "Authorization" else 401)  # a request offers no sub-protocols
