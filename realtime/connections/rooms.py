"""The rooms of one connection: entering and leaving, what was missed, and when delivery begins."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence

from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.connections.ephemeral import Typing
from realtime.connections.interface import Connection
from realtime.layers.listener import Listener
from realtime.protocol.envelope import ErrorCode, EventError
from realtime.protocol.replies import Resumption
from realtime.protocol.rooms import group_name
from realtime.redis.clock import redis_clock
from realtime.telemetry import metrics

logger = logging.getLogger(__name__)

RESUME_SECONDS = 5.0
"""Seconds for which the initial rooms of a connection with `?resume=1` are held back for its `resume`."""


class Rooms(Mapping[str, int]):
    """A mapping of each room that the connection is in to its position: up to where the client has the room.

    A room is entered paused, so that its publications follow the answer that tells the client of it.
    """

    __slots__ = (
        "_connection",
        "_entered",
        "_holds_back",
        "_listeners",
        "_typing",
        "has_resumed",
        "is_charged",
    )

    def __init__(self, connection: Connection, typing: Typing) -> None:
        self._connection = connection
        self._typing = typing
        self._listeners: dict[str, Listener] = {}
        self._entered: list[Listener] = []
        """Of rooms that start once the client has been told of them."""
        self._holds_back = False
        """The initial rooms wait for a `resume`."""
        self.has_resumed = False
        """A `resume` was answered. The first one is part of connecting, and costs no more than any frame."""
        self.is_charged = False
        """`on_gap` is called because of a frame of the client, which is charged for what is sent."""

    def __getitem__(self, room: str) -> int:
        return self._listeners[room].position

    def __contains__(self, room: object) -> bool:
        return room in self._listeners

    def __iter__(self) -> Iterator[str]:
        return iter(self._listeners)

    def __len__(self) -> int:
        return len(self._listeners)

    def entered_at(self) -> dict[str, float]:
        """When each room was entered (seconds of Redis' clock)."""
        return {room: listener.entered_at for room, listener in self._listeners.items()}

    # --- Connecting ------------------------------------------------------------------------------

    def arrived(self, at: float) -> None:
        """Redis let the connection in at `at`, by its clock, when it entered its initial rooms."""
        redis_clock().set(at)
        for listener in self._listeners.values():
            listener.entered_at = at

    async def enter_initial(self, rooms: Sequence[str], *, resumes: bool) -> None:
        """Enter the rooms that the token names, paused. Raises `redis.RedisError`."""
        self._holds_back = resumes
        await self._enter_all(self._that_fit(rooms))

    def begin(self) -> None:
        """The client has been told which rooms it is in. With `?resume=1` they wait for its `resume` all the same."""
        if self._holds_back:
            self._connection.after(RESUME_SECONDS, "resume", self.release)
        else:
            for listener in self._listeners.values():
                listener.start()

    def resumed(self) -> None:
        """A `resume` is being answered: the rooms held back for it start after the answer."""
        self.has_resumed = True
        self._hold_back_no_more()

    def release(self) -> None:
        """Start the rooms that are held back for a `resume`."""
        self._hold_back_no_more()
        self.start_entered()

    def _hold_back_no_more(self) -> None:
        if self._holds_back:
            self._holds_back = False
            self._connection.cancel("resume")
            self._entered += self._listeners.values()

    def start_entered(self) -> None:
        """The client has been told of the rooms that it has entered."""
        if self._entered:
            entered, self._entered = self._entered, []
            for listener in entered:
                listener.start()

    # --- Entering --------------------------------------------------------------------------------

    async def join(self, room: str) -> int:
        """Enter a room and return its position. Raises `EventError` when that is not allowed."""
        listener = self._listeners.get(room) or await self._enter(room)
        return listener.position

    async def rejoin(self, room: str, since: str, *, is_free: bool = False) -> Resumption:
        """Enter a room where an earlier connection stood: what it missed follows the acknowledgement.

        What it missed, or what is sent in its place, is charged by its bytes, unless this is part of connecting
        (`is_free`).

        Raises `EventError` when the room is not allowed (any more).
        """
        was_in = room in self._listeners
        listener = await (self._pause(room) if was_in else self._enter(room))
        listener.on_replay = None if is_free else self._connection.rate.spend_bytes
        try:
            missed = await self._connection.layer.missed(listener, since, self._connection.opened_at)
        except BaseException:
            if not was_in:  # else what is published now would hide from the client that it lacks something
                await self.leave(room)
            raise
        if self._listeners.get(room) is not listener:  # expelled meanwhile; `room:left` was sent
            raise _not_allowed(room)
        if missed is None:
            metrics.RECOVERIES.labels("lost").inc()
            self._connection.soon(self._unrecovered, room, is_free)
            return {"recovered": False, "offset": str(listener.position), "missed": 0}
        metrics.RECOVERIES.labels("recovered" if missed else "nothing_missed").inc()
        return {"recovered": True, "offset": since, "missed": missed}

    async def _unrecovered(self, room: str, is_free: bool) -> None:
        """The client has been told that what it missed in a room is lost."""
        self.is_charged = not is_free
        try:
            await self._connection.on_gap(room)
        finally:
            self.is_charged = False

    async def _pause(self, room: str) -> Listener:
        """Deliver nothing of a room this connection is in until the client has been told where it goes on."""
        listener = self._listeners[room]
        listener.pause()
        listener.entered_at = redis_clock().now()
        if not self._holds_back:
            self._entered.append(listener)
        if not await self._connection.may_enter(room):
            await self.leave(room)
            raise _not_allowed(room)
        with contextlib.suppress(RedisError):
            await self._typing.stop(room)
        return listener

    async def _enter(self, room: str) -> Listener:
        if len(self._listeners) >= (most := conf().limits.rooms) > 0:
            raise EventError(ErrorCode.LIMIT_EXCEEDED, f"at most {most} rooms a connection")
        if not await self._connection.may_enter(room):  # before anything is kept of a room, here or in Redis
            raise _not_allowed(room)
        await self._enter_all([room])
        listener = self._listeners[room]
        # And again once entered (paused: nothing is delivered yet): a revoke in between is found or signalled.
        try:
            is_allowed = await self._connection.may_enter(room) and self._listeners.get(room) is listener
        except BaseException:
            await self.leave(room)
            raise
        if not is_allowed:
            await self.leave(room)
            raise _not_allowed(room)
        self._entered.append(listener)
        self._connection.on_entered(room)
        return listener

    async def enter_more(self, rooms: Sequence[str]) -> None:
        """Enter rooms that a fresh token names. Raises `redis.RedisError`."""
        rooms = self._that_fit(rooms)
        self._connection.rate.spend_rooms(len(rooms))
        if rooms:
            await self._enter_all(rooms)
            for room in rooms:
                self._entered.append(self._listeners[room])
                self._connection.on_entered(room)

    def _that_fit(self, rooms: Sequence[str]) -> Sequence[str]:
        """Rooms that a token names, as far as the limit allows."""
        most = conf().limits.rooms
        left = len(rooms) if most <= 0 else max(most - len(self._listeners), 0)
        if left < len(rooms):
            logger.warning("rooms left out", extra={"rooms": len(rooms) - left, "most": most})
        return rooms[:left]

    async def _enter_all(self, rooms: Sequence[str]) -> None:
        """Enter rooms, paused. Raises `redis.RedisError`."""
        connection, entered_at = self._connection, redis_clock().now()
        groups = [group_name(connection.namespace, room) for room in rooms]
        listeners = await connection.layer.enter(groups, connection.outlet, connection.channel_name)
        for room, listener in zip(rooms, listeners, strict=True):
            listener.entered_at = entered_at
            self._listeners[room] = listener

    # --- Leaving ---------------------------------------------------------------------------------

    async def leave(self, room: str, reason: str | None = None) -> None:
        """Leave a room if in it; with a reason the client gets `room:left`."""
        if (listener := self._listeners.pop(room, None)) is None:
            return
        self._leave(room, listener, reason)
        with contextlib.suppress(RedisError):  # an ephemeral event may be lost
            await self._typing.stop(room)

    def expel(self, room: str, reason: str, *, before: float = math.inf) -> None:
        """Leave a room, now: nothing of the room is written after this.

        Not if the connection entered it at `before` (seconds of Redis' clock) or later.
        """
        if (listener := self._listeners.get(room)) is not None and listener.entered_at < before:
            del self._listeners[room]
            self._leave(room, listener, reason)
            self._connection.soon(self._typing.stop, room)

    def _leave(self, room: str, listener: Listener, reason: str | None) -> None:
        self._connection.layer.leave(listener, self._connection.channel_name)
        if reason is not None:
            self._connection.write_event("room:left", {"room": room, "reason": reason})

    def close(self) -> None:
        """Deliver nothing any more: the connection ends."""
        for listener in self._listeners.values():
            listener.close()

    async def leave_all(self) -> None:
        """Leave every room: the connection is over."""
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            self._connection.layer.leave(listener, self._connection.channel_name)


def _not_allowed(room: str) -> EventError:
    return EventError(ErrorCode.FORBIDDEN, f"not allowed in {room}")
