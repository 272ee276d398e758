"""What is too much, and what happens then."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from signal import SIGKILL
from typing import Any

import jwt
import pytest

from tests.e2e.harness import Client, Stack, eventually, free_port, unique


@contextlib.contextmanager
def limited(
    directory: Path, redis_url: str, settings: Mapping[str, str] | None = None, **limits: str
) -> Iterator[Stack]:
    """A socket server with limits of its own."""
    env = {f"REALTIME_LIMIT_{name}": value for name, value in limits.items()}
    with Stack(directory, redis_url, **env, **(settings or {})) as stack:
        stack.start_sockets()
        yield stack


@pytest.fixture(scope="module")
def small(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system in which everything is soon too much."""
    directory = tmp_path_factory.mktemp("small")
    with limited(directory, redis_url, RATE="20", BURST="10", ROOMS="4", CONNECTIONS="3") as stack:
        yield stack


async def test_frames_beyond_the_rate_are_refused_one_by_one(small: Stack):
    async with small.client("hub") as client:
        began = time.monotonic()
        sent, refused = 0, list[dict[str, Any]]()
        while not refused:  # a slow machine may need more than one attempt
            numbers = range(sent, sent + 40)
            for number in numbers:
                await client.send("heartbeat", id=number)
            answers = [await client.next_frame(lambda frame: "id" in frame, "an answer") for _ in numbers]
            sent += len(numbers)
            assert [answer["id"] for answer in answers] == [*numbers]
            refused = [answer["data"] for answer in answers if answer["event"] == "error"]
        seconds = time.monotonic() - began
        assert sent - (10 + 20 * seconds) - 1 <= len(refused) <= 30
        assert {data["code"] for data in refused} == {"rate_limited"}
        assert all(0 < data["retry_after"] <= 2 for data in refused)
        await asyncio.sleep(refused[-1]["retry_after"])
        await client.call("heartbeat")


async def test_who_sends_garbage_too_fast_is_told_so(small: Stack):
    async with small.client("hub") as client:
        codes = set[str]()
        while "rate_limited" not in codes:  # a slow machine may need more than one attempt
            for _ in range(20):
                await client.raw("{")
            codes |= {(await client.expect("error"))["data"]["code"] for _ in range(20)}
        assert codes == {"invalid_json", "rate_limited"}


@pytest.mark.slow
async def test_client_that_goes_on_too_fast_for_ten_seconds_is_closed(small: Stack):
    async with small.client("hub") as client:

        async def flood() -> None:
            while True:
                await client.send("heartbeat")
                await asyncio.sleep(0.01)

        flooding = asyncio.create_task(flood())
        try:
            assert await client.expect_close() == 4429
        finally:
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)


async def test_rooms_beyond_the_limit_are_refused(small: Stack):
    async with small.client("hub") as client:  # in user: and presence: already
        threads = [unique("th") for _ in range(3)]
        for thread in threads[:2]:
            await client.call("join:thread", {"thread_id": thread})
        assert (await client.refused("join:thread", {"thread_id": threads[2]}))["code"] == "limit_exceeded"
        await client.call("join:thread", {"thread_id": threads[0]})
        await client.call("leave:thread", {"thread_id": threads[0]})
        await client.call("join:thread", {"thread_id": threads[2]})


async def test_connection_beyond_the_limit_is_refused_and_said_by_the_verdict(small: Stack):
    token = small.token(unique("u"), "attendant")
    await eventually(lambda: is_empty(small))
    async with contextlib.AsyncExitStack() as clients:
        for _ in range(3):
            await clients.enter_async_context(small.client("hub"))
        refused = await small.handshake(token=token)
        small.assert_refused(refused, 503, "at_capacity")
        assert int(refused.headers["retry-after"]) > 0
        verdict = await small.http("GET", "/hub/", [("Authorization", f"Bearer {token}")])
        assert (verdict.status, verdict.error["code"]) == (503, "at_capacity")
    await eventually(lambda: _accepted(small, token))


async def is_empty(stack: Stack) -> bool:
    """No connection is left of the test before."""
    return await stack.connections() == 0


async def _accepted(stack: Stack, token: str) -> bool:
    return (await stack.http("GET", "/hub/", [("Authorization", f"Bearer {token}")])).status == 204


async def test_handshakes_beyond_the_rate_are_refused(redis_url: str, tmp_path: Path):
    with limited(tmp_path, redis_url, HANDSHAKES="5") as stack:
        token = stack.token(unique("u"), "attendant")
        answers = await asyncio.gather(*(stack.handshake(token=token) for _ in range(60)))
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {101, 503}
        assert {answer.error["code"] for answer in answers if answer.status == 503} == {"at_capacity"}
        await asyncio.sleep(1)
        assert (await stack.handshake(token=token)).status == 101


# --- Connections of a user ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited(tmp_path_factory.mktemp("few"), redis_url, USER_CONNECTIONS="2") as stack:
        yield stack


