"""Recovery after a loss (docs/protocol.md, "Recovery"), and giving up."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial

import pytest
from websockets.asyncio.client import connect

from realtime.client import Client, Denied, backoff, connection, retries, session
from tests.client.scripted import (
    Refusal,
    ScriptedServer,
    Tokens,
    reading,
    token,
)
from tests.e2e.harness import QUIET, eventually


async def test_connections_are_made_by_whom_one_wants(server: ScriptedServer):
    async with reading(server, connect=partial(connect, user_agent_header="our bot")):
        visit = await server.visit(1)
        assert visit.websocket.request is not None
        assert visit.websocket.request.headers["User-Agent"] == "our bot"


async def test_address_is_chosen_anew_for_every_attempt(server: ScriptedServer):
    addresses = itertools.cycle([server.url, f"{server.url}?second"])
    async with Client(addresses.__next__, token, reconnection_delay=0.01):
        (await server.visit(1)).drop()
        assert (await server.visit(2)).path == "/hub/?second&resume=1"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many attempts had failed before each wait."""
    waits: list[int] = []

    def backoff(attempt: int, first: float, most: float) -> float:
        waits.append(attempt)
        return 0.0

    monkeypatch.setattr(retries, "backoff", backoff)
    return waits


async def test_lost_connection_says_why(server: ScriptedServer):
    async with reading(server) as reader:
        await (await server.visit(1)).fail(1001, "some reason")
        (await server.visit(2)).drop()
        await reader.heard("connection:lost", 2)
        closed, broken = (event.data for event in reader.named("connection:lost"))
        assert (closed["code"], closed["reason"], broken["code"]) == (1001, "some reason", 1006)


async def test_refused_handshake_is_the_end_and_says_why(server: ScriptedServer):
    server.script.append(Refusal(403))
    async with reading(server) as reader:
        with pytest.raises(Denied) as denied:
            await reader.end()
        error = denied.value
        assert (error.code, error.reason) == (403, "some_code: some words")
        assert (error.status, error.error, error.message) == (403, "some_code", "some words")
        [refused] = reader.named("connection:refused")
        assert refused.data == {"status": 403, "code": "some_code", "message": "some words"}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        '{"error": "no such page"}',
        '{"detail": "Not Found"}',
        '{"error": {"code": 404, "message": "Not Found"}}',
        '{"error": {"code": "NOT_FOUND", "message": "no such function"}}',
    ],
)
async def test_address_that_something_else_does_not_know_is_tried_again(server: ScriptedServer, body: str):
    server.script.append(Refusal(404, body=body))
    async with reading(server) as reader:
        await server.visit(1)
        assert (await reader.heard("connection:lost")).data["code"] == 404
        assert (await reader.heard("connection:refused")).data["status"] == 404


async def test_close_that_is_final_says_why_and_that_no_handshake_was_refused(server: ScriptedServer):
    async with reading(server) as reader:
        await (await server.visit(1)).fail(4403, "logged out")
        with pytest.raises(Denied) as denied:
            await reader.end()
        error = denied.value
        assert (error.code, error.reason, error.message) == (4403, "logged out", "logged out")
        assert (error.status, error.error) == (None, "")
        assert reader.named("connection:refused") == []


BARE = Refusal(403, body="")
"""How daphne refuses, whatever the reason is."""


async def test_bare_refusal_is_explained_by_a_plain_request(server: ScriptedServer):
    server.script.extend([BARE, Refusal(403)])
    async with reading(server) as reader:
        with pytest.raises(Denied, match="403 some_code: some words"):
            await reader.end()


async def test_bare_refusal_of_a_server_without_redis_is_not_the_end(server: ScriptedServer):
    server.script.extend([BARE, Refusal(503, {"Retry-After": "7"})])
    async with reading(server) as reader:
        lost = await reader.heard("connection:lost")
        assert (lost.data["code"], lost.data["reason"]) == (503, "some_code: some words")
        assert lost.data["retry_in"] >= 7


async def test_bare_refusal_of_an_old_token_brings_a_new_one(server: ScriptedServer):
    server.script.extend([BARE, Refusal(401)])
    tokens = Tokens()
    async with reading(server, tokens) as reader:
        assert (await server.visit(1)).token.startswith("2.")
        assert reader.named("connection:lost") == []


async def test_bare_refusal_that_is_over_is_not_the_end(server: ScriptedServer):
    server.script.extend([BARE, Refusal(204, body="")])
    async with reading(server) as reader:
        await server.visit(1)
        assert (await reader.heard("connection:lost")).data["code"] is None


