"""The team sees which customers are there (`CUSTOMER_PRESENCE`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ConnectionError as RedisDown

from hub.consumers import HubConsumer
from presence import store
from presence.sweeper import Sweeper
from presence.tracker import PresenceTracker
from realtime.auth import grants
from realtime.auth.issuing import issue
from realtime.connections.registry import ConnectionRegistry
from realtime.redis.client import client
from tests.inprocess import PORTAL, Connection, add, bridging, connected, eventually

pytestmark = pytest.mark.usefixtures("process")
CHANGES = ("customer:online", "customer:offline", "customer:state")


@pytest.fixture
def wanted(settings, realtime_redis: str) -> None:
    settings.REALTIME = {**settings.REALTIME, "CUSTOMER_PRESENCE": True, "GRACE_PERIOD": 1.0}


@contextlib.asynccontextmanager
async def sweeping() -> AsyncIterator[None]:
    task = asyncio.create_task(Sweeper().run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def watch(attendant: Connection, thread: str = "42") -> set[str]:
    """Join a thread; who is said to be there?"""
    await attendant.call("join:thread", {"thread_id": thread})
    state = (await attendant.expect("customer:state", thread_id=thread))["data"]
    return {customer["user_id"] for customer in state["customers"]}


async def test_attendant_who_is_expelled_while_the_customers_are_read_is_not_told_who_they_are(
    wanted, monkeypatch
):
    snapshot = PresenceTracker.snapshot

    async def snapshot_and_expelled(presence: PresenceTracker, group: str) -> list[store.Member]:
        found = await snapshot(presence, group)
        if group == "42":
            for connection in ConnectionRegistry.current().connections.values():
                connection.expel("thread:42", "expelled")
        return found

    monkeypatch.setattr(PresenceTracker, "snapshot", snapshot_and_expelled)
    async with connected("hub", "7") as ana:
        await ana.call("join:thread", {"thread_id": "42"})
        await ana.expect("room:left", room="thread:42")
        await ana.nothing("customer:state")


# --- Off ---------------------------------------------------------------------------------------------


async def test_nothing_is_told_or_kept_unless_it_is_wanted():
    async with bridging(), connected("hub", "7") as ana, connected("portal", "9", threads=["42"]) as carla:
        await ana.call("join:thread", {"thread_id": "42"})
        await carla.call("join:thread", {"thread_id": "42"})
        await ana.nothing(*CHANGES)
        assert await client().keys(f"{store.base(PORTAL)}*") == []
        assert {entry["namespace"] for entry in await transitions()} == {"hub"}


async def transitions() -> list[dict]:
    return [json.loads(fields[b"transition"]) for _, fields in await client().xrange(store.stream())]


# --- Coming ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wanted")
async def test_first_connection_is_told_to_the_threads_of_the_claim():
    async with bridging(), connected("hub", "7") as ana:
        assert await watch(ana) == set()
        async with connected("portal", "9", name="Carla", threads=["42"]) as first:
            frame = await ana.expect("customer:online")
            assert frame["room"] == "thread:42"
            assert frame["offset"]
            data = frame["data"]
            assert (data["thread_id"], data["user_id"], data["name"]) == ("42", "9", "Carla")
            assert data["since"].endswith("Z")
            async with connected("portal", "9", threads=["42"]) as second:
                await second.call("join:thread", {"thread_id": "42"})
                await ana.nothing(*CHANGES)
                await first.nothing(*CHANGES)


@pytest.mark.usefixtures("wanted")
async def test_granted_thread_is_told_when_it_is_joined():
    async with bridging(), connected("hub", "7") as ana, connected("portal", "9") as carla:
        await watch(ana)
        await add("chat:accepted", {"thread_id": 42, "attendant_id": 7, "user_id": 9})
        await carla.expect("chat:accepted")
        await ana.nothing(*CHANGES)
        await carla.call("join:thread", {"thread_id": "42"})
        assert (await ana.expect("customer:online"))["data"]["user_id"] == "9"


@pytest.mark.usefixtures("wanted")
async def test_customer_never_hears_of_customers():
    async with (
        bridging(),
        connected("portal", "8", threads=["42"]) as one,
        connected("portal", "9", threads=["42"]) as two,
        connected("hub", "7") as ana,
    ):
        for customer in (one, two):
            await customer.call("join:thread", {"thread_id": "42"})
        assert await watch(ana) == {"8", "9"}
        await two.nothing(*CHANGES)
        await one.nothing(*CHANGES)


# --- Who joins later ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("wanted")
async def test_attendant_who_joins_later_is_told_who_is_there():
    async with (
        bridging(),
        connected("portal", "9", name="Carla", threads=["42"]),
        connected("hub", "7", role="admin") as admin,
    ):
        joined = await admin.call("join:thread", {"thread_id": "42"})
        state = (await admin.expect("customer:state"))["data"]
        [carla] = state["customers"]
        assert set(carla) == {"user_id", "name", "since"}
        assert (carla["user_id"], carla["name"]) == ("9", "Carla")
        assert int(state["offset"]) >= int(joined["offset"])


@pytest.mark.usefixtures("wanted")
async def test_attendant_who_resumes_is_told_who_is_there_after_what_was_missed():
    async with bridging():
        async with connected("hub", "7") as ana:
            offset = (await ana.call("join:thread", {"thread_id": "42"}))["offset"]
        async with connected("portal", "9", threads=["42"]), connected("hub", "7") as ana:
            await eventually(lambda: client().exists(f"{store.base(PORTAL)}:user:9"))
            answer = await ana.call("resume", {"rooms": {"thread:42": offset}})
            assert answer["rooms"]["thread:42"]["recovered"] is True
            online = await ana.expect("customer:online")
            state = (await ana.expect("customer:state"))["data"]
            assert [each["user_id"] for each in state["customers"]] == ["9"]
            assert state["customers"][0]["since"] == online["data"]["since"]


@pytest.mark.usefixtures("wanted")
async def test_attendant_who_cannot_get_what_was_missed_is_told_once_who_is_there():
    async with connected("portal", "9", threads=["42"]), connected("hub", "7") as ana:
        answer = await ana.call("resume", {"rooms": {"thread:42": "1"}})
        assert answer["rooms"]["thread:42"]["recovered"] is False
        state = await ana.expect("customer:state")
        assert [each["user_id"] for each in state["data"]["customers"]] == ["9"]
        await ana.nothing(*CHANGES)


@pytest.mark.usefixtures("wanted")
async def test_state_that_cannot_be_read_comes_later(monkeypatch):
    read = store.snapshot

    async def down(*args: str) -> None:
        monkeypatch.setattr(store, "snapshot", read)
        raise RedisDown("gone")

    async with connected("hub", "7") as ana:
        await ana.expect("presence:state")
        monkeypatch.setattr(store, "snapshot", down)
        assert await watch(ana) == set()


@pytest.mark.usefixtures("wanted")
async def test_state_of_a_thread_that_was_left_meanwhile_is_not_sent():
    async with connected("hub", "7") as ana:
        assert await watch(ana) == set()
        await ana.call("leave:thread", {"thread_id": "42"})
        (inside,) = ConnectionRegistry.current().connections.values()
        assert isinstance(inside, HubConsumer)
        await inside.send_customer_state("42")
        await ana.nothing("customer:state")


@pytest.mark.usefixtures("wanted")
async def test_state_comes_again_after_a_gap():
    async with connected("hub", "7") as ana:
        assert await watch(ana) == set()
        (inside,) = ConnectionRegistry.current().connections.values()
        assert isinstance(inside, HubConsumer)
        inside.outlet.gap("thread:42", "lost")
        await ana.expect("room:gap")
        await ana.expect("customer:state", thread_id="42")


# --- Going -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wanted")
async def test_last_connection_lost_is_told_after_the_grace_period():
    async with bridging(), sweeping(), connected("hub", "7") as ana:
        await watch(ana)
        async with connected("portal", "9", threads=["42"]):
            await ana.expect("customer:online")
        await ana.expect("customer:offline", user_id="9", thread_id="42")
        await ana.nothing(*CHANGES)


@pytest.mark.usefixtures("wanted")
async def test_page_that_is_loaded_anew_is_not_told():
    async with bridging(), sweeping(), connected("hub", "7") as ana:
        await watch(ana)
        await add("thread:grant", {"thread_id": "42", "user_id": "9"})
        async with connected("portal", "9") as carla:
            await eventually(lambda: grants.read("portal", "9", "thread:42"))
            await carla.call("join:thread", {"thread_id": "42"})
            await ana.expect("customer:online")
        for _ in range(3):
            async with connected("portal", "9") as carla:
                await carla.call("join:thread", {"thread_id": "42"})
        async with connected("portal", "9") as carla:
            await carla.call("join:thread", {"thread_id": "42"})
            await asyncio.sleep(2.0)  # more than the grace period and a sweep
            await ana.nothing(*CHANGES)


@pytest.mark.usefixtures("wanted")
async def test_leaving_the_room_is_not_going_away():
    async with bridging(), connected("hub", "7") as ana, connected("portal", "9", threads=["42"]) as carla:
        await carla.call("join:thread", {"thread_id": "42"})
        assert await watch(ana) == {"9"}
        await carla.call("leave:thread", {"thread_id": "42"})
        await ana.nothing(*CHANGES)


# --- Rights ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wanted")
@pytest.mark.parametrize("joins", [True, False])
async def test_revoke_is_told_at_once_whether_the_customer_looked_at_the_thread_or_not(joins: bool):
    async with (
        bridging(),
        connected("portal", "9", threads=["42", "43"]) as one,
        connected("portal", "9", threads=["42"]),
        connected("hub", "7") as ana,
    ):
        if joins:
            await one.call("join:thread", {"thread_id": "42"})
        assert await watch(ana) == {"9"}
        assert await watch(ana, "43") == {"9"}
        await add("thread:revoke", {"thread_id": "42", "user_id": "9"})
        await ana.expect("customer:offline", user_id="9", thread_id="42")
        await ana.nothing(*CHANGES)
        async with connected("portal", "9", threads=["42"]):
            await ana.nothing(*CHANGES)
        await add("thread:grant", {"thread_id": "42", "user_id": "9"})
        await eventually(lambda: grants.read("portal", "9", "thread:42"))
        await one.call("join:thread", {"thread_id": "42"})
        await ana.expect("customer:online", user_id="9", thread_id="42")


async def joined(connection: Connection) -> bool:
    return "room" in (await connection.ask("join:thread", {"thread_id": "42"}))["data"]


@pytest.mark.usefixtures("wanted")
async def test_fresh_token_changes_where_the_customer_is_seen():
    async with bridging(), connected("portal", "9", threads=["42"]) as carla, connected("hub", "7") as ana:
        assert await watch(ana, "42") == {"9"}
        assert await watch(ana, "43") == set()
        token = issue(user_id="9", role="customer", name="Carla", threads=["43"])
        await carla.call("auth:refresh", {"token": token})
        await ana.expect("customer:offline", thread_id="42")
        online = await ana.expect("customer:online", thread_id="43")
        assert online["data"]["name"] == "Carla"
        await ana.nothing(*CHANGES)
