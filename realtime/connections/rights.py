"""What becomes of a connection and its rooms when the rights of its user have changed, or may have."""

from __future__ import annotations

import asyncio

from realtime.auth import revocation
from realtime.connections.interface import Connection
from realtime.connections.rooms import Rooms
from realtime.protocol.close_codes import CloseCode


async def apply_token(connection: Connection, rooms: Rooms) -> None:
    """The connection has a fresh token: leave the rooms that it no longer allows, enter those that it newly names.

    Raises what a policy raised, once all other rooms are as they should be.
    """
    wanted = connection.initial_rooms()
    for room in list(rooms):  # before anything is asked of Redis, which may be away
        if not connection.declared.may_join(room) and room not in wanted:
            await rooms.leave(room, "forbidden")
    failures = await _leave_forbidden(connection, rooms)
    await rooms.enter_more([room for room in wanted if room not in rooms])
    if failures:
        raise failures[0]


async def _leave_forbidden(connection: Connection, rooms: Rooms) -> list[BaseException]:
    """Ask for the rights in all rooms at once. A failed answer is returned; it keeps its own room, and no other."""
    joined = sorted(connection.joined_rooms())
    connection.rate.spend_rooms(len(joined))
    answers = await asyncio.gather(*map(connection.may_enter, joined), return_exceptions=True)
    for room, answer in zip(joined, answers, strict=True):
        if not answer:
            await rooms.leave(room, "forbidden")
    return [answer for answer in answers if isinstance(answer, BaseException)]


async def review(connection: Connection, rooms: Rooms) -> None:
    """Revocations and expulsions may have been missed: read the rights in Redis, and ask for those in all rooms.

    Raises `redis.RedisError`.
    """
    if await revocation.must_leave(connection.principal, connection.namespace, connection.opened_at):
        connection.terminate(CloseCode.REVOKED)
        return
    joined = connection.joined_rooms()
    entered = {room: at for room, at in rooms.entered_at().items() if room in joined}
    for room in await revocation.expelled(*connection.user, entered) if entered else ():
        connection.expel(room, "expelled")
    for room in joined:
        if not await connection.may_enter(room):
            connection.expel(room, "forbidden")
