"""A Redis that lost something: every client is told, and nothing comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from signal import SIGKILL

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import SERVERS, Client, Stack, free_port, unique
from tests.e2e.test_recovery import frames_of, got, heard, ids_of, left_off, say
from tests.faults.proxy import Proxy, to_socket


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis that saves on command, and starts with what it saved."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=SERVERS)
def fragile(
    request: pytest.FixtureRequest, server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A system on a Redis of its own."""
    with Stack(tmp_path_factory.mktemp("fragile"), server.url, REALTIME_NODE_LEASE="1.0") as stack:
        stack.server = request.param
        yield stack.start_all()


async def gap_in(clients: Iterable[Client], *rooms: str) -> None:
    for client in clients:
        for room in rooms:
            frame = await client.expect("room:gap", room=room)
            assert isinstance(frame["data"]["reason"], str)


async def test_redis_restarted_empty_is_said_on_every_connection_and_to_clients_that_come_back(
    fragile: Stack, server: EmbeddedRedis
):
    thread = unique("th")
    room = f"thread:{thread}"
    since = await left_off(fragile, thread, 1, 2)
    async with fragile.client("hub") as attendant, fragile.client("portal", threads=[thread]) as customer:
        for client in (attendant, customer):
            await client.call("join:thread", {"thread_id": thread})
        say(fragile, thread, 3)
        offsets = [int(await heard(client, thread, 3)) for client in (attendant, customer)]
        server.stop(SIGKILL)
        server.start()
        await gap_in((attendant, customer), room)
        await gap_in((attendant,), f"user:{attendant.user_id}")
        say(fragile, thread, 4)
        for client, offset in zip((attendant, customer), offsets, strict=True):
            assert int(await heard(client, thread, 4)) > offset
            assert ids_of(client, thread) == ["3", "4"]
            assert len([f for f in client.received("room:gap") if f["data"]["room"] == room]) == 1
        async with fragile.client("hub") as late:
            answer = await late.call("join:thread", {"thread_id": thread, "since": since})
            assert (answer["recovered"], answer["missed"]) == (False, 0)
            say(fragile, thread, 5)
            await got(late, thread, 5)


async def test_redis_restored_from_an_older_state_is_said_and_nothing_comes_twice(
    fragile: Stack, server: EmbeddedRedis
):
    thread, quiet = unique("th"), unique("th")
    room = f"thread:{thread}"
    before = await left_off(fragile, thread, 1, 2)
    async with fragile.client("hub") as client, fragile.client("hub") as watcher:
        for each in (client, watcher):
            await each.call("join:thread", {"thread_id": thread})
            await each.call("join:thread", {"thread_id": quiet})
        say(fragile, thread, 3)
        say(fragile, quiet, 1)
        await heard(client, thread, 3)
        await heard(client, quiet, 1)
        fragile.redis.save()
        say(fragile, thread, 4, 5, 6)
        await got(client, thread, 3, 4, 5, 6)
        lost = [frame["offset"] for frame in frames_of(client, room)][1:]
        server.stop(SIGKILL)
        server.start()
        await gap_in((client, watcher), room)
        say(fragile, thread, 7, 8)
        say(fragile, quiet, 2)
        for each in (client, watcher):
            await got(each, thread, 3, 4, 5, 6, 7, 8)
            await got(each, quiet, 1, 2)
            offsets = [int(frame["offset"]) for frame in frames_of(each, room)]
            assert offsets == sorted(set(offsets))
            # A room that lost nothing has nothing to say.
            assert not [f for f in each.received("room:gap") if f["data"]["room"] == f"thread:{quiet}"]
            assert len([f for f in each.received("room:gap") if f["data"]["room"] == room]) == 1
    for offset in lost:
        async with fragile.client("hub") as late:
            answer = await late.call("join:thread", {"thread_id": thread, "since": offset})
            assert (answer["recovered"], answer["missed"]) == (False, 0)
            assert ids_of(late, thread) == []
    async with fragile.client("hub") as late:
        answer = await late.call("join:thread", {"thread_id": thread, "since": str(offsets[-1])})
        assert (answer["recovered"], answer["missed"]) == (True, 0)
    async with fragile.client("hub") as late:
        # Nor is a client that left before the loss told that it has missed nothing but what is left.
        answer = await late.call("join:thread", {"thread_id": thread, "since": before})
        assert (answer["recovered"], answer["missed"]) == (False, 0)


async def test_loss_of_what_one_server_alone_has_received_is_said_by_the_others(
    fragile: Stack, server: EmbeddedRedis
):
    """Redis dies after it has sent a message to the one, and before it has sent it to the other."""
    thread = unique("th")
    room = f"thread:{thread}"
    far = free_port()
    async with Proxy(to_socket(server.socket)) as network:
        far_url = f"redis://127.0.0.1:{network.port}/0"
        await asyncio.to_thread(fragile.start_sockets, far, REDIS_URL=far_url)
        async with fragile.client("hub") as has_it, fragile.client("hub", port=far) as lacks_it:
            for client in (has_it, lacks_it):
                await client.call("join:thread", {"thread_id": thread})
            say(fragile, thread, 1)
            for client in (has_it, lacks_it):
                await heard(client, thread, 1)
            fragile.redis.save()
            network.swallow()
            say(fragile, thread, 2)
            await heard(has_it, thread, 2)
            server.stop(SIGKILL)
            network.cut()
            server.start()
            await gap_in((has_it, lacks_it), room)
            say(fragile, thread, 3)
            for client in (has_it, lacks_it):
                await heard(client, thread, 3)
                assert len([f for f in client.received("room:gap") if f["data"]["room"] == room]) == 1
            assert ids_of(lacks_it, thread) == ["1", "3"]


async def test_connections_live_through_an_outage_and_get_what_was_published_as_soon_as_it_is_over(
    fragile: Stack, server: EmbeddedRedis
):
    """Nothing is lost by Redis here: it saved, was away, and is back with everything."""
    thread = unique("th")
    async with fragile.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        say(fragile, thread, 1)
        await heard(client, thread, 1)
        fragile.redis.save()
        server.stop(SIGKILL)
        server.start()
        say(fragile, thread, 2, 3)
        await got(client, thread, 1, 2, 3)
        assert client.close_code is None
        assert not [f for f in client.received("room:gap") if f["data"]["room"] == f"thread:{thread}"]
