"""Surveys through Redis to real registries, and what becomes of those that are not answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any
from uuid import UUID

import msgspec
import pytest

from presence import store
from realtime.connections.registry import ConnectionRegistry
from realtime.layers import history
from realtime.layers.signals import InstanceDrained, broadcast
from realtime.protocol.rooms import CONTROL_GROUP
from realtime.redis.client import client, key, sync_client
from realtime.survey import ask as asking
from realtime.survey.ask import connection, connections, instances, rooms
from realtime.survey.messages import (
    EXPIRE_SECONDS,
    REMEMBER_SECONDS,
    AboutConnections,
    AboutInstances,
    AboutRooms,
    Instance,
    Load,
    Page,
)
from tests.inprocess import HUB, PATIENCE, add, bridging, connected, eventually

pytestmark = pytest.mark.usefixtures("process")

GONE = Instance("gone", "old-host", 1, "0.1.0", 1.0)


async def remember(instance: Instance) -> None:
    await client().hset(key("instances"), instance.id, msgspec.json.encode(instance))


async def remembered() -> dict[str, Instance]:
    found: Any = await client().hgetall(key("instances"))
    return {id.decode(): msgspec.json.decode(raw, type=Instance) for id, raw in found.items()}


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(asking, "PATIENCE", 0.3)


@pytest.fixture
async def others(process: str) -> list[ConnectionRegistry]:
    """Two more processes, as far as Redis can tell."""
    registries = [ConnectionRegistry(), ConnectionRegistry()]
    for registry in (*registries, ConnectionRegistry.current()):
        await registry.start()
        await remember(
            registry.instance
        )  # all of them listen through one subscription, and would count as one
    return registries


async def test_every_process_answers(others: list[ConnectionRegistry]):
    asked = await asyncio.to_thread(instances)
    assert {answer.instance.id for answer in asked.answers} == {
        registry.id for registry in (*others, ConnectionRegistry.current())
    }
    assert asked.silent == []
    assert set(await remembered()) == {answer.instance.id for answer in asked.answers}
    [load] = [
        answer.result for answer in asked.answers if answer.instance.id == ConnectionRegistry.current().id
    ]
    assert (load.connections, load.rooms) == ({}, 0)
    assert load.memory > 0
    assert load.stall >= 0
    assert all(answer.seconds > 0 for answer in asked.answers)


async def test_one_process_can_be_asked_alone(others: list[ConnectionRegistry]):
    asked = await asyncio.to_thread(asking.ask, AboutInstances(), Load, others[0].id)
    assert [answer.instance.id for answer in asked.answers] == [others[0].id]


async def test_half_an_emoji_in_a_name_hides_neither_the_connection_nor_its_process():
    async with connected(name="Ana \ud83d"), connected(user_id="8", name="Bob"):
        asked = await asyncio.to_thread(asking.ask, AboutConnections(), Page)
        assert not asked.silent
        [answer] = asked.answers
        assert {row.name for row in answer.result.rows} == {"Ana \ufffd", "Bob"}


async def test_handshakes_of_one_batch_do_not_share_the_fate_of_odd_names():
    names = ["\ud83d", "\ude00", "\x00", "\u2028", "x" * 5000, "\ud83d\ude00"]
    async with contextlib.AsyncExitStack() as stack:
        clients = [connected(user_id=f"u{number}", name=name) for number, name in enumerate(names * 5)]
        found = await asyncio.gather(*map(stack.enter_async_context, clients))
        assert all(client.ready for client in found)
        members = await store.snapshot(HUB, "attendants")
        assert len(members) == len(clients)


async def test_survey_without_instances_is_no_error_and_takes_no_time(monkeypatch):
    monkeypatch.setattr(asking, "PATIENCE", 2 * PATIENCE)
    asked = await asyncio.wait_for(asyncio.to_thread(instances), PATIENCE)
    assert (asked.answers, asked.silent) == ([], [])


@pytest.mark.usefixtures("impatient")
async def test_who_does_not_answer_is_named_and_missed_until_it_is_forgotten(monkeypatch):
    await ConnectionRegistry.current().start()
    await remember(GONE)
    asked = await asyncio.to_thread(instances)
    assert [answer.instance.id for answer in asked.answers] == [ConnectionRegistry.current().id]
    [silent] = asked.silent
    assert silent.id == "gone"
    assert silent.silent_since is not None
    again = await asyncio.to_thread(instances)
    assert again.silent == asked.silent
    monkeypatch.setattr(asking, "FORGET_SECONDS", 0.0)
    await asyncio.to_thread(instances)
    assert set(await remembered()) == {ConnectionRegistry.current().id}


async def test_survey_does_not_wait_for_an_instance_known_to_be_silent(monkeypatch):
    monkeypatch.setattr(asking, "PATIENCE", 2 * PATIENCE)
    await ConnectionRegistry.current().start()
    await remember(msgspec.structs.replace(GONE, silent_since=asking.time.time()))
    asked = await asyncio.wait_for(asyncio.to_thread(instances), PATIENCE)
    assert [each.id for each in asked.silent] == ["gone"]


@pytest.mark.usefixtures("impatient")
async def test_who_left_in_good_order_is_not_missed(monkeypatch):
    await ConnectionRegistry.current().start()
    await remember(GONE)

    class Leaving:
        """The instance takes its name back while the survey waits for its answer."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sync_client(), name)

        def blpop(self, *args: Any, **options: Any) -> Any:
            sync_client().hdel(key("instances"), "gone")
            return sync_client().blpop(*args, **options)

    monkeypatch.setattr(asking, "sync_client", Leaving)
    assert (await asyncio.to_thread(instances)).silent == []
    assert set(await remembered()) == {ConnectionRegistry.current().id}


