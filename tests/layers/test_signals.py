from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from channels.layers import get_channel_layer

from realtime.layers.signals import (
    PresenceChanged,
    RoomRevoked,
    Signal,
    TokenRevoked,
    UserDisconnected,
    broadcast,
    parse,
)
from realtime.protocol.payloads import Id
from realtime.protocol.rooms import CONTROL_GROUP
from tests.inprocess import PATIENCE

SIGNALS = [
    UserDisconnected(namespace="hub", user_id="7", at=1.5),
    TokenRevoked(jti="j1"),
    RoomRevoked(namespace="portal", user_id="7", room="thread:42"),
    PresenceChanged(user_id="7", status="away", chosen=True, since=1500.0),
]


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: type(signal).__name__)
async def test_signal_reaches_every_process(process, signal: Signal):
    layer = get_channel_layer()
    channels = [await layer.new_channel() for _ in range(2)]
    for channel in channels:
        await layer.group_add(CONTROL_GROUP, channel)
    await broadcast(signal)
    for channel in channels:
        message = await asyncio.wait_for(layer.receive(channel), PATIENCE)
        assert parse(message["signal"]) == signal


async def test_ids_travel_as_strings(process):
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add(CONTROL_GROUP, channel)
    await broadcast(RoomRevoked(namespace="portal", user_id=Id("7"), room="thread:42"))
    message = await asyncio.wait_for(layer.receive(channel), PATIENCE)
    assert parse(message["signal"]) == RoomRevoked(namespace="portal", user_id="7", room="thread:42")


def test_versions_side_by_side_understand_each_others_signals():
    """What one knows and the other does not is left out, or has its default."""
    known = {"type": "ThreadRevoked", "user_id": "7", "thread_id": "42", "namespace": "portal"}
    assert parse(known) == parse({**known, "at": 0.0, "added": "later"})
    new: Any = msgspec.to_builtins(RoomRevoked(namespace="portal", user_id="7", room="thread:42"))
    assert new.items() >= known.items()  # as versions read it that know of threads only
    assert parse({**known, "at": 1000.5}) == RoomRevoked(
        namespace="portal", user_id="7", room="thread:42", at=1000.5
    )


@pytest.mark.parametrize("message", [None, {}, {"type": "Unheard"}, {"type": "TokenRevoked"}, "TokenRevoked"])
def test_what_is_no_signal_is_refused(message: object):
    with pytest.raises(msgspec.ValidationError):
        parse(message)
    first = {"type": "ThreadRevoked", "user_id": "7", "thread_id": "42"}
    assert parse(first) == RoomRevoked(namespace="portal", user_id="7", room="thread:42")
