"""The events that clients may send in every namespace, and their handlers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta
from redis.exceptions import RedisError

from realtime.auth import revocation
from realtime.auth.credentials import MAX_TOKEN_LENGTH
from realtime.conf import conf
from realtime.protocol.catalogue import client_event
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.envelope import ErrorCode, EventError, iso
from realtime.protocol.events import InThread
from realtime.protocol.handshake_errors import AuthenticationFailed, RefusalCode
from realtime.protocol.ids import composed
from realtime.protocol.namespaces import THREAD, uses
from realtime.protocol.payloads import Empty, Payload
from realtime.protocol.replies import Joined, Left, Refreshed, Refusal, Resumed, Resumption
from realtime.protocol.rooms import is_room, is_room_name, thread_room

if TYPE_CHECKING:  # publishers have these events in their catalogue, and need nothing that the handlers need
    from realtime.connections.consumer import NamespaceConsumer as Connection

logger = logging.getLogger(__name__)

Offset = Annotated[str, Meta(min_length=1, max_length=64)]


class InRoom(Payload, frozen=True):
    """A payload that names a room."""

    room: str

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "room", composed(self.room))
        if not is_room_name(self.room):
            raise ValueError("room: expected kind:id, for example thread:42")


class Join(InRoom, frozen=True):
    """`since`: the last offset received in this room, to recover the missed publications."""

    since: Offset | None = None


class JoinThread(InThread, frozen=True):
    """`since`: the last offset received in this room, to recover the missed publications."""

    since: Offset | None = None


class CursorMove(InThread, frozen=True):
    """`position` is any JSON value; the product defines it."""

    position: msgspec.Raw


class AuthRefresh(Payload, frozen=True):
    """A fresh access token of the same user and role."""

    token: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_LENGTH)]


class Resume(Payload, frozen=True):
    """The last offset received, by room."""

    rooms: dict[str, Offset]


@client_event("heartbeat")
async def heartbeat(connection: Connection, payload: Empty) -> None:
    """Keep the connection and the user's presence alive."""
    await connection.on_heartbeat()


@client_event("join")
async def join(connection: Connection, payload: Join) -> Joined:
    """Enter a room."""
    return await _join(connection, payload.room, payload.since)


@client_event("join:thread", namespaces=uses(THREAD))
async def join_thread(connection: Connection, payload: JoinThread) -> Joined:
    """Enter a thread's room."""
    return await _join(connection, thread_room(payload.thread_id), payload.since)


async def _join(connection: Connection, room: str, since: str | None) -> Joined:
    _check_kind(connection, room)
    if since is None:
        return {"room": room, "offset": str(await connection.rooms.join(room))}
    return {"room": room, **await connection.rooms.rejoin(room, since)}


@client_event("leave")
async def leave(connection: Connection, payload: InRoom) -> Left:
    """Leave a room."""
    return await _leave(connection, payload.room)


@client_event("leave:thread", namespaces=uses(THREAD))
async def leave_thread(connection: Connection, payload: InThread) -> Left:
    """Leave a thread's room."""
    return await _leave(connection, thread_room(payload.thread_id))


async def _leave(connection: Connection, room: str) -> Left:
    _check_kind(connection, room)
    await connection.rooms.leave(room)
    return {"room": room}


def _check_kind(connection: Connection, room: str) -> None:
    """Raises `EventError` unless clients of the namespace join rooms of this kind."""
    if not connection.declared.may_join(room):
        raise EventError(ErrorCode.FORBIDDEN, f"clients of {connection.namespace} do not join {room}")


@client_event("typing:start", namespaces=uses(THREAD), waits=False)
async def typing_start(connection: Connection, payload: InThread) -> None:
    """Show that the user is typing; repeat at least every 5 seconds while it lasts."""
    await connection.typing.start(_room_of(connection, payload))


@client_event("typing:stop", namespaces=uses(THREAD), waits=False)
async def typing_stop(connection: Connection, payload: InThread) -> None:
    """Show that the user has stopped typing."""
    await connection.typing.stop(_room_of(connection, payload))


@client_event("cursor:move", namespaces=uses(THREAD), waits=False)
async def cursor_move(connection: Connection, payload: CursorMove) -> None:
    """Show the position of the user's cursor."""
    await connection.emit(_room_of(connection, payload), "thread:cursor", position=payload.position)


@client_event("auth:refresh")
async def auth_refresh(connection: Connection, payload: AuthRefresh) -> Refreshed:
    """Replace the token with a fresh one, so that the connection outlives the old one."""
    from realtime.auth.verification import authenticate  # noqa: PLC0415

    try:
        principal = await authenticate(payload.token)
    except AuthenticationFailed as error:
        is_temporary = error.code == RefusalCode.UNAVAILABLE
        code = ErrorCode.UNAVAILABLE if is_temporary else ErrorCode.INVALID_PAYLOAD
        raise EventError(code, f"token: {error.message}") from error
    same = (principal.user_id, principal.role) == (connection.principal.user_id, connection.principal.role)
    if not same or await revocation.is_revoked(principal):
        raise EventError(ErrorCode.FORBIDDEN, "the token must be of the same user and role, and not revoked")
    try:
        await connection.renew(principal)
    finally:
        if await revocation.is_revoked(principal):
            # Revoked after the check above, and signalled before the connection was registered under this token.
            connection.terminate(CloseCode.REVOKED)
    return {"expires_at": iso(principal.expires_at)}


@client_event("resume")
async def resume(connection: Connection, payload: Resume) -> Resumed:
    """Enter rooms again after a reconnect, and recover the missed publications."""
    if connection.rooms.has_resumed:
        connection.rate.spend_rooms(len(payload.rooms))
    own = set(connection.initial_rooms())
    answers: dict[str, Resumption | Refusal] = {}
    for room, since in {composed(room): since for room, since in payload.rooms.items()}.items():
        answers[room] = await _resume_room(connection, room, since, is_known=room in own, number=len(answers))
    for room, answer in answers.items():
        if "error" not in answer and room not in connection.rooms:  # expelled while other rooms were entered
            answers[room] = {"error": ErrorCode.FORBIDDEN}
    connection.rooms.resumed()
    return {"rooms": answers}


async def _resume_room(
    connection: Connection, room: str, since: str, *, is_known: bool, number: int
) -> Resumption | Refusal:
    """Resume one room; a failure concerns it alone. `number` rooms precede it; `is_known`: the token names it."""
    if 0 < conf().limits.rooms <= number:
        return {"error": ErrorCode.LIMIT_EXCEEDED}
    if not is_known and not (is_room(room) and connection.declared.may_join(room)):
        return {"error": ErrorCode.FORBIDDEN}
    try:
        return await connection.rooms.rejoin(room, since, is_free=not connection.rooms.has_resumed)
    except EventError as error:
        return {"error": error.code}
    except (RedisError, OSError):  # TimeoutError is an OSError: then no room can be entered
        raise
    except Exception:
        logger.exception("event handler failed", extra={"event": "resume"})
        return {"error": ErrorCode.INTERNAL}


def _room_of(connection: Connection, payload: InThread) -> str:
    room = thread_room(payload.thread_id)
    if room not in connection.rooms:
        raise EventError(ErrorCode.NOT_IN_ROOM, f"join {room} first")
    return room
