from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.exceptions import ConnectionError as RedisDown

from presence import store
from realtime.auth.issuing import issue
from realtime.connections.consumer import NamespaceConsumer
from realtime.connections.registry import ConnectionRegistry
from realtime.layers.signals import PresenceChanged
from realtime.namespaces.hub import HUB as HUB_DECLARED
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.principal import Principal
from tests.inprocess import HUB, add, bearer, bridging, connected, eventually, refusal
from tests.presence.world import World

pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture
def world(process: str) -> World:
    return World()


def members(frame: dict[str, Any]) -> dict[str, str]:
    return {member["user_id"]: member["status"] for member in frame["data"]["members"]}


# --- Presence ----------------------------------------------------------------------------------------


async def test_attendant_sees_oneself_and_the_others_after_ready(world: World):
    async with (
        connected("hub", "7", name="Ana", groups=["sales"]),
        connected("hub", "8", name="Bob", groups=["sales"]) as bob,
    ):
        state = await bob.expect("presence:state")
        assert members(state) == {"7": "online", "8": "online"}
        data = state["data"]
        assert (data["group"], data["total"]) == ("sales", 2)
        assert [member["name"] for member in data["members"]] == ["Ana", "Bob"]
        assert data["offset"] == bob.ready["rooms"]["presence:sales"]


async def test_state_comes_for_every_group():
    async with connected("hub", groups=["sales", "vip"]) as ana:
        groups = [(await ana.expect("presence:state"))["data"]["group"] for _ in range(2)]
        assert groups == ["sales", "vip"]


async def test_attendant_without_groups_gets_no_state():
    async with connected("hub", groups=[]) as ana:
        await ana.nothing("presence:state")


async def test_state_holds_users_who_are_in_grace(world: World):
    async with connected("hub", "7"):
        pass
    await eventually(lambda: world.deadline("grace", "7") is not None)
    async with connected("hub", "8") as bob:
        assert members(await bob.expect("presence:state")) == {"7": "online", "8": "online"}


async def test_admin_watches_without_being_seen():
    async with bridging(), connected("hub", "1", "admin") as admin:
        assert members(await admin.expect("presence:state")) == {}
        async with connected("hub", "7"):
            await admin.expect("attendant:online", user_id="7")
        await admin.call("heartbeat")


@pytest.mark.parametrize("event", ["presence:online", "presence:away"])
async def test_admin_has_no_status_to_choose(event: str):
    async with connected("hub", "1", "admin") as admin:
        assert (await admin.refused(event))["code"] == "forbidden"


async def test_admin_may_log_out(world: World):
    async with connected("hub", "1", "admin") as admin:
        await admin.call("presence:offline")
        assert (await admin.expect_close())[0] == CloseCode.NORMAL
    assert world.news() == []


async def test_log_out_with_another_tab_open_is_not_announced():
    async with (
        bridging(),
        connected("hub", "8") as bob,
        connected("hub", "7"),
        connected("hub", "7") as second,
    ):
        await second.call("presence:offline")
        await second.expect_close()
        await bob.nothing("attendant:offline")


async def test_heartbeat_brings_back_a_user_who_was_away_without_having_chosen_it(world: World, settings):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.4}
    async with connected("hub", "7") as ana:
        world.silence("7")
        assert world.status("7") == "away"
        await ana.call("heartbeat")
        await eventually(lambda: world.status("7") == "online")


async def test_frame_that_is_no_heartbeat_keeps_the_record_but_not_the_status(world: World, settings):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.4, "PRESENCE_TTL": 8}
    async with connected("hub", "7") as ana:
        world.silence("7")
        record = f"{store.base(HUB)}:user:7"
        world.redis.pexpire(record, 60_000)
        await ana.call("leave:thread", {"thread_id": 1})
        await eventually(lambda: world.redis.pttl(record) <= 8_000)
        assert world.status("7") == "away"


async def test_status_set_over_the_bus_outlives_a_redis_that_comes_back_empty(world: World, monkeypatch):
    signals: list[PresenceChanged] = []
    async with bridging(), connected("hub", "7") as ana:
        remember = ConnectionRegistry.current().on_presence
        monkeypatch.setattr(
            ConnectionRegistry.current(),
            "on_presence",
            lambda signal: (remember(signal), signals.append(signal)),
        )
        await add("presence:set", {"user_id": 7, "status": "away"})
        await eventually(lambda: any(signal.status == "away" for signal in signals))
        world.lose_everything()
        await ana.call("heartbeat")
        await eventually(lambda: world.status("7"))
        assert world.status("7") == "away"


async def test_chosen_status_outlives_redis_though_another_tab_was_closed(world: World, settings):
    settings.REALTIME = {**settings.REALTIME, "GRACE_PERIOD": 0.2}
    async with connected("hub", "7") as ana:
        async with connected("hub", "7") as other:
            await other.call("presence:away")
        await asyncio.sleep(0.5)  # more than a grace period and a batch
        world.lose_everything()
        await ana.call("heartbeat")
        await eventually(lambda: world.status("7"))
        assert world.status("7") == "away"


async def test_handshake_is_refused_while_presence_cannot_be_recorded(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "apply", AsyncMock(side_effect=RedisDown("gone")))
        answer = await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    assert (answer.status, answer.code) == (503, "unavailable")


async def test_refused_handshake_leaves_again(world: World, monkeypatch):
    """Presence knew of the connection before it was refused: it must forget it."""

    monkeypatch.setattr(NamespaceConsumer, "accept", AsyncMock(side_effect=ZeroDivisionError))
    await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    await eventually(lambda: world.deadline("grace", "7") is not None)