async def test_process_that_answers_again_is_silent_no_more():
    await ConnectionRegistry.current().start()
    await remember(msgspec.structs.replace(ConnectionRegistry.current().instance, silent_since=1.0))
    assert (await asyncio.to_thread(instances)).silent == []
    assert (await remembered())[ConnectionRegistry.current().id].silent_since is None


@pytest.mark.usefixtures("impatient")
async def test_instance_that_never_answered_is_missed_from_its_start_on():
    hanging = ConnectionRegistry()
    await hanging.start()
    await hanging.stop()  # it neither answers nor says goodbye
    [silent] = (await asyncio.to_thread(instances)).silent
    assert (silent.id, silent.pid) == (hanging.id, os.getpid())


@pytest.mark.usefixtures("impatient")
async def test_answer_of_another_version_does_no_harm(monkeypatch, caplog):
    await ConnectionRegistry.current().start()
    monkeypatch.setattr(asking, "uuid4", lambda: UUID(int=7))
    await client().rpush(key("answers", UUID(int=7).hex), b"\xc1")
    async with client().pubsub() as other_instance:
        await other_instance.subscribe(history.channel(CONTROL_GROUP))
        asked = await asyncio.to_thread(instances)
    assert [answer.instance.id for answer in asked.answers] == [ConnectionRegistry.current().id]
    assert "answer not understood" in caplog.text


async def test_name_written_by_another_version_does_no_harm():
    await ConnectionRegistry.current().start()
    await client().hset(key("instances"), "future", b'{"id": "future"}')
    asked = await asyncio.to_thread(instances)
    assert [answer.instance.id for answer in asked.answers] == [ConnectionRegistry.current().id]
    assert asked.silent == []


@pytest.mark.usefixtures("impatient")
async def test_other_channel_layers_carry_the_question_as_well(settings):
    redis = settings.REALTIME["REDIS_URL"]
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [{"address": redis}], "prefix": settings.REALTIME["PREFIX"]},
        }
    }
    registry = ConnectionRegistry()
    await registry.start()
    await remember(registry.instance)
    asked = await asyncio.to_thread(instances)
    assert [answer.instance.id for answer in asked.answers] == [registry.id]
    await registry.stop()


async def test_answers_do_not_stay(monkeypatch):
    await ConnectionRegistry.current().start()
    monkeypatch.setattr(asking, "PATIENCE", 0.0)  # so that the answer is not fetched
    monkeypatch.setattr(asking, "uuid4", lambda: UUID(int=7))
    await asyncio.to_thread(instances)
    answers = key("answers", UUID(int=7).hex)
    await eventually(lambda: client().exists(answers))
    assert 0 < await client().ttl(answers) <= EXPIRE_SECONDS
    assert 0 < await client().ttl(key("instances")) <= REMEMBER_SECONDS


async def test_process_that_ends_in_good_order_takes_its_name_along():
    registry = ConnectionRegistry.current()
    await registry.start()
    await asyncio.to_thread(instances)
    await registry.stop()
    await registry.leave()
    assert await remembered() == {}


# --- Connections -------------------------------------------------------------------------------------


