"""One socket process: its open connections, the signals meant for all of them, and the proof that it can deliver."""

from __future__ import annotations

import asyncio
import logging
import os
import signal as signals
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from uuid import uuid4
from weakref import WeakKeyDictionary

import msgspec
from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from realtime import layout, metrics, questions, roomlog
from realtime.closing import CloseCode
from realtime.control import (
    InstanceDrained,
    PresenceChanged,
    Signal,
    ThreadRevoked,
    TokenRevoked,
    UserDisconnected,
    parse,
)
from realtime.logs import spelled
from realtime.pipe import Pipes
from realtime.questions import Detail, InRoom, Instance, Question
from realtime.redis import client, key
from realtime.rooms import CONTROL_GROUP, group_name, thread_room
from realtime.turns import Action

logger = logging.getLogger(__name__)


class Connection(questions.Connection, Protocol):
    """What a node must know of a connection, and can do with it."""

    def position(self, room: str) -> int:
        """Up to where it has what was published in a room."""

    def soon(self, action: Action, *args: Any) -> None:
        """Do something to it in its turn."""

    async def end(self, code: CloseCode, reason: str = "") -> None:
        """Close it."""

    async def look_again(self) -> None:
        """See whether it may still be here, and in its threads: a signal may have been lost."""

    def expel(self, room: str, reason: str) -> None:
        """Take it out of a room; from now on it gets nothing of it."""


LOOK_SLICE = 200
"""Connections that look again between two looks at everything else."""

_nodes: WeakKeyDictionary[asyncio.AbstractEventLoop, Node] = WeakKeyDictionary()


