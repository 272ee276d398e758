"""What a connection that opens asks of Redis: the time, whether it has to leave at once, and a place among its user's.

All that open in the same turn of the event loop ask together, by one script. It reads the time and the marks at the
same moment, so every order comes either before it, and is found, or after it, and is signalled to the connections that
the registry has. In a Cluster the keys are on several servers: each connection asks for the time and the marks, one
after the other, and the script only records it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from realtime.auth import revocation
from realtime.conf import conf
from realtime.connections import user_limit
from realtime.connections.user_limit import UserConnection
from realtime.protocol.principal import Principal
from realtime.redis.client import run, script
from realtime.redis.connection import Argument, refuse
from realtime.redis.pipelining import begin, pipes
from realtime.redis.topology import topology
from realtime.tasks.per_loop import PerLoop

MOST = 200
"""Connections that ask together: Redis does nothing else meanwhile."""

_arrive = script(Path(__file__).parent / "scripts" / "arrive.lua")


class Arrival(NamedTuple):
    """A connection that may stay."""

    opened_at: float
    """Redis' clock, seconds."""
    surplus: Sequence[str] = ()
    """All channels of its user, oldest first, if there are too many."""


Answer = asyncio.Future[Arrival | None]
"""None: the token was revoked, or the user disconnected."""
Waiting = Sequence[tuple[UserConnection, Answer]]
Again = Callable[[], Coroutine[Any, Any, Any]]
"""Asks Redis the same once more."""


class Arrivals:
    """The connections that open in one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Principal, UserConnection, Answer]] = []

    def ask(self, principal: Principal, connection: UserConnection) -> Answer:
        """Ask at the end of this turn of the loop. The future may also have a `redis.RedisError`."""
        if not topology().spans_keys:
            return begin(_one_after_the_other(principal, connection))
        if not self._waiting:
            self._loop.call_soon(self._send)
        answer: Answer = self._loop.create_future()
        self._waiting.append((principal, connection, answer))
        return answer

    def _send(self) -> None:
        asked, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        if self._waiting:
            self._loop.call_soon(self._send)
        keys = [key for principal, connection, _ in asked for key in _keys(principal, connection)]
        arguments = _arguments([connection for _, connection, _ in asked])
        again = partial(run, _arrive, keys, arguments)
        found = pipes().to("").run(_arrive, keys, arguments)
        found.add_done_callback(partial(_answer, [(place, answer) for _, place, answer in asked], again))


arrivals: PerLoop[Arrivals] = PerLoop(Arrivals, lambda _: None)
"""Those of the running loop."""


def _keys(principal: Principal, connection: UserConnection) -> tuple[str, str, str]:
    return (connection.key, *revocation.marks_of(principal, connection.namespace))


def _arguments(connections: Sequence[UserConnection]) -> list[Argument]:
    channels = [connection.channel for connection in connections]
    return [conf().limits.user_connections, user_limit.SECONDS, *channels]


def _answer(waiting: Waiting, again: Again | None, found: asyncio.Future[Any]) -> None:
    """Hand out what was found. What failed is asked once more: a connection to Redis may just have been lost."""
    error = found.exception()
    if error is None:
        _hand_out(waiting, *found.result())
    elif again is not None:
        begin(again()).add_done_callback(partial(_answer, waiting, None))
    else:
        for _, answer in waiting:
            refuse(answer, error)


def _hand_out(waiting: Waiting, at: bytes, *places: int | list[bytes]) -> None:
    opened_at = float(at)
    for (connection, answer), place in zip(waiting, places, strict=True):
        if not answer.done():
            answer.set_result(_arrival(opened_at, place) if isinstance(place, list) else None)
        else:  # it has gone meanwhile, and may have given its place back before it had it
            begin(user_limit.release(connection))


def _arrival(opened_at: float, channels: Sequence[bytes]) -> Arrival:
    return Arrival(opened_at, [channel.decode() for channel in channels])


async def _one_after_the_other(principal: Principal, connection: UserConnection) -> Arrival | None:
    at = await revocation.now()
    if await revocation.must_leave(principal, connection.namespace, at):
        return None
    _, channels = await run(_arrive, [connection.key], _arguments([connection]))
    return _arrival(at, channels)
