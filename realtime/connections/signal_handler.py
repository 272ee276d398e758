"""What the signals to all instances do to the connections of this one."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import signal as signals
from collections.abc import Callable, Iterable

from redis.exceptions import RedisError

from realtime.auth import revocation
from realtime.connections.index import ConnectionIndex
from realtime.connections.interface import Connection
from realtime.layers.signals import (
    InstanceDrained,
    PresenceChanged,
    RoomRevoked,
    Signal,
    TokenRevoked,
    UserDisconnected,
)
from realtime.protocol.close_codes import CloseCode

logger = logging.getLogger(__name__)

REVIEW_BATCH = 200
"""Connections whose rights are read at the same time."""
REVIEW_PAUSE = 0.5
"""Seconds before rights are read again when Redis, or what a product's policy asks, did not answer."""
REVIEW_SECONDS = 30.0
"""Seconds for which a product's policy may take to answer for one connection: all rooms wait for it."""


class SignalHandler:
    """Acts on signals at once, and reads the rights of all connections when signals may have been missed."""

    def __init__(
        self, instance: str, index: ConnectionIndex, on_presence: Callable[[PresenceChanged], None]
    ) -> None:
        self._instance = instance
        self._on_presence = on_presence
        self._index = index
        self._is_told_to_drain = False

    def on_signal(self, signal: Signal) -> None:
        """Act on a signal. An exception in one connection does not keep the signal from the other ones."""
        match signal:
            case UserDisconnected():
                theirs = self._index.connections_of(signal.namespace, signal.user_id)
                _each(theirs, lambda connection: connection.user_disconnected(signal.at, signal.reason))
            case TokenRevoked():
                opened = [*self._index.connections_with(signal.jti)]
                _each(opened, lambda connection: connection.terminate(CloseCode.REVOKED))
            case RoomRevoked():
                # A revoke holds until it is taken back; a member who was expelled may have come back.
                before = signal.at if signal.reason == "expelled" and signal.at else math.inf
                theirs = self._index.connections_of(signal.namespace, signal.user_id)
                _each(theirs, lambda connection: connection.expel(signal.room, signal.reason, before=before))
            case InstanceDrained():
                self._drain(signal.instance)
            case PresenceChanged():
                self._on_presence(signal)

    def _drain(self, instance: str) -> None:
        # A second SIGTERM would end the process at once, so the signal counts only once.
        if instance == self._instance and not self._is_told_to_drain:
            self._is_told_to_drain = True
            logger.info("told to drain", extra={"instance": instance})
            os.kill(os.getpid(), signals.SIGTERM)

    async def on_missed(self, seconds: float) -> None:
        """Signals of that many seconds may have been missed: review the rights of every connection.

        When they are no longer recorded in Redis, because the loss was longer, all connections have to reconnect.
        """
        connections = tuple(self._index.connections.values())
        if seconds > revocation.MARK_SECONDS / 2:
            _each(connections, lambda connection: connection.terminate(CloseCode.RESTARTING))
            return
        for start in range(0, len(connections), REVIEW_BATCH):
            await asyncio.gather(*map(self._review, connections[start : start + REVIEW_BATCH]))

    async def _review(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(REVIEW_SECONDS) as patience:
                await self._review_until_answered(connection, patience)
        except Exception:
            logger.exception("rights not known", extra={"connection_id": connection.connection_id})
            connection.terminate(CloseCode.INTERNAL_ERROR)

    async def _review_until_answered(self, connection: Connection, patience: asyncio.Timeout) -> None:
        while connection.connection_id in self._index.connections:
            try:
                await connection.review()
                return
            except RedisError:  # nothing is delivered without Redis either, so there is no hurry
                patience.reschedule(asyncio.get_running_loop().time() + REVIEW_SECONDS)
            except OSError:
                pass
            await asyncio.sleep(REVIEW_PAUSE * random.uniform(0.5, 1.0))  # noqa: S311


def _each(connections: Iterable[Connection], apply: Callable[[Connection], None]) -> None:
    for connection in connections:
        try:
            apply(connection)
        except Exception:
            logger.exception("signal not applied", extra={"connection_id": connection.connection_id})