class Node:
    """This process, as one event loop sees it."""

    def __init__(self) -> None:
        self.id = uuid4().hex
        self.connections: dict[str, Connection] = {}
        self.is_draining = False
        """Nobody is let in any more."""
        self._is_told_to_go = False
        self.on_presence: Callable[[PresenceChanged], None] = lambda signal: None
        self._layer: Any = get_channel_layer()
        self._users: dict[tuple[str, str], set[str]] = {}
        self._channel: str | None = None
        self._reader: asyncio.Task[None] | None = None
        """Where the channel layer does not call us."""
        self._starting = asyncio.Lock()
        self._probes: dict[str, asyncio.Future[None]] = {}
        self._probe: asyncio.Task[None] | None = None
        self._started_at = time.time()
        self._meter = questions.Meter()
        self._answering: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    def current(cls) -> Node:
        """The node of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in _nodes:
            _nodes[loop] = cls()
        return _nodes[loop]

    async def start(self) -> None:
        """Join the control group, unless that is done. Raises `redis.RedisError`."""
        async with self._starting:
            if self._channel is not None and not (self._reader and self._reader.done()):
                return
            await layout.claim()
            channel = await self._layer.new_channel()
            calls_us = "rooms" in self._layer.extensions
            if calls_us:
                self._layer.attach(channel, self)
                self._layer.when_restored(self._look_again)
            try:
                await self._layer.group_add(CONTROL_GROUP, channel)
                await self._layer.group_add(self._own_group, channel)
            except BaseException:
                if calls_us:
                    self._layer.detach(channel)
                raise
            if not calls_us:
                self._reader = asyncio.create_task(self._read(channel), name="control")
            self._channel = channel

    async def stop(self) -> None:
        """Leave the control group."""
        for task in (*self._answering, *((self._looking,) if self._looking else ())):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        elif self._channel is not None:
            self._layer.detach(self._channel)
        self._channel = None

    def add(self, connection: Connection) -> None:
        """From now on signals reach this connection."""
        self.connections[connection.connection_id] = connection
        if connection.user not in self._users:
            self._users[connection.user] = set()
            metrics.USERS.labels(connection.user[0]).inc()
        self._users[connection.user].add(connection.connection_id)

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.pop(connection.connection_id, None)
        if (of_user := self._users.get(connection.user)) is None:
            return
        of_user.discard(connection.connection_id)
        if not of_user:
            del self._users[connection.user]
            metrics.USERS.labels(connection.user[0]).dec()

    def connections_of(self, namespace: str, user_id: str) -> Iterator[Connection]:
        """A user's connections to this process."""
        for connection_id in tuple(self._users.get((namespace, user_id), ())):
            yield self.connections[connection_id]

    # --- Signals ---------------------------------------------------------------------------------

    async def _read(self, channel: str) -> None:
        while True:
            self.message(await self._layer.receive(channel))

    def message(self, message: dict[str, Any]) -> None:
        """An `Outlet` of the channel layer: a signal takes effect before anything that is published after it."""
        try:
            if message["type"] == "node.probe":
                if (answer := self._probes.pop(message["probe"], None)) and not answer.done():
                    answer.set_result(None)
            elif message["type"] == "node.question":
                self._hear(msgspec.convert(message["question"], Question))
            else:
                self._obey(parse(message["signal"]))
        except Exception:
            logger.exception("signal not understood", extra={"node": self.id})

    def publications(self, run: Any) -> None:
        """Nothing is published to the groups of a node."""

    def ephemeral(self, ephemeral: Any) -> None:
        """Nor said in them."""

    def _obey(self, signal: Signal) -> None:
        match signal:
            case UserDisconnected():
                for connection in self.connections_of(signal.namespace, signal.user_id):
                    if connection.opened_at <= signal.at:
                        connection.soon(connection.end, CloseCode.REVOKED, signal.reason)
            case TokenRevoked():
                for connection in tuple(self.connections.values()):
                    if connection.principal.jti == signal.jti:
                        connection.soon(connection.end, CloseCode.REVOKED)
            case ThreadRevoked():
                for connection in self.connections_of(signal.namespace, signal.user_id):
                    connection.expel(thread_room(signal.thread_id), signal.reason)
            case InstanceDrained():
                # Said twice it must not count as the second signal, which ends the process at once.
                if signal.instance == self.id and not self._is_told_to_go:
                    self._is_told_to_go = True
                    logger.info("told to drain", extra={"node": self.id})
                    os.kill(os.getpid(), signals.SIGTERM)
            case PresenceChanged():
                self.on_presence(signal)

    def _look_again(self) -> None:
        """Signals may have been lost: every connection looks whether one would have been for it."""
        if self._looking is not None:
            self._looking.cancel()
        self._looking = asyncio.create_task(self._look_round(), name="look again")

    async def _look_round(self) -> None:
        for number, connection in enumerate(tuple(self.connections.values()), 1):
            connection.soon(connection.look_again)
            if number % LOOK_SLICE == 0:
                await asyncio.sleep(0)

    # --- Questions -------------------------------------------------------------------------------

    @property
    def instance(self) -> Instance:
        """This process, to an operator."""
        return Instance(
            id=self.id,
            host=questions.host(),
            pid=os.getpid(),
            version=questions.version(),
            started_at=self._started_at,
            is_draining=self.is_draining,
        )

    def _hear(self, question: Question) -> None:
        if question.instance in {"", self.id}:
            task = asyncio.create_task(self._answer(question), name="answer")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, question: Question) -> None:
        try:
            answer = questions.Answer(self.instance, await self._find(question))
            async with client().pipeline(transaction=False) as pipeline:
                pipeline.rpush(question.reply_to, msgspec.msgpack.encode(answer, enc_hook=str))
                pipeline.expire(question.reply_to, questions.EXPIRE_SECONDS)
                # So that whoever asks later knows whom to miss.
                pipeline.hset(key("instances"), self.id, msgspec.json.encode(answer.instance))
                pipeline.expire(key("instances"), questions.REMEMBER_SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            logger.warning("question not answered", extra={"node": self.id, "error": spelled(error)})

    async def _find(self, question: Question) -> questions.Said:
        here = tuple(self.connections.values())
        match question.about:
            case questions.AboutInstances():
                before = asyncio.get_running_loop().time()
                await asyncio.sleep(questions.STALL_SECONDS)
                stall = asyncio.get_running_loop().time() - before - questions.STALL_SECONDS
                return await questions.load(here, cpu=self._meter.read(), stall=max(stall, 0.0))
            case questions.AboutConnections():
                return await questions.page(question.about, here)
            case questions.AboutConnection():
                return await self._describe(question.about.connection_id)
            case questions.AboutRooms():
                return await questions.rooms(question.about, here)

    async def _describe(self, connection_id: str) -> Detail:
        if (connection := self.connections.get(connection_id)) is None:
            return Detail()
        here = {room: connection.position(room) for room in connection.rooms}
        groups = {room: group_name(connection.user[0], room) for room in here}
        pipes = Pipes()
        try:
            ends = await roomlog.ends(groups.values(), pipes)
        finally:
            pipes.close()
        return Detail(
            row=questions.row(connection),
            groups=[*connection.principal.groups],
            expires_at=connection.principal.expires_at,
            rooms=[InRoom(room, position, ends[groups[room]]) for room, position in here.items()],
        )

    async def leave(self) -> None:
        """Nobody shall miss this process: it ends in good order. Raises `redis.RedisError`."""
        await client().hdel(key("instances"), self.id)

    # --- Readiness -------------------------------------------------------------------------------

    @property
    def _own_group(self) -> str:
        return f"node.{self.id}"

    async def probe(self, timeout: float) -> None:
        """Send a message to this process through Redis and wait for it to come back.

        Callers at the same time share one probe. Raises `TimeoutError` after `timeout` seconds, or what the
        channel layer raises.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._send_probe(timeout), name="probe")
        await asyncio.shield(self._probe)

    async def _send_probe(self, timeout: float) -> None:
        probe = uuid4().hex
        answer = self._probes[probe] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self.start()
                await self._layer.group_send(self._own_group, {"type": "node.probe", "probe": probe})
                await answer
        finally:
            self._probes.pop(probe, None)
