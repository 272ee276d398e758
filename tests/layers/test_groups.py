"""What Channels asks of a layer's groups."""

from __future__ import annotations

import asyncio
from typing import Any

from realtime.layers.room_layer import RoomChannelLayer
from realtime.redis import client as redis_module
from tests.inprocess import PATIENCE
from tests.layers.support import END, Layers, members, message, receive, receive_several


async def test_channel_outside_the_group_does_not_get_it(layer: Any):
    (outside,) = await members(layer, 1, "another-group")
    await members(layer, 2, "group")
    await layer.group_send("group", message())
    await layer.send(outside, END)
    assert await receive(layer, outside) == END


async def test_channel_added_twice_gets_it_once_and_is_out_when_discarded_once(layer: Any):
    (channel,) = await members(layer, 1, "group", "group")
    await layer.group_send("group", message())
    await layer.group_send("group", END)
    assert await receive_several(layer, channel, 2) == [1, "end"]
    await layer.group_discard("group", channel)
    await layer.group_send("group", message())
    await layer.send(channel, END)
    assert await receive(layer, channel) == END


async def test_discarded_channel_gets_nothing_more_and_the_others_do(layer: Any):
    gone, stays = await members(layer, 2, "group")
    await layer.group_discard("group", gone)
    await layer.group_send("group", message())
    assert await receive(layer, stays) == message()
    await layer.send(gone, END)
    assert await receive(layer, gone) == END


async def test_discarding_from_one_group_leaves_the_others(layer: Any):
    (channel,) = await members(layer, 1, "one", "two")
    await layer.group_discard("one", channel)
    await layer.group_send("one", message("one"))
    await layer.group_send("two", message("two"))
    assert await receive(layer, channel) == message("two")


async def test_discarding_a_channel_that_is_not_in_is_fine(layer: Any):
    (channel,) = await members(layer, 1, "group")
    await layer.group_discard("never-heard-of", channel)
    await layer.group_discard("group", await layer.new_channel())
    await layer.group_discard("group", channel)
    await layer.group_discard("group", channel)


async def test_group_and_channel_of_the_same_name_are_different(layer: Any):
    (channel,) = await members(layer, 1, "name")
    receiving = asyncio.create_task(layer.receive("name"))
    await asyncio.sleep(0)
    await layer.group_send("name", message())
    assert await receive(layer, channel) == message()
    assert not receiving.done()
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)


async def test_group_is_one_for_all_processes(layers: Layers):
    processes = [layers.make() for _ in range(3)]
    channels = [(await members(layer, 2, "group"), layer) for layer in processes]
    for n, sender in enumerate(processes):
        await sender.group_send("group", message(n))
        for own, layer in channels:
            for channel in own:
                assert await receive(layer, channel) == message(n)


async def test_two_hundred_join_at_once_and_all_of_them_are_in(layer: Any):
    channels = [await layer.new_channel() for _ in range(200)]
    await asyncio.gather(*(layer.group_add(f"group.{n}", channel) for n, channel in enumerate(channels)))
    await asyncio.gather(*(layer.group_add("all", channel) for channel in channels))
    await asyncio.gather(*(layer.group_send(f"group.{n}", message(n)) for n in range(200)))
    assert [(await receive(layer, channel))["n"] for channel in channels] == list(range(200))
    await layer.group_send("all", END)
    assert [await receive(layer, channel) for channel in channels] == [END] * 200


async def test_hundred_receivers_wait_at_once_and_each_gets_everything(layer: Any):
    channels = await members(layer, 100, "group")
    receiving = [asyncio.create_task(receive_several(layer, channel, 20)) for channel in channels]
    await asyncio.sleep(0)
    for n in range(20):
        await layer.group_send("group", message(n))
    assert await asyncio.gather(*receiving) == [list(range(20))] * 100


async def test_receive_can_be_cancelled_at_any_moment(layer: Any):
    for n in range(100):
        (channel,) = await members(layer, 1, "group")
        await layer.send(channel, message())
        receiving = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(n * 0.00002)
        receiving.cancel()
        await asyncio.wait_for(asyncio.gather(receiving, return_exceptions=True), PATIENCE)


async def test_flushed_layer_is_like_new(layer: Any):
    (before,) = await members(layer, 1, "group")
    await layer.send(before, message("old"))
    await layer.flush()
    (channel,) = await members(layer, 1, "group")
    await layer.group_send("group", END)
    assert await receive(layer, channel) == END


def test_layer_works_in_one_event_loop_after_another(realtime_redis: str):
    layer = RoomChannelLayer()

    async def use() -> None:
        channels = await members(layer, 3, "group")
        await layer.group_send("group", message())
        for channel in channels:
            assert await receive(layer, channel) == message()
        await layer.flush()
        await redis_module.close()

    for _ in range(3):
        asyncio.run(use())
