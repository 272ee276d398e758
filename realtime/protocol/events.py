"""The events of every namespace and of threads, and the frames that the server sends to one connection."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from realtime.protocol.catalogue import control_event, server_event
from realtime.protocol.ids import composed
from realtime.protocol.namespaces import THREAD, namespaces, uses
from realtime.protocol.payloads import Id, Payload
from realtime.protocol.rooms import is_room, thread_room


class InThread(Payload, frozen=True):
    """A payload that names a thread."""

    thread_id: Id


def in_thread(payload: InThread) -> Sequence[str]:
    """Route an event to its thread."""
    return [thread_room(payload.thread_id)]


@server_event("thread:message", namespaces=uses(THREAD), rooms=in_thread)
class ThreadMessage(InThread, frozen=True):
    """A message was stored in a thread."""

    message_id: Id


# --- Ephemeral events: straight from one socket to the room, never stored --------------------------


class FromUser(InThread, frozen=True):
    """A payload that names the user who caused the event."""

    user_id: Id
    namespace: str
    name: str


@server_event("thread:typing", namespaces=uses(THREAD))
class ThreadTyping(FromUser, frozen=True):
    """A user started or stopped typing. Drop a typist after 12 s without another event."""

    typing: bool


@server_event("thread:cursor", namespaces=uses(THREAD))
class ThreadCursor(FromUser, frozen=True):
    """The position of a user's cursor."""

    position: msgspec.Raw


# --- Frames to one connection --------------------------------------------------------------------


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection may send; 0: without limit."""

    frame_bytes: int
    """The bytes of the largest frame."""
    rate: float
    """Frames a second."""
    burst: int
    """Frames at once."""
    rooms: int
    """Rooms that the connection may be in."""


@server_event("connection:ready")
class ConnectionReady(Payload, frozen=True):
    """The first frame of a connection: its user, and the rooms that it has joined, each with the offset of its end."""

    connection_id: str
    namespace: str
    user_id: Id
    role: str
    heartbeat_interval: float
    expires_at: str
    rooms: dict[str, str]
    limits: ConnectionLimits | msgspec.UnsetType = msgspec.UNSET
    """Servers before 0.3 do not send it."""


@server_event("auth:expiring")
class AuthExpiring(Payload, frozen=True):
    """The token expires soon: send `auth:refresh` with a fresh one."""

    expires_at: str


class RoomNotice(Payload, frozen=True):
    """A notice about a room of the connection."""

    room: str
    reason: str


@server_event("room:left")
class RoomLeft(RoomNotice, frozen=True):
    """The connection is no longer in this room."""


@server_event("room:gap")
class RoomGap(RoomNotice, frozen=True):
    """Publications in this room may have been missed: refetch its data. New publications follow."""


@server_event("ack")
class Ack(Payload, frozen=True):
    """The frame with this `id` took effect. `data` depends on the event."""


@server_event("error")
class Error(Payload, frozen=True):
    """A frame was refused; the connection stays open. `rate_limited` also has `retry_after` (seconds)."""

    code: str
    message: str


# --- Control, over the bus only ------------------------------------------------------------------


class OfUser(Payload, frozen=True):
    """A user of a namespace."""

    user_id: Id
    namespace: str

    def __post_init__(self) -> None:
        if self.namespace not in namespaces():
            raise ValueError(f"namespace: expected one of {', '.join(sorted(namespaces()))}")


@control_event("user:disconnect")
class UserDisconnect(OfUser, frozen=True):
    """Close every connection that the user opened before this order."""

    reason: str = ""


class RoomRight(OfUser, frozen=True):
    """A user, and the room to which the order applies."""

    room: str

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "room", composed(self.room))
        if not (is_room(self.room) and namespaces()[self.namespace].may_join(self.room)):
            raise ValueError(f"room: expected one that users of {self.namespace} may join")


@control_event("room:grant")
class RoomGrant(RoomRight, frozen=True):
    """Allow the user to enter the room, if the namespace's policy reads grants."""


@control_event("room:revoke")
class RoomRevoke(RoomRight, frozen=True):
    """Remove the user from the room, and revoke the grant: a policy that reads grants refuses the user from now on."""


@control_event("room:expel")
class RoomExpel(RoomRight, frozen=True):
    """Remove the user from the room, in every tab. The user may join it again."""


@control_event("token:revoke")
class TokenRevoke(Payload, frozen=True):
    """Refuse this token from now on, and close its connections. `exp` is the token's own, in seconds.

    `jti` is the value of the claim that `SIMPLE_JWT["JTI_CLAIM"]` names.
    """

    jti: str | int
    exp: float
