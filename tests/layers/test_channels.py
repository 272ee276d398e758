"""What Channels asks of a layer's channels."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from tests.layers.support import Layers, members, message, receive, receive_several


async def test_extensions_are_declared(layer: Any):
    assert {"groups", "flush"} <= set(layer.extensions)


async def test_messages_of_a_channel_come_in_the_order_they_were_sent(layer: Any):
    channel = await layer.new_channel()
    for n in range(90):
        await layer.send(channel, message(n))
    assert await receive_several(layer, channel, 90) == list(range(90))


async def test_channels_do_not_mix(layer: Any):
    one, other = await layer.new_channel(), await layer.new_channel()
    await layer.send(one, message("for one"))
    await layer.send(other, message("for other"))
    assert await receive_several(layer, other, 1) == ["for other"]
    assert await receive_several(layer, one, 1) == ["for one"]


async def test_new_channel_has_a_valid_name_of_this_process_alone(layer: Any):
    for channel in (await layer.new_channel(), await layer.new_channel("a-prefix-of-its-own")):
        assert layer.require_valid_channel_name(channel)
        assert "!" in channel
    assert (await layer.new_channel("a-prefix-of-its-own")).startswith("a-prefix-of-its-own.")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "ünï©ode \N{GRINNING FACE}",
        b"\x00\xff",
        0,
        -1,
        2**53,
        1.5,
        True,
        None,
        [],
        [1, [2, {"a": None}]],
        {"a": {}},
    ],
    ids=repr,
)
async def test_values_arrive_as_they_were_sent(layers: Layers, value: Any):
    layer = layers.make()
    sender = layers.make()
    (channel,) = await members(layer, 1, "group")
    await sender.send(channel, message(value))
    await sender.group_send("group", message(value))
    assert await receive_several(layer, channel, 2) == [value, value]


async def test_what_its_sender_changes_later_does_not_change_the_message(layer: Any):
    (channel,) = await members(layer, 1, "group")
    sent = {"type": "test.message", "n": 1, "nested": {"list": [1]}}
    await layer.send(channel, sent)
    sent["n"] = 2
    sent["nested"]["list"].append(2)  # type: ignore[index]
    assert await receive(layer, channel) == {"type": "test.message", "n": 1, "nested": {"list": [1]}}


async def test_each_receiver_may_change_its_message(layer: Any):
    channels = await members(layer, 3, "group")
    await layer.group_send("group", {"type": "test.message", "nested": {"list": [1]}})
    for channel in channels:
        received = await receive(layer, channel)
        assert received == {"type": "test.message", "nested": {"list": [1]}}
        received["nested"]["list"].append(2)
        received["type"] = "changed"


@pytest.mark.parametrize("wrong", [None, "text", b"bytes", 7, ["list"], [("a", 1)]], ids=repr)
async def test_message_that_is_no_dict_is_refused(layer: Any, wrong: Any):
    (channel,) = await members(layer, 1, "group")
    with pytest.raises((TypeError, AssertionError)):
        await layer.send(channel, wrong)
    with pytest.raises((TypeError, AssertionError)):
        await layer.group_send("group", wrong)


BAD_NAMES = ["", "a b", "a:b", "a/b", "a@b", "ä", "x" * 100, b"bytes", None, 7, ["a"]]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
async def test_bad_name_is_a_type_error(layer: Any, name: Any):
    (channel,) = await members(layer, 1, "group")
    for refused in (
        layer.send(name, message()),
        layer.receive(name),
        layer.group_add(name, channel),
        layer.group_add("group", name),
        layer.group_discard(name, channel),
        layer.group_discard("group", name),
        layer.group_send(name, message()),
    ):
        with pytest.raises(TypeError):
            await refused


@pytest.mark.parametrize("name", ["a", "A-Z_0.9", "x" * 99])
async def test_good_name_is_taken(layer: Any, name: str):
    (channel,) = await members(layer, 1, name)
    await layer.group_send(name, message())
    assert await receive(layer, channel) == message()
    await layer.group_discard(name, channel)


async def test_another_process_can_send_to_a_channel_as_soon_as_it_is_new(layers: Layers):
    here, there = layers.make(), layers.make()
    await there.group_send("empty", message())  # it is connected
    channel = await here.new_channel()
    await there.send(channel, message())
    assert await receive(here, channel) == message()


async def test_sending_to_a_channel_that_is_gone_is_fine(layers: Layers):
    here = layers.make()
    channel = await here.new_channel()
    receiving = asyncio.create_task(here.receive(channel))
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    await here.send(channel, message())
    await layers.make().send(channel, message())


async def test_normal_channel_is_one_for_all_processes(layers: Layers):
    await layers.make().send("work", message(1))
    await layers.make().send("work", message(2))
    assert await receive_several(layers.make(), "work", 2) == [1, 2]


async def test_message_on_a_normal_channel_is_received_once_by_one_of_many_receivers(layer: Any):
    receiving = [asyncio.create_task(receive(layer, "work")) for _ in range(20)]
    await asyncio.sleep(0)
    for n in range(20):
        await layer.send("work", message(n))
    received = [answer["n"] for answer in await asyncio.gather(*receiving)]
    assert sorted(received) == list(range(20))


async def test_receive_cancelled_at_any_moment_loses_no_message_of_a_normal_channel(layer: Any):
    chance = random.Random(1)
    received: set[int] = set()
    for n in range(60):
        receiving = asyncio.create_task(layer.receive("work"))
        await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.001)))
        sending = asyncio.create_task(layer.send("work", message(n)))
        await asyncio.sleep(chance.choice((0, 0, 0.0002, 0.0005, 0.001)))
        receiving.cancel()
        await sending
        with contextlib.suppress(asyncio.CancelledError):
            received.add((await receiving)["n"])
    while len(received) < 60:
        received.add((await receive(layer, "work"))["n"])
    assert received == set(range(60))


async def test_message_on_a_normal_channel_expires(layers: Layers):
    layer = layers.make(expiry=0.1)
    await layer.send("work", message("old"))
    await asyncio.sleep(0.15)
    layer.expiry = 60
    await layer.send("work", message("new"))
    assert await receive_several(layer, "work", 1) == ["new"]


@pytest.mark.parametrize("normal", [False, True], ids=["of a process", "normal"])
async def test_channel_that_is_full_refuses_messages_until_one_is_received(layers: Layers, normal: bool):
    layer = layers.make(capacity=3)
    channel = "work" if normal else await layer.new_channel()
    for n in range(3):
        await layer.send(channel, message(n))
    with pytest.raises(ChannelFull):
        await layer.send(channel, message("too many"))
    assert await receive_several(layer, channel, 1) == [0]
    await layer.send(channel, message(3))
    assert await receive_several(layer, channel, 3) == [1, 2, 3]


async def test_capacity_may_be_of_channels_by_name(layers: Layers):
    layer = layers.make(capacity=1, channel_capacity={"large.*": 2})
    await layer.send("large.one", message())
    await layer.send("large.one", message())
    await layer.send("small.one", message())
    for channel in ("large.one", "small.one"):
        with pytest.raises(ChannelFull):
            await layer.send(channel, message())


async def test_member_that_is_full_is_not_the_senders_business_and_not_the_other_members(layers: Layers):
    layer = layers.make(capacity=3)
    slow, quick = await members(layer, 2, "group")
    for n in range(10):
        await layer.group_send("group", message(n))
        assert await receive_several(layer, quick, 1) == [n]
    assert await receive_several(layer, slow, 3) == [0, 1, 2]
