"""What connections that open ask of Redis, on one server and on several."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from realtime.auth import revocation
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from realtime.connections.arrivals import Arrivals, arrivals
from realtime.connections.registry import ConnectionRegistry
from realtime.connections.user_limit import UserConnection
from realtime.layers.signals import UserDisconnected
from realtime.protocol.principal import Principal
from realtime.redis.client import client, key
from realtime.redis.pipelining import Pipe
from realtime.redis.topology import Topology
from tests.inprocess import Connection as Client
from tests.inprocess import Refusal, bearer, connected, eventually, refusal


@pytest.fixture(params=[True, False], ids=["one server", "several"])
def spans_keys(request, process, monkeypatch) -> bool:
    monkeypatch.setattr(Topology, "spans_keys", request.param)
    return bool(request.param)


def principal(user_id: str = "7") -> Principal:
    return verify(issue(user_id=user_id, role="attendant"))


def place(channel: str, user_id: str = "7") -> UserConnection:
    return UserConnection("hub", user_id, channel)


async def test_connection_is_let_in_at_the_time_of_redis(spans_keys: bool):
    before = await revocation.now()
    arrival = await arrivals().ask(principal(), place("a"))
    assert arrival is not None
    assert before <= arrival.opened_at <= await revocation.now()
    [(channel, score)] = await client().zrange(place("a").key, 0, -1, withscores=True)
    assert channel == b"a"
    assert score == arrival.opened_at if spans_keys else score >= arrival.opened_at


@pytest.mark.parametrize("mark", ["token", "user"])
async def test_connection_that_must_leave_takes_no_place(spans_keys: bool, mark: str):
    someone = principal()
    token, user = revocation.marks_of(someone, "hub")
    await client().set(*((token, "1") if mark == "token" else (user, repr(await revocation.now() + 60))))
    assert await arrivals().ask(someone, place("a")) is None
    assert await client().zcard(place("a").key) == 0


async def test_user_who_was_disconnected_before_is_let_in(spans_keys: bool):
    someone = principal()
    await client().set(revocation.marks_of(someone, "hub")[1], repr(await revocation.now() - 0.001))
    assert await arrivals().ask(someone, place("a")) is not None


async def test_limit_of_a_user_can_be_switched_off(spans_keys: bool, settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"USER_CONNECTIONS": 0}}
    assert await arrivals().ask(principal(), place("a")) is not None
    assert await client().zcard(place("a").key) == 0


async def test_connections_beyond_the_limit_are_named_oldest_first(spans_keys: bool, settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"USER_CONNECTIONS": 2}}
    for channel in "ab":
        arrival = await arrivals().ask(principal(), place(channel))
        assert arrival is not None
        assert not arrival.surplus
    arrival = await arrivals().ask(principal(), place("c"))
    assert arrival is not None
    assert arrival.surplus == ["a", "b", "c"]


async def test_oldest_connection_makes_room_for_the_newest(spans_keys: bool, settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"USER_CONNECTIONS": 1}}
    async with connected(user_id="7") as first, connected(user_id="7") as second:
        assert (await first.expect_close())[0] == 4409
        await second.call("heartbeat")


async def test_oldest_connection_makes_room_after_redis_clock_was_set_back(spans_keys: bool, settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"USER_CONNECTIONS": 2}}
    async with connected(user_id="7") as first, connected(user_id="7") as second:
        channels = await client().zrange(place("").key, 0, -1, withscores=True)
        await client().zadd(place("").key, {channel: at + 3600 for channel, at in channels})
        async with connected(user_id="7") as third:
            assert (await first.expect_close())[0] == 4409
            for one in (second, third):
                await one.call("heartbeat")


async def test_connections_that_come_together_ask_once(process, monkeypatch):
    ran: list[Any] = []
    run = Pipe.run

    def counting(pipe: Pipe, script: Any, keys: Any, arguments: Any) -> Any:
        ran.append(keys)
        return run(pipe, script, keys, arguments)

    monkeypatch.setattr(Pipe, "run", counting)
    asked = [arrivals().ask(principal(f"u{number}"), place("a", f"u{number}")) for number in range(300)]
    found = await asyncio.gather(*asked)
    assert [len(keys) // 3 for keys in ran] == [200, 100]
    assert all(found)
    assert len({arrival.opened_at for arrival in found if arrival}) == 2


async def test_question_without_an_answer_is_asked_once_more(process, monkeypatch):
    failures: list[RedisError] = [RedisConnectionError("lost")]
    run = Pipe.run

    def failing(pipe: Pipe, *arguments: Any) -> Any:
        if not failures:
            return run(pipe, *arguments)
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(failures.pop())
        return answer

    monkeypatch.setattr(Pipe, "run", failing)
    assert await arrivals().ask(principal(), place("a")) is not None
    failures += [RedisError("no"), RedisError("never")]
    with pytest.raises(RedisError, match="no"):
        await arrivals().ask(principal(), place("a"))


@pytest.mark.parametrize(("later", "is_refused"), [(1.0, True), (-1.0, False)])
async def test_order_that_comes_before_the_answer_of_redis_concerns_what_was_opened_until_then(
    process, monkeypatch, later: float, is_refused: bool
):
    """Its mark may have been written after the question was answered: then only the signal tells of it."""
    ask = Arrivals.ask

    def ask_and_disconnect(here: Arrivals, someone: Principal, connection: UserConnection) -> Any:
        for when in (at + later, at - 60):  # an older order may be repeated after it
            order = UserDisconnected(namespace="hub", user_id="7", at=when, reason="told to")
            ConnectionRegistry.current().signals.on_signal(order)
        return ask(here, someone, connection)

    at = await revocation.now()
    monkeypatch.setattr(Arrivals, "ask", ask_and_disconnect)
    one = Client("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    answer = await one.handshake()
    assert isinstance(answer, Refusal) is is_refused
    await one.disconnect()


async def test_connection_whose_rights_are_reviewed_before_it_is_open_has_to_try_again(process, monkeypatch):
    ask = Arrivals.ask

    def ask_amid_a_review(here: Arrivals, someone: Principal, connection: UserConnection) -> Any:
        reviews.append(asyncio.ensure_future(ConnectionRegistry.current().signals.on_missed(1.0)))
        return ask(here, someone, connection)

    reviews: list[asyncio.Future[None]] = []
    await client().set(key("disconnected", "hub", "7"), repr(await revocation.now() - 5))
    monkeypatch.setattr(Arrivals, "ask", ask_amid_a_review)
    answer = await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    assert (answer.status, answer.code) == (503, "unavailable")
    await asyncio.gather(*reviews)


async def test_place_is_given_back(spans_keys: bool):
    async with connected(user_id="7"):
        assert await client().zcard(place("a").key) == 1
    assert await client().zcard(place("a").key) == 0


async def places(number: int) -> bool:
    """Whether the user has as many places."""
    return await client().zcard(place("a").key) == number


@contextlib.contextmanager
def without_redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that is sent arrives."""

    def fail(pipe: Pipe, *command: Any) -> Any:
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(RedisConnectionError("away"))
        return answer

    with monkeypatch.context() as changed:
        for sending in ("send", "run"):
            changed.setattr(Pipe, sending, fail)
        yield


async def test_connection_that_ended_while_redis_was_away_closes_no_other(spans_keys, monkeypatch, settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"USER_CONNECTIONS": 2}}
    async with connected(user_id="7") as oldest:
        async with connected(user_id="7") as second:
            with without_redis(monkeypatch):
                await second.disconnect()
        await eventually(lambda: places(1))
        async with connected(user_id="7") as newest:
            await newest.call("heartbeat")
            await oldest.call("heartbeat")


async def test_connection_that_has_gone_before_redis_let_it_in_keeps_no_place(process):
    asked = arrivals().ask(principal(), place("a"))
    staying = arrivals().ask(principal(), place("b"))
    asked.cancel()
    assert await staying is not None

    await eventually(lambda: places(1))
