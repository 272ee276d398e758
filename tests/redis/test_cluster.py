"""What differs on a Cluster, in one process with three servers. (tests/faults/test_cluster.py kills some.)"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tracemalloc
from collections.abc import Iterator
from signal import SIGCONT, SIGSTOP
from typing import Any, cast

import pytest
import redis as redis_py
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from redis import asyncio as aioredis

from presence import store
from presence.store import Caller
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from realtime.bridge import stream_delivery
from realtime.connections import user_limit
from realtime.connections.arrivals import arrivals
from realtime.layers import history
from realtime.protocol.publication import Draft
from realtime.publisher import apublish
from realtime.redis import client as redis
from realtime.redis import cluster, pubsub
from realtime.redis.client import client, key, mget, sync_client
from realtime.redis.lease import Lease
from realtime.redis.pipelining import Pipe, Pipes
from realtime.redis.pubsub import Subscription
from realtime.redis.sharded_pubsub import Subscriptions
from realtime.redis.topology import Cluster as ClusterTopology
from realtime.redis.topology import slot, topologies, topology
from realtime.redis.url import parse
from realtime.survey import ask
from tests.bridge.support import Room
from tests.inprocess import HUB, PATIENCE, add, bridging, connected, dead_letters, eventually
from tests.layers.support import Ears
from tests.servers import Cluster, Server

ROOMS = [f"hub.thread.{number}" for number in range(24)]
pytestmark = pytest.mark.usefixtures("process")
ANA_CONNECTS = {"does": "connect", "connection": "c", "user": "ana", "name": "A", "groups": ["attendants"]}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), replicas=False) as servers:
        yield servers


@pytest.fixture(scope="module")
def redis_url(servers: Cluster) -> str:
    """With every option that is permitted for a Cluster."""
    return (
        f"{servers.url}?client_name=ours&health_check_interval=15&max_connections=900&socket_connect_timeout=4"
        "&socket_keepalive=1&socket_timeout=5"
    )


@pytest.fixture
def layer(process: str) -> Any:
    return get_channel_layer()


def everywhere(entry: str, *, id: str = "", groups: list[str] = ROOMS) -> Draft:
    rooms = [(group, f"{entry}@".encode()) for group in groups]
    return Draft(rooms=rooms, tail=b"", source="stream", entry=f"{entry:0>20}", id=id)


# --- Rooms -------------------------------------------------------------------------------------------


async def test_entry_reaches_its_rooms_on_all_servers_once(layer: Any):
    assert len({slot(history.base(group)) // 5461 for group in ROOMS}) == 3
    ears = [await Ears.in_rooms(layer, group) for group in ROOMS]
    (positions,) = await history.append([everywhere("1")])
    assert len(positions) == len(ROOMS)
    assert await history.append([everywhere("1"), everywhere("2")]) == [
        [b""] * len(ROOMS),
        [str(end).encode() for end in (await history.ends(ROOMS)).values()],
    ]
    for each in ears:
        await each.hear("1", "2")
    assert [each.positions[0] for each in ears] == [int(position) for position in positions]


async def test_batch_that_failed_half_way_can_be_repeated(layer: Any, monkeypatch):
    """One of the servers is away: what the others did stays, and is not done again."""
    ears = [await Ears.in_rooms(layer, group) for group in ROOMS]
    run, broken = Pipe.run, slot(history.base(ROOMS[5]))

    def unreliable(self: Pipe, script: Any, keys: Any, arguments: Any) -> Any:
        if keys and slot(keys[0]) == broken:
            raise redis_py.ConnectionError("gone")
        return run(self, script, keys, arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Pipe, "run", unreliable)
        with pytest.raises(redis_py.ConnectionError):
            await history.append([everywhere("1"), everywhere("2")], cursor=(key("cursors"), b"s", b"2-0"))
    assert await client().hget(key("cursors"), "s") is None
    await history.append([everywhere("1"), everywhere("2")], cursor=(key("cursors"), b"s", b"2-0"))
    assert await client().hget(key("cursors"), "s") == b"2-0"
    for each in ears:
        await each.hear("1", "2")


async def test_entry_that_one_of_its_rooms_refuses_reaches_all_others_and_the_cursor_waits(layer: Any):
    ears = [await Ears.in_rooms(layer, group) for group in ROOMS[1:]]
    await client().set(f"{history.base(ROOMS[0])}:room", "not ours")
    entries = [everywhere("1", groups=ROOMS[1:]), everywhere("2"), everywhere("3", groups=ROOMS[1:])]
    appended = await history.append(entries, cursor=(key("cursors"), b"s", b"3-0"))
    ((number, why),) = history.refusals(appended, entries)
    assert number == b"1"
    assert why.startswith(b"WRONGTYPE")
    assert await client().hget(key("cursors"), "s") is None
    for each in ears:
        await each.hear("1", "2", "3")


async def test_cursor_of_a_bridge_that_is_behind_moves_nothing_back():
    for entry in (b"10-0", b"9-5", b"10-1", b"10-0"):
        await history.append([everywhere("1")], cursor=(key("cursors"), b"s", entry))
    assert await client().hget(key("cursors"), "s") == b"10-1"


async def test_what_large_bodies_in_many_slots_cost_is_bounded():
    rooms = [(f"hub.thread.{number}", b"") for number in range(1000)]
    large = Draft(rooms=rooms, tail=b"x" * 200_000, source="stream", entry=f"{1:0>20}")
    tracemalloc.start()
    try:
        await history.prepare_append(pipes := Pipes(), [large])()
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
        pipes.close()


async def test_id_is_remembered_by_every_room(layer: Any):
    ears = [await Ears.in_rooms(layer, group) for group in ROOMS[:6]]
    await history.append([everywhere("1", id="order-7", groups=ROOMS[:3])])
    await history.append([everywhere("2", id="order-7", groups=ROOMS[:6])])
    for each in ears[:3]:
        await each.hear("1")
    for each in ears[3:]:
        await each.hear("2")


async def test_former_holder_of_the_lease_publishes_nothing():
    await client().set(key("lease", "bridge"), "another bridge")
    assert await history.append([everywhere("1")], lease=(key("lease", "bridge"), "me")) == []


async def test_batch_that_goes_over_pipes_ends_with_them():
    """Lease and cursor go over them, too: what has begun uses nothing that might be closed before."""
    pipes, cursor = Pipes(), (key("cursors"), b"s", b"2-0")
    await client().set(key("lease", "bridge"), "me")
    assert await history.prepare_append(
        pipes, [everywhere("1")], lease=(key("lease", "bridge"), "me"), cursor=cursor
    )()
    assert await client().hget(key("cursors"), "s") == b"2-0"
    pipes.close()
    with pytest.raises(redis_py.RedisError):
        await history.prepare_append(pipes, [everywhere("2")], cursor=cursor)()


@pytest.mark.usefixtures("without_outbox")
async def test_bridge_delivers_from_streams_on_different_servers(layer: Any):
    rooms = [await Room().enter(f"thread:{number}") for number in range(12)]
    attendants = await Room().enter("presence:attendants")
    async with bridging():
        store.apply_sync(HUB, [{"does": "sweep"}])
        await store.apply(HUB, [ANA_CONNECTS], Caller("n", registers=True))
        for number in range(12):
            await apublish("thread:message", {"thread_id": number, "message_id": 1})
            await add("thread:message", {"thread_id": number, "message_id": 2})
        for room in rooms:
            assert await room.message_ids(2) == ["1", "2"]
        assert (await attendants.frame())["event"] == "attendant:online"
        await client().execute_command(
            "PUBLISH",
            key("events"),
            json.dumps({"event": "thread:message", "data": {"thread_id": 3, "message_id": 3}}),
            target_nodes="random",
        )
        assert await rooms[3].message_ids(1) == ["3"]


async def room_as_it_was(group: str) -> dict[str, bytes]:
    """The keys of a room, for `forget_the_rest`."""
    kept: dict[str, bytes] = {}
    for name in ("room", "log"):
        dumped: Any = await client().dump(f"{history.base(group)}:{name}")
        kept[f"{history.base(group)}:{name}"] = dumped
    return kept


async def forget_the_rest(kept: dict[str, bytes]) -> None:
    """As a replica that takes over without the newest writes."""
    for name, value in kept.items():
        await client().restore(name, 0, value, replace=True)


async def is_delivered() -> bool:
    """All of the stream, and the next bridge will know. (A dead letter is written before the cursor.)"""
    ((newest, _),) = cast(Any, await client().xrevrange(key("stream"), count=1))
    return bool(await client().hget(key("cursors"), key("stream")) == newest)


async def seen(group: str, position: int) -> list[str]:
    found = await history.after(group, position, 10)
    return [json.loads(each.frame)["data"]["message_id"] for each in found.publications]


def offsets(ears: Ears) -> list[int]:
    return [int(json.loads(text)["offset"]) for text in ears.heard if isinstance(text, str)]


@pytest.mark.parametrize("who", ["another bridge", "the same bridge"])
async def test_what_a_replica_never_got_is_delivered_again(layer: Any, who: str):
    """The cursor is on another server, and knows more than the room."""
    group = "hub.thread.42"
    found = shards()
    ears = await Ears.in_rooms(layer, group)
    async with contextlib.AsyncExitStack() as first:
        await first.enter_async_context(bridging())
        await add("thread:message", {"thread_id": 42, "message_id": 1})
        await eventually(lambda: len(offsets(ears)) == 1)
        kept = await room_as_it_was(group)
        await add("thread:message", {"thread_id": 42, "message_id": 2})
        await eventually(lambda: len(offsets(ears)) == 2)
        await add("no:such", {})
        await eventually(is_delivered)
        ears.leave(layer)  # else the history would be cut: an instance knows that the replica lacks something
        await forget_the_rest(kept)
        assert await seen(group, offsets(ears)[0]) == []
        if who == "the same bridge":
            for tell in tuple(found.on_arrival):
                tell()
            await eventually(lambda: seen(group, offsets(ears)[0]))
        else:
            await first.aclose()
            await first.enter_async_context(bridging())
        await add("thread:message", {"thread_id": 42, "message_id": 3})
        await eventually(lambda: seen_all(group, offsets(ears)[0]))
    again = await Ears().enter(layer, group)
    assert (
        await layer.missed(again.listeners[0], str(offsets(ears)[1])) is None
    )  # its position is nowhere any more
    assert len(await dead_letters()) == 1


async def seen_all(group: str, position: int) -> bool:
    return await seen(group, position) == ["2", "3"]


async def test_what_is_delivered_again_is_not_for_clients_that_came_later(layer: Any):
    async with bridging():
        await add("thread:message", {"thread_id": 42, "message_id": 1})
        await add("no:such", {})
        await eventually(is_delivered)
    ears = await Ears.in_rooms(layer, "hub.thread.42")
    async with bridging():
        await add("thread:message", {"thread_id": 42, "message_id": 2})
        await eventually(lambda: offsets(ears))
    assert [json.loads(text)["data"]["message_id"] for text in ears.heard] == ["2"]


async def test_what_has_been_delivered_again_does_not_move_the_cursor_back(layer: Any):
    ears = await Ears.in_rooms(layer, "hub.thread.42")
    async with bridging():
        for number in range(3):
            await add("thread:message", {"thread_id": 42, "message_id": number})
        await eventually(lambda: len(offsets(ears)) == 3)
        await eventually(is_delivered)
    before = await client().hgetall(key("cursors"))
    async with bridging():
        pass
    assert await client().hgetall(key("cursors")) == before


@pytest.mark.parametrize("is_with_the_stream", [True, False])
async def test_message_does_not_wait_for_the_next_one_nor_for_an_idle_stream(
    layer: Any, monkeypatch, caplog, is_with_the_stream: bool
):
    """A read that waits in Redis holds up what the bridge sends to that server after it."""
    monkeypatch.setattr(stream_delivery, "READ_BLOCK", 60.0)
    found = shards()
    await found.known()
    at = found.owner(key("stream"))
    places = ((found.owner(history.base(f"hub.thread.{number}")) == at, number) for number in range(100))
    thread = dict(places)[is_with_the_stream]
    ears = await Ears.in_rooms(layer, f"hub.thread.{thread}")
    async with bridging():
        for number in range(3):
            await add("thread:message", {"thread_id": thread, "message_id": number})
            await eventually(lambda number=number: len(offsets(ears)) == number + 1)
        assert "redis does not answer" not in caplog.text


# --- Servers -----------------------------------------------------------------------------------------


def shards() -> ClusterTopology:
    found = topology()
    assert isinstance(found, ClusterTopology)
    return found


def owners(found: ClusterTopology) -> list[Any]:
    """The server of each slot."""
    names = {slot(name): name for name in map(str, range(200_000))}
    return [found.owner(names[number]) for number in range(16384)]


def misled(found: ClusterTopology) -> None:
    """Let it believe that the first server has everything."""
    found.learn([found.owner("x")] * 16384)


async def test_command_follows_its_slot(layer: Any):
    found = shards()
    await found.known()
    pipes = Pipes()
    misled(found)
    assert len(await history.ends(ROOMS)) == len(ROOMS)
    await eventually(lambda: len(found.servers()) == 3)
    pipes.close()


async def test_subscription_follows_its_slot(layer: Any):
    found = shards()
    await found.known()
    misled(found)

    async def enter() -> Ears | None:
        with contextlib.suppress(redis_py.RedisError):  # as a client does, who is told "unavailable"
            return await Ears.in_rooms(layer, *ROOMS)
        return None

    ears = await eventually(enter)  # a server that does not serve a channel says so
    assert len(found.servers()) == 3
    await history.append([everywhere("1")])
    await ears.hear(*["1"] * len(ROOMS))


async def test_channels_move_with_their_slots_and_what_was_missed_meanwhile_is_noticed(servers: Cluster):
    lost: list[bytes] = []
    restored: set[bytes] = set()
    subscriptions = Subscriptions(lambda messages: None, lost.extend, restored.update)
    channels = [f"channel-{number}".encode() for number in range(9)]
    await subscriptions.subscribe(channels)
    found = shards()
    right = owners(found)
    wrong = right.copy()
    wrong[slot(b"x")] = next(server for server in right if server != right[slot(b"x")])
    found.learn(wrong)
    assert not restored  # nothing that is subscribed moved
    assert not lost
    first = next(channel for channel in channels if found.owner(channel) == right[0])
    changed = right.copy()
    changed[slot(first)] = right[-1]
    found.learn(changed)  # it does not serve it: that is said, and the Cluster is asked
    assert first in lost
    assert subscriptions.is_lost(first)
    await eventually(lambda: first in restored)
    assert not subscriptions.is_lost(first)
    pipes = Pipes()

    async def are_heard(channels: list[bytes], by: int) -> bool:
        return await asyncio.gather(*map(pipes.listeners, channels)) == [by] * len(channels)

    await eventually(lambda: are_heard(channels, 1))
    subscriptions.unsubscribe(channels[0])
    await eventually(lambda: are_heard(channels[:1], 0))
    pipes.close()
    subscriptions.close()


async def test_who_is_left_of_the_lost_is_told_though_the_last_one_missing_is_not_wanted_any_more(
    monkeypatch,
):
    lost: list[bytes] = []
    restored: list[set[bytes]] = []
    found = shards()
    await found.known()
    subscription = Subscription(
        lambda messages: None,
        lost.extend,
        lambda channels: restored.append(set(channels)),
        found.owner(b"{x}a"),
    )
    await subscription.subscribe([b"{x}a", b"{x}b"])
    for name, seconds in ((b"{x}a", 0.0), (b"{x}b", 60.0)):
        monkeypatch.setattr(pubsub, "TAKEN_SECONDS", seconds)
        replies = iter([[b"sunsubscribe", name, 0]])  # another server has the slot
        subscription.on_replies(lambda replies=replies: next(replies, False))
    assert lost == [b"{x}a", b"{x}b"]
    await subscription.subscribe([b"{x}a"])
    assert restored == []
    subscription.unsubscribe(b"{x}b")
    await eventually(lambda: restored == [{b"{x}a"}])
    subscription.close()


def half_way(servers: Cluster, name: str) -> tuple[Server, Server]:
    """The slot of a key is on its way from the first to the second, but nothing of it has been moved yet."""
    found = shards()
    at = found.owner(name)[1]
    (here,) = [server for server in servers.primaries if server.port == at]
    there = next(server for server in servers.primaries if server is not here)
    names = {server: server.call("CLUSTER", "MYID").decode() for server in (here, there)}
    there.call("CLUSTER", "SETSLOT", slot(name), "IMPORTING", names[here])
    here.call("CLUSTER", "SETSLOT", slot(name), "MIGRATING", names[there])
    return here, there


async def test_slot_may_move_while_people_are_in_its_rooms(layer: Any, servers: Cluster, caplog):
    room, moving = ROOMS[0], slot(history.base(ROOMS[0]))
    ears = await Ears.in_rooms(layer, room)
    await history.append([everywhere("1", groups=[room])])
    found = shards()
    here, there = half_way(servers, history.base(room))
    ears_lost = caplog.text.count("subscription lost")
    with pytest.raises(redis_py.RedisError):  # half-way: later
        await history.append([everywhere("2", groups=[room])])
    keys = here.call("CLUSTER", "GETKEYSINSLOT", moving, 100)
    here.call("MIGRATE", "127.0.0.1", there.port, "", 0, 5000, "KEYS", *keys)
    name = there.call("CLUSTER", "MYID").decode()
    for server in (there, here):
        server.call("CLUSTER", "SETSLOT", moving, "NODE", name)
    await history.append([everywhere("1", groups=[room]), everywhere("2", groups=[room])])
    await ears.hear("1", "2")
    assert found.owner(history.base(room))[1] == there.port
    await history.append([everywhere("3", groups=[room])])
    await ears.hear("1", "2", "3")
    assert caplog.text.count("subscription lost") == ears_lost  # the other rooms of the server stay


async def test_presence_that_is_being_moved_is_not_taken_for_empty(layer: Any, servers: Cluster):
    found = shards()
    await found.known()
    await store.apply(HUB, [ANA_CONNECTS], Caller("n", registers=True))
    both = half_way(servers, store.base(HUB))
    try:
        with pytest.raises(redis_py.RedisError, match="TRYAGAIN"):
            await store.snapshot(HUB, "attendants")
    finally:
        for server in both:
            server.call("CLUSTER", "SETSLOT", slot(store.base(HUB)), "STABLE")
    assert [member["user_id"] for member in await store.snapshot(HUB, "attendants")] == ["ana"]


@pytest.mark.parametrize("is_held", [True, False])
async def test_lease_can_be_had_while_its_slot_is_being_moved(layer: Any, servers: Cluster, is_held: bool):
    lease, successor = Lease("bridge", 60), Lease("bridge", 60)
    name = lease.fence[0]
    await shards().known()
    if is_held:
        await lease.hold()
    both = here, there = half_way(servers, name)
    try:
        if is_held:
            here.call("MIGRATE", "127.0.0.1", there.port, "", 0, 5000, "KEYS", name)
            assert await lease.renew(lease.fence[1])
            assert await lease.hold()
            await lease.release()
        assert await successor.hold()
        assert await successor.renew(successor.fence[1])
        assert not await lease.hold()
        await successor.release()
    finally:
        for server in both:
            server.call("CLUSTER", "SETSLOT", slot(name), "STABLE")


async def test_command_that_is_sent_in_circles_fails(layer: Any):
    found = shards()
    await found.known()
    wrong = next(server for server in found.servers() if server != found.owner("x"))
    pipe = Pipe(wrong, redirect=lambda moved, command: pipe.resend(command))
    with pytest.raises(redis_py.RedisError):
        await asyncio.wait_for(pipe.send("GET", "x"), PATIENCE)
    pipe.close()
    with pytest.raises(redis_py.RedisError):
        await pipe.send("GET", "x")


async def test_look_that_is_given_up_at_whatever_moment_leaves_no_connection(servers: Cluster, monkeypatch):
    make, made = aioredis.ConnectionPool.make_connection, []

    def noted(pool: Any) -> Any:
        made.append(make(pool))
        return made[-1]

    monkeypatch.setattr(aioredis.ConnectionPool, "make_connection", noted)
    for turns in range(60):
        found = ClusterTopology(parse(servers.url))
        found.refresh()
        for _ in range(turns):
            await asyncio.sleep(0)
        found.close()
        await eventually(lambda: not any(connection.is_connected for connection in made))
    assert made


async def test_server_that_comes_is_told_from_a_slot_that_moves():
    found = ClusterTopology(parse("redis+cluster://a"))
    arrived: list[int] = []
    found.on_arrival.add(lambda: arrived.append(1))
    found.learn([("a", 1)] * 8 + [("b", 1)] * 8)
    found.learn([("a", 1)] * 9 + [("b", 1)] * 7)
    assert arrived == []
    found.learn([("a", 1)] * 9 + [("c", 1)] * 7)
    assert arrived == [1]


async def test_pipe_to_a_server_that_has_left_is_given_back(servers: Cluster):
    found = shards()
    await found.known()
    right, stays = owners(found), found.owner("x")

    def pinged() -> list[int]:
        """How many connections to each server were last used for a PING, as those of the pipes are."""
        return [server.call("CLIENT", "LIST").count(b" cmd=ping ") for server in servers.primaries]

    pipes = Pipes()
    await pipes.answer()
    assert pinged() == [1] * len(servers.primaries)
    found.learn([stays] * 16384)
    await eventually(lambda: pinged() == [server.port == stays[1] for server in servers.primaries])
    found.learn(right)
    pipes.close()


async def test_pub_sub_goes_on_at_another_server_when_its_own_has_left(
    layer: Any, servers: Cluster, monkeypatch
):
    def listening() -> set[int]:
        """Ports of the servers at which the bridge has subscribed."""
        counts = {each.port: each.call("PUBSUB", "NUMSUB", key("events"))[1] for each in servers.primaries}
        return {port for port, count in counts.items() if count}

    found = shards()
    async with bridging():
        (gone,) = await eventually(listening)
        known = found.servers()
        monkeypatch.setattr(found, "servers", lambda: {each for each in known if each[1] != gone})
        monkeypatch.setattr(found, "any_server", lambda: next(iter(found.servers())))
        for tell in tuple(found.on_change):
            tell()
        await eventually(lambda: listening() - {gone})
        ears = await Ears.in_rooms(layer, "hub.thread.42")

        async def arrives() -> bool:
            message = {"event": "thread:message", "data": {"thread_id": 42, "message_id": 3}}
            await client().execute_command(
                "PUBLISH", key("events"), json.dumps(message), target_nodes="random"
            )
            return bool(ears.heard)

        await eventually(arrives)


async def test_process_that_starts_before_the_cluster_is_made_finds_it(tmp_path, settings):
    server = Cluster.server(tmp_path / "single")
    with server:
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": f"redis+cluster://127.0.0.1:{server.port}"}
        for _ in range(3):
            with pytest.raises(redis_py.RedisError):
                await client().get("x")
            with pytest.raises(redis_py.RedisError):
                await sync_to_async(lambda: sync_client().get("x"))()
        server.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def is_there(get: Any) -> bool:
            with contextlib.suppress(redis_py.RedisError):
                await get()
                return True
            return False

        await eventually(lambda: is_there(lambda: client().get("x")))
        await eventually(lambda: is_there(sync_to_async(lambda: sync_client().get("x"))))
        await redis.close()


async def test_server_that_stands_still_is_noticed_and_heard_again(
    layer: Any, servers: Cluster, settings, caplog
):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 1}
    ears = await Ears.in_rooms(layer, *ROOMS)
    process = servers.primaries[0].process
    assert process is not None
    process.send_signal(SIGSTOP)
    try:
        await eventually(lambda: "redis does not answer" in caplog.text)
    finally:
        process.send_signal(SIGCONT)
    await eventually(lambda: "subscription restored" in caplog.text)
    await eventually(lambda: is_whole(servers))
    await history.append([everywhere("1")])
    await ears.hear(*["1"] * len(ROOMS))


def is_whole(servers: Cluster) -> bool:
    return all(b"cluster_state:ok" in server.call("CLUSTER", "INFO") for server in servers.primaries)


async def test_cluster_that_is_away_is_a_redis_error(settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis+cluster://127.0.0.1:1"}
    with pytest.raises(redis_py.RedisError):
        await client().get("x")
    pipeline = client().pipeline(transaction=False)
    with pytest.raises(redis_py.RedisError):
        await pipeline.__aenter__()
    pipeline.get("x")
    with pytest.raises(redis_py.RedisError):
        await pipeline.execute()
    with pytest.raises(redis_py.RedisError):
        sync_client()
    topologies.end()
    found = shards()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(found.known(), 0.3)


# --- Whatever is asked for together --------------------------------------------------------------------


async def test_keys_of_several_slots_are_read_together():
    a, b, c = key("a"), key("b"), key("c")
    await client().set(b, "2")
    assert await mget([a, b, c]) == [None, b"2", None]
    assert await mget([b]) == [b"2"]


async def test_connections_of_many_users_are_recorded_together(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"USER_CONNECTIONS": 1}}
    layer: Any = get_channel_layer()
    channels = [await layer.new_channel() for _ in range(8)]
    taken = [user_limit.UserConnection("hub", f"u{number}", name) for number, name in enumerate(channels)]
    someone = verify(issue(user_id="7", role="attendant"))
    arrived = await asyncio.gather(*[arrivals().ask(someone, each) for each in taken])
    assert not any(arrival.surplus for arrival in arrived if arrival)
    second = await layer.new_channel()
    arrival = await arrivals().ask(someone, taken[3]._replace(channel=second))
    assert arrival is not None
    assert arrival.surplus == [channels[3], second]
    await user_limit.close_oldest(taken[3], arrival.surplus)
    assert (await layer.receive(channels[3]))["type"] == "connection.replaced"
    await asyncio.gather(*map(user_limit.release, taken))
    assert await client().zrange(taken[3].key, 0, -1) == [second.encode()]


async def test_process_without_a_subscription_is_told_from_one_that_lives(layer: Any):
    alive = await layer.new_channel()
    assert await layer.dead([alive, "specific.gone!1"]) == {"specific.gone!1"}


def test_synchronous_code_works_as_with_one_server():
    sync_client().set(key("a"), "1")
    assert sync_client().get(key("a")) == b"1"
    assert store.statuses_sync(HUB, ["ana", "bob"]) == {"ana": "offline", "bob": "offline"}
    assert store.snapshot_sync(HUB, "attendants") == []


async def test_operator_hears_from_the_processes_and_sees_what_they_have():
    async with connected(user_id="7") as ana:
        await ana.call("join:thread", {"thread_id": "42"})
        instances = await sync_to_async(ask.instances)()
        assert [answer.result.connections for answer in instances.answers] == [{"hub": 1}]
        assert instances.silent == []
        _, detail, _ = await sync_to_async(ask.connection)(ana.ready["connection_id"])
        assert "thread:42" in {each.room for each in detail.rooms}


# --- Settings ----------------------------------------------------------------------------------------


def test_cluster_is_several_addresses_to_ask_for_the_others():
    location = parse("rediss+cluster://me:pw@a,b:7001")
    assert location.nodes == (("a", 6379), ("b", 7001))
    with pytest.raises(redis_py.RedisError):
        cluster.sync_client(location)  # neither of them is there
    arguments = cast(Any, cluster.client(location)).get_connection_kwargs()
    assert (arguments["username"], arguments["password"]) == ("me", "pw")
    with pytest.raises(ValueError, match="one database"):
        parse("redis+cluster://a/1")
