"""What differs on a Cluster, in one process with three servers. (tests/faults/test_cluster.py kills some.)"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import redis as redis_py
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer

from presence import store
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from realtime.connections import user_limit
from realtime.connections.arrivals import arrivals
from realtime.redis import cluster
from realtime.redis.client import client, key, mget, sync_client
from realtime.redis.url import parse
from realtime.survey import ask
from tests.inprocess import HUB, connected

pytestmark = pytest.mark.usefixtures("process")


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
