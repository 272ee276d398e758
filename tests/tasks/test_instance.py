from __future__ import annotations

import asyncio
from typing import Any

import pytest
from channels.layers import get_channel_layer

from realtime.connections.registry import ConnectionRegistry
from realtime.layers.room_layer import RoomChannelLayer
from realtime.redis.client import client, key
from realtime.redis.lease import Lease
from realtime.tasks.instance import id_for
from tests.inprocess import connected

pytestmark = pytest.mark.usefixtures("process")


async def test_instance_has_one_id_in_channels_leases_presence_and_what_operators_see():
    layer: Any = get_channel_layer()
    channel = await layer.new_channel()
    async with connected():
        known: Any = await client().hkeys(key("instances"))
        present: Any = await client().zrange(f"{{{key('presence')}}}:nodes", 0, -1)
    id = ConnectionRegistry.current().instance.id
    assert channel.split("!")[0].split(".")[-1] == id
    lease = Lease("bridge", 60)
    await lease.hold()
    assert lease.fence[1] == f"{id}:1"
    assert [name.decode() for name in known] == [id]
    assert [name.decode() for name in present] == [id]


async def test_second_layer_and_second_lease_are_told_from_the_first():
    layers = RoomChannelLayer(), RoomChannelLayer()
    owners = {(await layer.new_channel()).split("!")[0] for layer in layers}
    assert len(owners) == 2
    terms = set()
    for lease in (Lease("bridge", 60), Lease("bridge", 60)):
        await lease.hold()
        terms.add(lease.fence)
        await lease.release()
    assert len(terms) == 2


async def test_each_loop_is_an_instance_of_its_own():
    elsewhere = await asyncio.to_thread(asyncio.run, _id())
    assert elsewhere != await _id()


async def _id() -> str:
    return id_for("test")
