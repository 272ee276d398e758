"""What becomes of a connection and its rooms when the rights of its user have changed, or may have."""

from __future__ import annotations

import asyncio

from realtime.auth import revocation
from realtime.connections.interface import Connection
from realtime.connections.rooms import Rooms
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.rooms import thread_of, thread_room


async def apply_token(connection: Connection, rooms: Rooms) -> None:
    """The connection has a fresh token: leave the rooms that it no longer allows, enter those that it newly names."""
    wanted = connection.initial_rooms()
    for room in list(rooms):  # before anything is asked of Redis, which may be away
        if thread_of(room) is None and room not in wanted:
            await rooms.leave(room, "forbidden")
    await _leave_forbidden(connection, rooms)
    await rooms.enter_more([room for room in wanted if room not in rooms])


async def _leave_forbidden(connection: Connection, rooms: Rooms) -> None:
    """Ask for the rights in all threads at once. A failed answer keeps its own thread, and no other."""
    threads = sorted(connection.threads())
    connection.rate.spend_rooms(len(threads))
    answers = await asyncio.gather(*map(connection.may_join, threads), return_exceptions=True)
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    for thread_id, answer in zip(threads, answers, strict=True):
        if not answer:
            await rooms.leave(thread_room(thread_id), "forbidden")
    if failures:
        raise failures[0]


async def review(connection: Connection, rooms: Rooms) -> None:
    """Revocations and expulsions may have been missed: read the rights in Redis, and ask for those in all threads.

    Raises `redis.RedisError`.
    """
    if await revocation.must_leave(connection.principal, connection.namespace, connection.opened_at):
        connection.terminate(CloseCode.REVOKED)
        return
    entered = rooms.threads_entered_at()
    for thread_id in await revocation.expelled(*connection.user, entered) if entered else ():
        connection.expel(thread_room(thread_id), "expelled")
    for thread_id in connection.threads():
        if not await connection.may_join(thread_id):
            connection.expel(thread_room(thread_id), "forbidden")