async def test_state_that_cannot_be_read_comes_later(monkeypatch):
    read = store.snapshot

    async def down(*args: Any) -> Any:
        monkeypatch.setattr(store, "snapshot", read)
        raise RedisDown("gone")

    monkeypatch.setattr(store, "snapshot", down)
    async with connected("hub", "7") as ana:
        await ana.nothing("presence:state")
        assert members(await ana.expect("presence:state")) == {"7": "online"}


async def test_change_that_overtakes_a_state_has_a_higher_offset(monkeypatch):
    read = store.snapshot

    async with bridging(), connected("hub", "8") as bob:
        await bob.expect("attendant:online", user_id="8")
        ahead = {}

        async def slowly(*args: Any) -> Any:
            known = await read(*args)
            await add("queue:new", {"item_id": 1})
            ahead.update(await bob.expect("queue:new"))
            return known

        monkeypatch.setattr(store, "snapshot", slowly)
        async with connected("hub", "1", "admin") as admin:
            state = await admin.expect("presence:state")
            assert int(state["data"]["offset"]) < int(ahead["offset"])


async def test_state_comes_anew_when_missed_changes_cannot_be_recovered():
    async with connected("hub", "7") as ana:
        await ana.expect("presence:state")
        answer = await ana.call("resume", {"rooms": {"presence:attendants": "1", "user:7": "1"}})
        assert [found["recovered"] for found in answer["rooms"].values()] == [False, False]
        assert members(await ana.expect("presence:state")) == {"7": "online"}
        await ana.nothing("presence:state")


async def test_state_of_a_group_that_was_left_meanwhile_is_not_sent():
    async with connected("hub", "7") as ana:
        await ana.expect("presence:state")
        (inside,) = ConnectionRegistry.current().connections.values()
        await inside.send_presence_state("vip")  # type: ignore[attr-defined]
        await ana.nothing("presence:state")


# --- Fresh tokens ------------------------------------------------------------------------------------


async def test_new_groups_are_joined_and_old_ones_left(world: World):
    async with (
        bridging(),
        connected("hub", "8", groups=["vip"]) as vip,
        connected("hub", "9", groups=["sales"]) as sales,
        connected("hub", "7", groups=["sales"]) as ana,
    ):
        await sales.expect("attendant:online", user_id="7")
        fresh = issue(user_id="7", role="attendant", groups=["vip"])
        await ana.call("auth:refresh", {"token": fresh})
        frame = await ana.expect("room:left")
        assert frame["data"] == {"room": "presence:sales", "reason": "forbidden"}
        await vip.expect("attendant:online", user_id="7")
        await sales.expect("attendant:offline", user_id="7")
        await ana.expect("presence:state", group="sales")
        assert members(await ana.expect("presence:state", group="vip")) == {"7": "online", "8": "online"}


async def test_policy_that_fails_for_one_room_keeps_nothing_else_from_a_fresh_token(monkeypatch):
    async def fail(connection: NamespaceConsumer, room: str) -> bool:
        raise ValueError(room)

    async with (
        bridging(),
        connected("hub", "8", groups=["vip"]) as vip,
        connected("hub", "7", groups=["sales"]) as ana,
    ):
        await ana.call("join:thread", {"thread_id": 42})
        monkeypatch.setattr(NamespaceConsumer, "may_enter", fail)
        fresh = issue(user_id="7", role="attendant", groups=["vip"])
        assert (await ana.refused("auth:refresh", {"token": fresh}))["code"] == "internal"
        await ana.expect("presence:state", group="vip")
        await vip.expect("attendant:online", user_id="7")
        await add("queue:updated", {"group": "vip"})
        await ana.expect("queue:updated")


async def test_initial_rooms_are_entered_once_and_what_is_no_such_room_is_left_out(caplog):
    vip, sales = "presence:vip", "presence:sales"
    rooms = ["user:7", vip, 7, None, "thread:42", "board:1", "vip", vip, sales]
    declared = replace(HUB_DECLARED, initial_rooms=lambda _: rooms)
    connection = NamespaceConsumer(declared=declared)
    connection.principal = Principal(
        user_id="7", role="attendant", name="", groups=(), threads=frozenset(), jti="j", expires_at=0
    )
    assert connection.initial_rooms() == ["user:7", vip, sales]
    left_out = [record.room for record in caplog.records if record.getMessage() == "initial room left out"]
    assert left_out == ["7", "None", "'thread:42'", "'board:1'", "'vip'"]


async def test_same_claims_again_change_nothing(world: World):
    async with connected("hub", "7") as ana:
        await ana.expect("presence:state")
        world.transitions()
        await ana.call("auth:refresh", {"token": issue(user_id="7", role="attendant")})
        await ana.nothing("presence:state", "room:left")
        assert world.news() == []


async def test_refresh_of_an_admin_is_not_seen_in_presence(world: World):
    async with connected("hub", "1", "admin") as admin:
        await admin.call("auth:refresh", {"token": issue(user_id="1", role="admin", groups=["vip"])})
        await admin.expect("presence:state", group="vip")
    assert world.news() == []


# --- Rooms -------------------------------------------------------------------------------------------


async def only_thread_42(principal: Principal, thread_id: str) -> bool:
    return principal.role == "admin" or thread_id == "42"


async def test_policy_decides_which_threads_the_team_may_join(settings):
    settings.REALTIME = {
        **settings.REALTIME,
        "HUB_THREAD_POLICY": "tests.hub.test_consumers.only_thread_42",
    }
    async with connected("hub", "7") as ana, connected("hub", "1", "admin") as admin:
        await ana.call("join:thread", {"thread_id": 42})
        assert (await ana.refused("join:thread", {"thread_id": 43}))["code"] == "forbidden"
        await admin.call("join:thread", {"thread_id": 43})