async def test_oldest_connection_of_a_user_makes_room_wherever_it_is(few: Stack):
    other, user = free_port(), unique("u")
    few.start_sockets(other)
    async with (
        few.client("hub", user) as first,
        few.client("hub", user, port=other) as second,
        few.client("portal", user, "customer") as elsewhere,
        few.client("hub", user, port=other) as third,
    ):
        assert await first.expect_close() == 4409
        async with few.client("hub", user) as fourth:
            assert await second.expect_close() == 4409
            for client in (elsewhere, third, fourth):
                await client.call("heartbeat")
    assert [entry["to"] for entry in few.transitions(user)] == ["online"]
    await eventually(lambda: not few.redis.keys(few.key(f"seats:*:{user}")))


async def test_connections_of_a_killed_process_do_not_count(few: Stack):
    other, user = free_port(), unique("u")
    killed = few.start_sockets(other)
    async with few.client("hub", user) as first, few.client("hub", user, port=other) as second:
        killed.stop(SIGKILL)
        await second.expect_close()
        async with few.client("hub", user) as third:
            await third.call("heartbeat")
            await first.call("heartbeat")
            async with few.client("hub", user):
                assert await first.expect_close() == 4409


async def test_refused_handshake_takes_no_place(few: Stack):
    user = unique("u")
    async with few.client("hub", user) as first, few.client("hub", user) as second:
        token = few.token(user, "attendant")
        few.redis.set(
            few.key(f"revoked:{jwt.decode(token, options={'verify_signature': False})['jti']}"), "1"
        )
        assert (await few.handshake(token=token)).status == 401
        for client in (first, second):
            await client.call("heartbeat")


# --- Handshakes of an address --------------------------------------------------------------------------


async def test_handshakes_from_one_address_do_not_keep_another_one_out(redis_url: str, tmp_path: Path):
    proxies = {"TRUSTED_PROXIES": "127.0.0.1"}
    with limited(tmp_path, redis_url, proxies, ADDRESS_HANDSHAKES="0.01") as stack:
        token = stack.token(unique("u"), "attendant")

        async def status(address: str) -> int:
            return (await stack.handshake(headers=[("X-Forwarded-For", address)], token=token)).status

        assert [await status("198.51.100.1") for _ in range(3)] == [101, 503, 503]
        assert await status("6.6.6.6, 198.51.100.1") == 503
        assert await status("198.51.100.2") == 101


async def test_without_trusted_proxies_no_connection_is_counted_by_address(redis_url: str, tmp_path: Path):
    with limited(tmp_path, redis_url, ADDRESS_HANDSHAKES="1") as stack:
        token = stack.token(unique("u"), "attendant")
        answers = [await stack.handshake(token=token) for _ in range(10)]
        assert {answer.status for answer in answers} == {101}


# --- Slow clients -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    long_memory = {"REALTIME_HISTORY_BYTES": "50000000", "REALTIME_HISTORY_SIZE": "5000"}
    with limited(
        tmp_path_factory.mktemp("impatient"), redis_url, long_memory, UNSENT_BYTES="200000"
    ) as stack:
        stack.start("runbridge")
        yield stack


@contextlib.asynccontextmanager
async def deaf(client: Client) -> AsyncIterator[None]:
    """The client stops reading from its socket."""
    client.websocket.transport.pause_reading()
    try:
        yield
    finally:
        client.websocket.transport.resume_reading()


async def test_client_that_does_not_read_is_cut_off_and_gets_everything_when_it_comes_back(impatient: Stack):
    thread = unique("th")
    ids = [f"{number}" for number in range(1500)]
    async with impatient.client("hub") as slow, impatient.client("hub") as quick:
        offset = (await slow.call("join:thread", {"thread_id": thread}))["offset"]
        await quick.call("join:thread", {"thread_id": thread})
        async with deaf(slow):
            for number in ids:
                data = {"thread_id": thread, "message_id": number, "body": "x" * 10_000}
                impatient.add("thread:message", data)
                await asyncio.sleep(0.001)
            await quick.expect("thread:message", message_id=ids[-1])
        await slow.expect_close()
        got = [frame["data"]["message_id"] for frame in slow.received("thread:message")]
        assert got == ids[: len(got)]
        assert len(got) < len(ids)
        offset = slow.received("thread:message")[-1]["offset"] if got else offset
        assert [frame["data"]["message_id"] for frame in quick.received("thread:message")] == ids
    async with impatient.client("hub") as back:
        ack = await back.call("join:thread", {"thread_id": thread, "since": offset})
        assert ack["recovered"]
        await back.expect("thread:message", message_id=ids[-1])
        assert got + [frame["data"]["message_id"] for frame in back.received("thread:message")] == ids
    metrics = (await impatient.http("GET", "/metrics")).body.decode()
    assert 'realtime_closes_total{by="server",code="4413"} 1.0' in metrics
