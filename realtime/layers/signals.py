"""Signals to every instance: which connections have to close or to leave a room, now."""

from __future__ import annotations

from typing import Any

import msgspec
from channels.layers import get_channel_layer

from realtime.protocol.rooms import CONTROL_GROUP, PORTAL


class UserDisconnected(msgspec.Struct, frozen=True, tag=True):
    """Close the user's connections that were opened before `at` (seconds, Redis' clock)."""

    namespace: str
    user_id: str
    at: float
    reason: str = ""


class TokenRevoked(msgspec.Struct, frozen=True, tag=True):
    """Close what this token opened."""

    jti: str


class ThreadRevoked(msgspec.Struct, frozen=True, tag=True):
    """Take the user out of the thread, where they entered it before `at` (seconds, Redis' clock; 0: whenever)."""

    user_id: str
    thread_id: str
    namespace: str = PORTAL
    reason: str = "forbidden"
    at: float = 0.0


class InstanceDrained(msgspec.Struct, frozen=True, tag=True):
    """Drain an instance, as if it had received SIGTERM."""

    instance: str


class PresenceChanged(msgspec.Struct, frozen=True, tag=True):
    """A user's presence changed: the instances that hold their connections remember it."""

    user_id: str
    status: str
    chosen: bool
    since: float


Signal = UserDisconnected | TokenRevoked | ThreadRevoked | InstanceDrained | PresenceChanged


async def broadcast(signal: Signal) -> None:
    """Send a signal to every instance. Raises `redis.RedisError` when Redis is down."""
    layer: Any = get_channel_layer()
    await layer.group_send(
        CONTROL_GROUP, {"type": "control.signal", "signal": msgspec.to_builtins(signal, enc_hook=str)}
    )


def parse(message: object) -> Signal:
    """The signal of a control message."""
    signal: Signal = msgspec.convert(message, Signal)
    return signal
