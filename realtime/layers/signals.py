"""Signals to every instance: which connections have to close or to leave a room, now."""

from __future__ import annotations

import msgspec

from realtime.layers.configured import channel_layer
from realtime.protocol.namespaces import with_unnamed_grants
from realtime.protocol.rooms import CONTROL_GROUP, thread_of, thread_room


class UserDisconnected(msgspec.Struct, frozen=True, tag=True):
    """Close the user's connections that were opened before `at` (seconds, Redis' clock)."""

    namespace: str
    user_id: str
    at: float
    reason: str = ""


class TokenRevoked(msgspec.Struct, frozen=True, tag=True):
    """Close what this token opened."""

    jti: str


class RoomRevoked(msgspec.Struct, frozen=True, kw_only=True, tag="ThreadRevoked"):
    """Take the user out of the room, where they entered it before `at` (seconds, Redis' clock; 0: whenever)."""

    user_id: str
    namespace: str = ""
    """The first versions leave it out: they know threads of one namespace only."""
    room: str = ""
    thread_id: str = ""
    """Of a thread: versions before 0.2 neither send nor read `room`."""
    reason: str = "forbidden"
    at: float = 0.0

    def __post_init__(self) -> None:
        if not self.namespace:
            msgspec.structs.force_setattr(self, "namespace", with_unnamed_grants())
        if not self.room:
            msgspec.structs.force_setattr(self, "room", thread_room(self.thread_id))
        elif not self.thread_id:
            msgspec.structs.force_setattr(self, "thread_id", thread_of(self.room) or "")


class InstanceDrained(msgspec.Struct, frozen=True, tag=True):
    """Drain an instance, as if it had received SIGTERM."""

    instance: str


class PresenceChanged(msgspec.Struct, frozen=True, tag=True):
    """A user's presence changed: the instances that hold their connections remember it."""

    user_id: str
    status: str
    chosen: bool
    since: float
    namespace: str = ""
    """Versions before 0.2, which have presence in one namespace only, leave it out."""


Signal = UserDisconnected | TokenRevoked | RoomRevoked | InstanceDrained | PresenceChanged


async def broadcast(signal: Signal) -> None:
    """Send a signal to every instance. Raises `redis.RedisError` when Redis is down."""
    await channel_layer().group_send(
        CONTROL_GROUP, {"type": "control.signal", "signal": msgspec.to_builtins(signal, enc_hook=str)}
    )


def parse(message: object) -> Signal:
    """The signal of a control message."""
    signal: Signal = msgspec.convert(message, Signal)
    return signal
