"""What one connection can make the server do: keys, commands and bytes, against what it sends."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.exceptions import RedisError

from realtime.auth.issuing import issue
from realtime.conf import conf
from realtime.connections.rate_limit import UNIT_BYTES, FrameRate, frame_cost
from realtime.connections.registry import ConnectionRegistry
from realtime.layers import history
from realtime.protocol.publication import Draft
from realtime.redis.client import client
from tests.inprocess import Connection, bearer, connected, eventually

pytestmark = pytest.mark.usefixtures("process")


async def keys(prefix: str) -> set[bytes]:
    return {name async for name in client().scan_iter(f"{prefix}:*")}


async def commands() -> int:
    """How many commands Redis has executed so far, those of scripts included."""
    stats: Any = await client().info("commandstats")
    return sum(command["calls"] for command in stats.values())


async def publish(group: str, publications: int, size: int, first: int = 0) -> None:
    await history.ends([group])
    for number in range(first, first + publications):
        head, tail = b'{"event":"thread:message","offset":"', b'","data":"%s"}' % (b"x" * size)
        await history.append([Draft(rooms=[(group, head)], tail=tail, source="s", entry=f"{number:040d}")])


def inside() -> Any:
    (only,) = ConnectionRegistry.current().connections.values()
    return only


class Bill:
    """What connections have been charged: a unit for each frame, and what frames cost besides."""

    total = 0.0


bill = Bill()


@pytest.fixture(autouse=True)
def _charges_are_added_up(monkeypatch) -> None:
    take, spend = FrameRate.take, FrameRate.spend

    def charged_take(rate: FrameRate, size: int) -> float:
        wait = take(rate, size)
        bill.total += 0 if wait else frame_cost(size)
        return wait

    def charged_spend(rate: FrameRate, frames: float) -> None:
        bill.total += frames
        spend(rate, frames)

    bill.total = 0.0
    monkeypatch.setattr(FrameRate, "take", charged_take)
    monkeypatch.setattr(FrameRate, "spend", charged_spend)


def threads(number: int, start: int = 0) -> list[str]:
    return [f"thread:{number}" for number in range(start, start + number)]


# --- Keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("join:thread", {"thread_id": "1"}),
        ("join:thread", {"thread_id": "1", "since": "5"}),
        ("resume", {"rooms": dict.fromkeys([*threads(50), "presence:x", "user:8", "odd"], "5")}),
    ],
)
async def test_room_that_may_not_be_entered_leaves_no_key(event: str, data: dict[str, Any], process: str):
    async with connected("portal") as customer:
        before = await keys(process)
        frame = await customer.ask(event, data)
        answers = frame["data"].get("rooms", {"": {"error": frame["data"].get("code")}})
        assert {answer["error"] for answer in answers.values()} == {"forbidden"}
        assert await keys(process) == before


# --- Frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "cost"), [(0, 1), (16_000, 1), (17_000, 2), (60_000, 4)])
async def test_frame_is_charged_by_its_bytes(size: int, cost: int):
    async with connected() as ana:
        await ana.call("heartbeat", {"x": "x" * size})
        assert bill.total == cost


# --- Resuming ------------------------------------------------------------------------------------------


async def test_client_that_comes_back_to_as_many_rooms_as_it_may_have_is_charged_for_one_frame():
    most = conf().limits.rooms
    rooms = ["user:7", "presence:attendants", *threads(most - 2)]
    async with connected(groups=["attendants"]) as ana:
        for number in range(most - 2):
            await publish(f"hub.thread.{number}", 1, 2000)
        answer = await ana.call("resume", {"rooms": dict.fromkeys(rooms, "5")})
        assert {tuple(room) for room in answer["rooms"].values()} == {("recovered", "offset", "missed")}
        assert len(answer["rooms"]) == most
        assert bill.total <= 1


async def test_rooms_beyond_the_limit_are_refused_without_a_look():
    most = conf().limits.rooms
    async with connected("portal") as customer:
        before = await commands()
        answer = await customer.call("resume", {"rooms": dict.fromkeys(threads(3000), "5")})
        codes = [room["error"] for room in answer["rooms"].values()]
        assert codes == ["forbidden"] * most + ["limit_exceeded"] * (3000 - most)
        assert await commands() - before < most * 1.5


async def test_further_resumes_are_charged_for_each_room():
    async with connected("portal") as customer:
        await customer.call("resume", {"rooms": {"user:7": "5"}})
        before = await commands()
        for number in range(20):
            await customer.send("resume", {"rooms": dict.fromkeys(threads(3000), "5")}, id=number)
        frames = [await customer.next_frame(lambda frame: "id" in frame) for _ in range(20)]
        assert [frame["event"] for frame in frames].count("ack") == 1
        assert {frame["data"]["code"] for frame in frames[1:]} == {"rate_limited"}
        assert frames[-1]["data"]["retry_after"] > 20
        assert await commands() - before < conf().limits.rooms * 1.5


async def test_resume_that_redis_could_not_answer_may_be_repeated_for_one_frame(monkeypatch):
    async with connected() as ana:
        rooms = {"rooms": dict.fromkeys(threads(100), "5")}
        with monkeypatch.context() as patch:
            patch.setattr(inside().layer, "missed", AsyncMock(side_effect=RedisError("gone")))
            assert (await ana.refused("resume", rooms))["code"] == "unavailable"
        await ana.call("resume", rooms)
        assert bill.total <= 2


async def test_room_whose_policy_fails_is_refused_alone(monkeypatch):
    async with connected() as ana:

        async def odd(room: str) -> bool:
            return bool(1 / int(room.removeprefix("thread:")))

        monkeypatch.setattr(inside(), "may_enter", odd)
        answer = await ana.call("resume", {"rooms": {"thread:0": "5", "thread:1": "5"}})
        assert answer["rooms"]["thread:0"] == {"error": "internal"}
        assert answer["rooms"]["thread:1"]["recovered"] is False


# --- Replays -------------------------------------------------------------------------------------------


async def test_replayed_bytes_are_charged(settings):
    limits = {"RATE": 1, "BURST": 20}
    settings.REALTIME = {**settings.REALTIME, "LIMITS": limits}
    await publish("hub.thread.1", 33, 30_000)
    since = str((await client().xrange(history.base("hub.thread.1") + ":log"))[0][0].split(b"-")[0].decode())
    async with connected() as ana:
        sent = replays = 0
        while (frame := await ana.ask("join:thread", {"thread_id": "1", "since": since}))["event"] == "ack":
            assert frame["data"]["missed"] == 32
            replays += 1
            for _ in range(32):
                sent += len(json.dumps(await ana.expect("thread:message")))
            due = sent / UNIT_BYTES * 0.9
            await eventually(lambda due=due: bill.total > due)
        assert (frame["data"]["code"], replays) == ("rate_limited", 1)
        assert frame["data"]["retry_after"] > 1


async def test_replay_of_the_first_resume_and_repairs_are_not_charged():
    await publish("hub.thread.1", 20, 30_000)
    since = str((await client().xrange(history.base("hub.thread.1") + ":log"))[0][0].split(b"-")[0].decode())
    async with connected() as ana:
        await ana.call("resume", {"rooms": {"thread:1": since}})
        for _ in range(19):
            await ana.expect("thread:message")
        await client().client_kill_filter(_type="pubsub")
        await publish("hub.thread.1", 20, 30_000, first=20)
        for _ in range(20):
            await ana.expect("thread:message")
        assert bill.total <= 1


# --- Tokens --------------------------------------------------------------------------------------------


async def test_refreshing_is_charged_for_each_thread_and_asks_for_all_rights_at_once(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"RATE": 2, "BURST": 300}}
    claims = {"user_id": "7", "role": "customer", "threads": [str(number) for number in range(199)]}
    async with connected("portal", token=issue(**claims)) as customer:
        for number in range(199):
            await customer.call("join:thread", {"thread_id": str(number)})
        token = issue(**claims)
        spent, before = bill.total, await commands()
        await customer.call("auth:refresh", {"token": token})
        assert bill.total - spent >= 99
        assert await commands() - before < 230
        for _ in range(2):
            frame = await customer.ask("auth:refresh", {"token": token})
        assert frame["data"]["code"] == "rate_limited"


async def test_thread_whose_rights_cannot_be_had_keeps_no_other_from_being_left(monkeypatch):
    async with connected("portal", threads=["1", "2", "3"]) as customer:
        for number in "123":
            await customer.call("join:thread", {"thread_id": number})

        async def odd(room: str) -> bool:
            if room == "thread:2":
                raise ValueError("a mistake")
            return False

        monkeypatch.setattr(inside(), "may_enter", odd)
        token = issue(user_id="7", role="customer")
        assert (await customer.refused("auth:refresh", {"token": token}))["code"] == "internal"
        assert set(inside().rooms) == {"user:7", "thread:2"}


async def test_rooms_that_a_token_names_are_bounded_when_connecting_and_when_refreshing(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"ROOMS": 5}}
    async with connected(groups=[f"a{number}" for number in range(20)]) as ana:
        assert len(ana.ready["rooms"]) == 5
        token = issue(user_id="7", role="attendant", groups=[f"b{number}" for number in range(20)])
        await ana.call("auth:refresh", {"token": token})
        assert set(inside().rooms) == {"user:7", "presence:b0", "presence:b1", "presence:b2", "presence:b3"}


async def test_list_of_who_is_present_is_charged_when_a_refresh_brings_it(monkeypatch):
    async with connected(groups=["a"]) as ana:
        charged: list[int] = []
        monkeypatch.setattr(FrameRate, "spend_bytes", lambda _, size: charged.append(size))
        await ana.call("auth:refresh", {"token": issue(user_id="7", role="attendant", groups=["b"])})
        state = await ana.expect("presence:state", group="b")
        assert charged == [pytest.approx(len(json.dumps(state, separators=(",", ":"))), abs=8)]


async def test_list_of_who_is_present_is_charged_when_a_resume_asks_for_it_once_more(monkeypatch):
    async with connected(groups=["a"]) as ana:
        await ana.expect("presence:state")
        charged: list[int] = []
        monkeypatch.setattr(FrameRate, "spend_bytes", lambda _, size: charged.append(size))
        lost = {"rooms": {"presence:a": "5"}}
        assert (await ana.call("resume", lost))["rooms"]["presence:a"]["recovered"] is False
        await ana.expect("presence:state")
        assert charged == []
        await ana.call("resume", lost)
        state = await ana.expect("presence:state")
        assert charged == [pytest.approx(len(json.dumps(state, separators=(",", ":"))), abs=8)]


async def test_threads_that_a_token_claims_are_bounded(settings):
    settings.REALTIME = {**settings.REALTIME, "CUSTOMER_PRESENCE": True, "LIMITS": {"ROOMS": 5}}
    token = issue(user_id="7", role="customer", threads=[str(number) for number in range(500)])
    connection = Connection("/portal/", headers=bearer(token))
    before = await commands()
    assert await connection.handshake() is None
    assert len(inside().listed_in()) == 5
    assert await commands() - before < 150
    await connection.disconnect()
