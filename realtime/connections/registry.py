"""The connection registry: the open connections of this instance, and what reaches all of them from outside."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from realtime.connections.index import ConnectionIndex
from realtime.connections.probe import Probe
from realtime.connections.signal_handler import SignalHandler
from realtime.connections.survey_responder import SurveyResponder
from realtime.layers.interface import RoomLayer, room_layer
from realtime.layers.signals import PresenceChanged, parse
from realtime.protocol.rooms import CONTROL_GROUP
from realtime.redis import schema_version
from realtime.survey import load
from realtime.survey.messages import Instance, Survey
from realtime.tasks.instance import id_for
from realtime.tasks.per_loop import PerLoop
from realtime.telemetry import metrics

logger = logging.getLogger(__name__)


class ConnectionRegistry(ConnectionIndex):
    """This instance, as one event loop sees it: a member of the control group, with a mailbox for signals."""

    def __init__(self, layer: RoomLayer | None = None) -> None:
        super().__init__()
        self.id = id_for("registry")
        self.is_draining = False
        """No more handshakes are accepted."""
        self.on_presence: Callable[[PresenceChanged], None] = lambda signal: None
        """Called when the presence of a user has changed."""
        self.signals = SignalHandler(self.id, self, self._hand_on_presence)
        self.surveys = SurveyResponder(self, lambda: self.instance)
        self._probe = Probe(self._send_to_self)
        self._layer = layer or room_layer()
        self._channel: str | None = None
        self._starting = asyncio.Lock()
        self._started_at = time.time()
        self._closers: list[Callable[[], Awaitable[None]]] = []

    @classmethod
    def current(cls) -> ConnectionRegistry:
        """The registry of the running loop."""
        return registries()

    @property
    def instance(self) -> Instance:
        """This instance, as an operator sees it."""
        return Instance(
            id=self.id,
            host=load.host(),
            pid=os.getpid(),
            version=load.version(),
            started_at=self._started_at,
            is_draining=self.is_draining,
        )

    async def start(self) -> None:
        """Join the control group, unless that is done. Raises `redis.RedisError`."""
        if self._channel is not None:
            return
        async with self._starting:
            if self._channel is not None:
                return
            await schema_version.claim()
            channel = await self._layer.attach(self)
            try:
                await self._layer.group_add(CONTROL_GROUP, channel)
                await self._layer.group_add(self._own_group, channel)
            except BaseException:
                self._layer.detach(channel)
                raise
            self._layer.when_restored(self.signals.on_missed)
            self._channel = channel
            metrics.INSTANCE.labels(self.id, load.version()).set(1)
            logger.info("instance started", extra={"instance": self.id})
            await self.surveys.register()

    async def stop(self) -> None:
        """Leave the control group."""
        await self.surveys.stop()
        if self._channel is not None:
            self._layer.detach(self._channel)
        self._channel = None

    def abort(self) -> None:
        """End what runs in the background: the event loop ends."""
        self.surveys.abort()

    def before_stop(self, close: Callable[[], Awaitable[None]]) -> None:
        """Await `close()` when all connections have been closed. It may raise `redis.RedisError`."""
        self._closers.append(close)

    async def close(self) -> None:
        """All connections are closed: end what was built on this registry. Raises `redis.RedisError`."""
        closers, self._closers = self._closers, []
        await asyncio.gather(*(close() for close in closers))

    async def leave(self) -> None:
        """Take the name of this instance out of Redis: it ends in good order. Raises `redis.RedisError`."""
        await self.surveys.unregister()

    # --- Messages to this instance ---------------------------------------------------------------

    @property
    def _own_group(self) -> str:
        return f"node.{self.id}"

    def message(self, message: dict[str, Any]) -> None:
        """Act on a message. A signal takes effect before a publication that follows it is written."""
        try:
            if message["type"] == "node.probe":
                self._probe.on_message(message)
            elif message["type"] == "node.question":
                self.surveys.on_survey(msgspec.convert(message["question"], Survey))
            else:
                self.signals.on_signal(parse(message["signal"]))
        except Exception:
            logger.exception("signal not understood", extra={"instance": self.id})

    def _hand_on_presence(self, signal: PresenceChanged) -> None:
        self.on_presence(signal)

    async def probe(self, timeout: float) -> None:
        """Send a message to this instance through Redis and wait for it to come back.

        Raises `TimeoutError` after `timeout` seconds, or what the channel layer raises.
        """
        await self._probe.run(timeout)

    async def _send_to_self(self, message: dict[str, Any]) -> None:
        await self.start()
        await self._layer.group_send(self._own_group, message)


registries: PerLoop[ConnectionRegistry] = PerLoop(ConnectionRegistry, ConnectionRegistry.abort)
