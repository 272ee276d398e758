"""The events that both namespaces share, and the frames a server sends to one connection."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from realtime.protocol.catalogue import Target, control_event, server_event
from realtime.protocol.payloads import Id, Payload
from realtime.protocol.rooms import HUB, NAMESPACES, PORTAL, thread_room, user_room


class InThread(Payload, frozen=True):
    """Anything that belongs to one thread."""

    thread_id: Id


def _thread(payload: InThread) -> Sequence[str]:
    return [thread_room(payload.thread_id)]


# --- Business events, published by the backbone ---------------------------------------------------


@server_event("thread:message", rooms=_thread)
class ThreadMessage(InThread, frozen=True):
    """A message was stored in a thread."""

    message_id: Id


def _accepted(payload: ChatAccepted) -> Sequence[str | Target]:
    rooms: list[str | Target] = [thread_room(payload.thread_id)]
    if payload.user_id is not None:
        rooms.append((frozenset({PORTAL}), user_room(payload.user_id)))
    return rooms


@server_event("chat:accepted", rooms=_accepted)
class ChatAccepted(InThread, frozen=True):
    """An attendant took a customer's chat. With `user_id`, that customer is granted the thread and told in person."""

    attendant_id: Id
    user_id: Id | None = None


@server_event("chat:ended", rooms=_thread)
class ChatEnded(InThread, frozen=True):
    """A chat is over."""


@server_event(
    "user:notification",
    default_namespaces={HUB},
    rooms=lambda payload: [user_room(payload.user_id)],
)
class UserNotification(Payload, frozen=True):
    """Something for one user, in every tab of theirs. The hub's user, unless `namespaces` says otherwise."""

    user_id: Id


# --- Ephemeral events: straight from one socket to the room, never stored --------------------------


class FromUser(InThread, frozen=True):
    """Who did it."""

    user_id: Id
    namespace: str
    name: str


@server_event("thread:typing")
class ThreadTyping(FromUser, frozen=True):
    """Somebody started or stopped typing. Forget a typist after 12 s without news."""

    typing: bool


@server_event("thread:cursor")
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


@control_event("user:disconnect")
class UserDisconnect(Payload, frozen=True):
    """Close every connection that the user opened before this."""

    user_id: Id
    namespace: str
    reason: str = ""

    def __post_init__(self) -> None:
        if self.namespace not in NAMESPACES:
            raise ValueError(f"expected one of {', '.join(sorted(NAMESPACES))}")


@control_event("token:revoke")
class TokenRevoke(Payload, frozen=True):
    """Refuse this token from now on, and close what it opened. `exp`: the token's own, in seconds.

    `jti` is what the token has in the claim that `SIMPLE_JWT["JTI_CLAIM"]` names.
    """

    jti: str
    exp: float