class Fake:
    """A connection of a process that is only there for its registry."""

    def __init__(self, number: int) -> None:
        self.connection_id = f"{number:032x}"
        self.user = ("hub", f"u{number}")
        self.opened_at = float(number)
        self.rooms = {f"user:u{number}": 0, f"thread:{number % 3}": 0}
        self.unsent = None
        self.principal = type(
            "Principal", (), {"name": f"Name {number}", "role": "attendant", "jti": f"j{number}"}
        )


async def test_pages_of_several_processes_are_one_list_there_and_back(others: list[ConnectionRegistry]):
    fakes = [Fake(number) for number in range(47)]
    for number, fake in enumerate(fakes):
        others[number % 7 % 2].add(fake)  # type: ignore[arg-type]
    newest_first = [fake.connection_id for fake in reversed(fakes)]
    about = AboutConnections(limit=10)
    pages = [await asyncio.to_thread(connections, about)]
    while pages[-1].has_next:
        onwards = msgspec.structs.replace(about, origin=pages[-1].rows[-1][1].place)
        pages.append(await asyncio.to_thread(connections, onwards))
    assert [row.connection_id for page in pages for _, row in page.rows] == newest_first
    assert [page.before for page in pages] == [0, 10, 20, 30, 40]
    assert {page.total for page in pages} == {47}
    back = msgspec.structs.replace(about, origin=pages[3].rows[0][1].place, backwards=True)
    assert await asyncio.to_thread(connections, back) == pages[2]
    for instance, row in pages[0].rows:
        holder = others[int(row.connection_id, 16) % 7 % 2]
        assert instance.id == holder.id


async def test_sizes_of_rooms_are_summed_over_all_processes(others: list[ConnectionRegistry]):
    for number in range(30):
        others[number % 2].add(Fake(number))  # type: ignore[arg-type]
    others[0].add(Fake(300))  # type: ignore[arg-type]
    total, listed, silent = await asyncio.to_thread(rooms, AboutRooms(), 0, 2)
    assert listed == [("hub", "thread:0", 11), ("hub", "thread:1", 10)]
    assert (total, silent) == (3, [])
    # Thread 2 is not among the largest of one of them, thread 1 not among those of the other.
    others[1].add(Fake(301))  # type: ignore[arg-type]
    _, listed, _ = await asyncio.to_thread(rooms, AboutRooms(limit=1), 0, 1)
    assert listed == [("hub", "thread:0", 11)]


async def test_connection_is_described_with_where_it_stands():
    async with connected("hub", "7", name="Ana", groups=["sales"]) as client_, bridging():
        await client_.call("join:thread", {"thread_id": "42"})
        await add("thread:message", {"thread_id": "42", "message_id": "1"})
        await client_.expect("thread:message")
        connection_id = client_.ready["connection_id"]
        instance, detail, _ = await asyncio.to_thread(connection, connection_id)
        assert instance is not None
        assert instance.id == ConnectionRegistry.current().id
        assert detail.row is not None
        assert (detail.row.user_id, detail.row.name, detail.row.role) == ("7", "Ana", "attendant")
        assert {each.room for each in detail.rooms} == {"user:7", "presence:sales", "thread:42"}
        assert all(each.position == each.end for each in detail.rooms)
        assert detail.groups == ["sales"]
        assert detail.expires_at > detail.row.opened_at


async def test_connection_that_is_over_is_not_found():
    await ConnectionRegistry.current().start()
    instance, detail, silent = await asyncio.to_thread(connection, "unknown")
    assert (instance, detail.row, silent) == (None, None, [])


# --- Commands ----------------------------------------------------------------------------------------


async def test_member_of_the_team_is_taken_out_of_a_thread_and_may_come_back():
    async with connected("hub", "7") as theirs, connected("hub", "8") as other, bridging():
        for each in (theirs, other):
            await each.call("join:thread", {"thread_id": "42"})
        await add("thread:expel", {"thread_id": "42", "user_id": "7"})
        left = await theirs.expect("room:left")
        assert left["data"] == {"room": "thread:42", "reason": "expelled"}
        await other.nothing("room:left")
        await theirs.call("join:thread", {"thread_id": "42"})


async def test_process_ordered_to_drain_gets_one_sigterm_however_many_orders_come(monkeypatch):
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr("realtime.connections.signal_handler.os.kill", lambda *call: killed.append(call))
    registry = ConnectionRegistry.current()
    async with bridging():
        await registry.start()
        for instance in ("another", registry.id, registry.id):
            await add("instance:drain", {"instance": instance})
        await eventually(lambda: killed)
        await broadcast(InstanceDrained(instance=registry.id))
        await registry.probe(5)
    assert killed == [(os.getpid(), 15)]
