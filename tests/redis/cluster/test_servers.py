"""Slots and servers of a Cluster that move, leave, come or do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
import redis as redis_py
from asgiref.sync import sync_to_async
from redis import asyncio as aioredis

from presence import store
from presence.store import Caller
from realtime.layers import history
from realtime.redis import client as redis
from realtime.redis import pubsub
from realtime.redis.client import client, key, sync_client
from realtime.redis.lease import Lease
from realtime.redis.pipelining import Pipe, Pipes
from realtime.redis.pubsub import Subscription
from realtime.redis.sharded_pubsub import Subscriptions
from realtime.redis.topology import Cluster as ClusterTopology
from realtime.redis.topology import slot, topologies
from realtime.redis.url import parse
from tests.inprocess import HUB, PATIENCE, bridging, eventually
from tests.layers.support import Ears
from tests.redis.cluster.support import ANA_CONNECTS, ROOMS, everywhere, shards
from tests.servers import Cluster, Server

pytestmark = pytest.mark.usefixtures("process")


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
