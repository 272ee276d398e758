"""A request that may not come in costs little, and costs the other clients nothing."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from dev.embedded_redis import EmbeddedRedis
from realtime.auth.credentials import MAX_TOKEN_LENGTH
from realtime.server.readiness import PROVEN_SECONDS
from tests.e2e.harness import Stack

TICKS = os.sysconf("SC_CLK_TCK")
Header = tuple[str, str]
_addresses = (f"2001:db8:{number:x}::7" for number in itertools.count(1))


def sent_by(address: str) -> Header:
    """As a load balancer writes it that adds ports."""
    return ("X-Forwarded-For", f"[{address}]:50001")


def somebody() -> Header:
    """A client with an address of its own."""
    return sent_by(next(_addresses))


class Guarded:
    """A socket server behind a proxy, on a Redis of its own. An address may send one request, the process many."""

    def __init__(self, stack: Stack, server: EmbeddedRedis) -> None:
        self.stack = stack
        self.pid = stack.start_sockets().pid
        self.redis = redis.Redis.from_url(server.url)

    @property
    def cpu_seconds(self) -> float:
        """What the process has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def publishes(self) -> int:
        """How often anything was published so far: a proof of readiness does so once."""
        return int(self.redis.info("commandstats").get("cmdstat_publish", {}).get("calls", 0))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with EmbeddedRedis() as server:
        limits = {"TRUSTED_PROXIES": "127.0.0.1", "REALTIME_LIMIT_ADDRESS_HANDSHAKES": "0.001"}
        stack = Stack(tmp_path_factory.mktemp("guarded"), server.url, **limits)
        try:
            yield Guarded(stack, server)
        finally:
            stack.stop()
        stack.assert_calm()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/asyncapi.json", "/hub/", "/nothing"])
async def test_plain_requests_share_the_limit_of_their_address_with_handshakes(guarded: Guarded, path: str):
    stack, client = guarded.stack, somebody()
    assert (await stack.http("GET", path, [client])).status != 503
    refused = await stack.http("GET", path, [client])
    assert (refused.status, refused.error["code"]) == (503, "at_capacity")
    assert int(refused.headers["retry-after"]) > 0
    handshake = await stack.handshake(token=stack.sign(), headers=[client])
    stack.assert_refused(handshake, 503, "at_capacity")
    assert int(handshake.headers["retry-after"]) > 0
    assert handshake.body == refused.body
    assert (await stack.http("GET", path, [somebody()])).status != 503


async def test_readiness_is_proven_once_a_second_however_often_it_is_asked(guarded: Guarded):
    async def ask() -> int:
        return (await guarded.stack.http("GET", "/readyz", [somebody()])).status

    assert await ask() == 200
    before, began = guarded.publishes, time.monotonic()
    assert {await each for each in asyncio.as_completed([ask() for _ in range(400)])} == {200}
    # Instances also greet each other, once.
    assert guarded.publishes - before <= (time.monotonic() - began) / PROVEN_SECONDS + 3
    before = guarded.publishes
    await asyncio.sleep(PROVEN_SECONDS)
    assert await ask() == 200
    assert guarded.publishes > before


async def test_refused_handshake_costs_less_than_one_that_is_looked_at(guarded: Guarded):
    """CPU of the server for 1,000 of each: what is saved is routing, headers, sub-protocols and the log."""

    async def cost(*headers: Header) -> float:
        before = guarded.cpu_seconds
        for _ in range(20):
            answers = (guarded.stack.handshake(headers=[*headers] or [somebody()]) for _ in range(50))
            await asyncio.gather(*answers)
        return guarded.cpu_seconds - before

    client = somebody()
    await guarded.stack.http("GET", "/healthz", [client])
    await cost(client)
    assert await cost(client) < 0.75 * await cost()


async def test_what_an_address_is_refused_takes_nothing_from_the_process(redis_url: str, tmp_path: Path):
    limits = {"REALTIME_LIMIT_ADDRESS_HANDSHAKES": "0.001", "REALTIME_LIMIT_HANDSHAKES": "3"}
    stack = Stack(tmp_path, redis_url, TRUSTED_PROXIES="127.0.0.1", **limits)
    try:
        stack.start_sockets()
        flood = somebody()
        answers = [await stack.handshake(token=stack.sign(), headers=[flood]) for _ in range(100)]
        assert [answer.status for answer in answers] == [101, *(99 * [503])]
        for _ in range(2):
            assert (await stack.handshake(token=stack.sign(), headers=[somebody()])).status == 101
    finally:
        stack.stop()
    stack.assert_calm()


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


async def test_larger_token_is_refused_by_verdict_and_handshake_in_the_same_words(uvicorn_stack: Stack):
    token = uvicorn_stack.sign_long(MAX_TOKEN_LENGTH + 2)
    handshake = await uvicorn_stack.handshake(token=token)
    uvicorn_stack.assert_refused(handshake, 401, "token_invalid")
    assert "longer than 8192 characters" in handshake.error["message"]
    verdict = await uvicorn_stack.http("GET", "/hub/", [("Authorization", f"Bearer {token}")])
    assert (verdict.status, verdict.body) == (handshake.status, handshake.body)
