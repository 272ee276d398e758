"""The events of every namespace and of threads, and the frames a server sends to one connection."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from realtime.protocol.catalogue import control_event, server_event
from realtime.protocol.ids import composed
from realtime.protocol.namespaces import THREAD, namespaces, uses
from realtime.protocol.payloads import Id, Payload
from realtime.protocol.rooms import is_room, thread_room


class InThread(Payload, frozen=True):
    """Anything that belongs to one thread."""

    thread_id: Id


def in_thread(payload: InThread) -> Sequence[str]:
    """The routing of an event that goes to its thread."""
    return [thread_room(payload.thread_id)]


@server_event("thread:message", namespaces=uses(THREAD), rooms=in_thread)
class ThreadMessage(InThread, frozen=True):
    """A message was stored in a thread."""

    message_id: Id


# --- Ephemeral events: straight from one socket to the room, never stored --------------------------


class FromUser(InThread, frozen=True):
    """Who did it."""

    user_id: Id
    namespace: str
    name: str


@server_event("thread:typing", namespaces=uses(THREAD))
class ThreadTyping(FromUser, frozen=True):
    """Somebody started or stopped typing. Forget a typist after 12 s without news."""

    typing: bool


@server_event("thread:cursor", namespaces=uses(THREAD))
class ThreadCursor(FromUser, frozen=True):
    """Where somebody is reading or pointing."""

    position: msgspec.Raw


# --- Frames to one connection --------------------------------------------------------------------


@server_event("connection:ready")
class ConnectionReady(Payload, frozen=True):
    """The first frame: who you are, what to keep, and the end of each room you are in."""

    connection_id: str
    namespace: str
    user_id: Id
    role: str
    heartbeat_interval: float
    expires_at: str
    rooms: dict[str, str]


@server_event("auth:expiring")
class AuthExpiring(Payload, frozen=True):
    """The token ends soon: send `auth:refresh` with a fresh one."""

    expires_at: str


class RoomNotice(Payload, frozen=True):
    """Something about a room of yours."""

    room: str
    reason: str


@server_event("room:left")
class RoomLeft(RoomNotice, frozen=True):
    """You are not in this room any more."""


@server_event("room:gap")
class RoomGap(RoomNotice, frozen=True):
    """Something in this room may have been missed: refetch. You are live again from here."""


@server_event("ack")
class Ack(Payload, frozen=True):
    """Your frame with this `id` took effect. `data` depends on the event."""


@server_event("error")
class Error(Payload, frozen=True):
    """Your frame was refused; the connection stays open. `rate_limited` also has `retry_after` (seconds)."""

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
    """Close every connection that the user opened before this."""

    reason: str = ""


class RoomRight(OfUser, frozen=True):
    """A user, and the room that they may enter or not."""

    room: str

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "room", composed(self.room))
        if not (is_room(self.room) and namespaces()[self.namespace].may_join(self.room)):
            raise ValueError(f"room: expected one that users of {self.namespace} may join")


@control_event("room:grant")
class RoomGrant(RoomRight, frozen=True):
    """This user may enter the room, where the namespace's policy asks what was granted."""


@control_event("room:revoke")
class RoomRevoke(RoomRight, frozen=True):
    """Take this user out of the room, and whatever was granted: a policy that asks for it lets them in no more."""


@control_event("room:expel")
class RoomExpel(RoomRight, frozen=True):
    """Take this user out of the room, in every tab. Nothing keeps them from joining it again."""


@control_event("token:revoke")
class TokenRevoke(Payload, frozen=True):
    """Refuse this token from now on, and close what it opened. `exp`: the token's own, in seconds.

    `jti` is what the token has in the claim that `SIMPLE_JWT["JTI_CLAIM"]` names.
    """

    jti: str
    exp: float