async def test_waits_grow_until_a_connection_was_stable(
    server: ScriptedServer, attempts: list[int], monkeypatch: pytest.MonkeyPatch
):
    async with reading(server):
        for number in range(1, 5):
            (await server.visit(number)).drop()
        await server.visit(5)
        assert attempts == [0, 1, 2, 3]
        monkeypatch.setattr(session, "STABLE_SECONDS", 0.0)
        server.script.extend(["hang"] * 2)
        (await server.visit(5)).drop()
        for number in (6, 7):
            await (await server.visit(number)).fail(1011)  # never ready: it does not count
        await server.visit(8)
        assert attempts[4:] == [0, 1, 2]


async def test_it_gives_up_after_as_many_attempts_as_it_is_told(server: ScriptedServer, attempts: list[int]):
    server.script.extend([Refusal(503)] * 9)
    async with reading(server, reconnection_attempts=2) as reader:
        with pytest.raises(ConnectionError, match=r"3 attempts, the last: 503 some_code"):
            await reader.end()
        assert server.handshakes == 3
        assert attempts == [0, 1]


async def test_address_that_cannot_work_reaches_readers_and_waiting_calls_and_is_not_tried_again():
    asked = []

    def url() -> str:
        asked.append(1)
        return "http://example.com/hub/?token=secret"

    async with Client(url, lambda: "x") as client:
        for _ in range(2):
            with pytest.raises(ValueError, match="url: expected") as caught:
                await anext(aiter(client))
        with pytest.raises(ValueError, match="'http'"):
            await client.connected()
    assert len(asked) == 1
    assert "secret" not in repr(caught.value)


async def test_call_that_waits_for_a_connection_hears_that_there_will_be_none(server: ScriptedServer):
    server.script.extend([Refusal(403), Refusal(503)])
    async with Client(server.url, token) as client:
        with pytest.raises(Denied):
            await client.connected()
    async with Client(server.url, token, reconnection_attempts=0) as client:
        with pytest.raises(ConnectionError):
            await client.connected()
    async with reading(server) as reader:
        await reader.client.connected()
        await (await server.visit(1)).fail(1000)
        await reader.end()
        with pytest.raises(ConnectionError):
            await reader.client.connected()


async def test_heartbeats_begin_somewhere_in_the_interval_and_then_keep_it(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    waits: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        waits.append((least, most))
        return least

    monkeypatch.setattr(connection.random, "uniform", uniform)
    server.heartbeat_interval = 0.02
    async with reading(server):
        visit = await server.visit(1)
        await eventually(lambda: len(visit.events("heartbeat")) > 3)
        assert waits == [(0.5, 1)]


async def test_who_knows_of_another_network_comes_again_after_a_first_wait(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retries, "backoff", lambda attempt, *_: 3600.0 if attempt else 0.0)
    server.script.extend([Refusal(503)] * 2)
    async with reading(server, reconnection_attempts=2) as reader:
        await reader.heard("connection:lost", 2)
        reader.client.reconnect()  # while it waits for the next attempt
        (await server.visit(1)).drop()
        await reader.heard("connection:ready", 2)
        reader.client.reconnect()  # from a connection
        await reader.heard("connection:ready", 3)


async def test_hurry_does_not_matter_to_a_server_that_wants_to_be_left_alone(server: ScriptedServer):
    server.script.append(Refusal(503, {"Retry-After": "9999"}))
    async with reading(server) as reader:
        lost = await reader.heard("connection:lost")
        reader.client.reconnect()
        await asyncio.sleep(QUIET)
        assert server.handshakes == 1
        assert 600 <= lost.data["retry_in"] < 601


async def test_hurry_is_over_with_the_next_connection(server: ScriptedServer, attempts: list[int]):
    server.script.append("hang")
    async with reading(server) as reader:
        visit = await server.visit(1)
        reader.client.reconnect()
        visit.go.set()
        await reader.client.connected()
        visit.drop()
        await server.visit(2)
        assert attempts == [0]


async def test_what_is_sent_after_a_reconnect_waits_for_the_next_connection(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
        reader.client.reconnect()
        await reader.client.send("presence:away")
        await reader.client.call("presence:online")
        assert [frame["event"] for frame in server.visits[0].sent] == []
        names = [frame["event"] for frame in server.visits[1].sent]
        assert [name for name in names if name.startswith("presence")] == ["presence:away", "presence:online"]


def test_waits_grow_up_to_the_cap_with_full_jitter():
    for attempt, most in ((0, 0.5), (3, 4.0), (20, 20.0), (5000, 20.0)):
        waits = [backoff(attempt, 0.5, 20.0) for _ in range(500)]
        assert 0 <= min(waits) < most * 0.2
        assert most * 0.8 < max(waits) <= most
