"""One socket process: its open connections, the signals meant for all of them, and the proof that it can deliver."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import signal as signals
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol
from uuid import uuid4

import msgspec
from redis.exceptions import RedisError

from realtime.auth import revocation
from realtime.layers import history
from realtime.layers.interface import room_layer
from realtime.layers.signals import (
    InstanceDrained,
    PresenceChanged,
    Signal,
    ThreadRevoked,
    TokenRevoked,
    UserDisconnected,
    parse,
)
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.rooms import CONTROL_GROUP, group_name, thread_room
from realtime.redis import schema_version
from realtime.redis.client import client, key
from realtime.survey import messages as questions
from realtime.survey.messages import Detail, InRoom, Instance, Question
from realtime.tasks.per_loop import PerLoop
from realtime.tasks.serial import Action
from realtime.tasks.supervision import report
from realtime.telemetry import metrics
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)


class Connection(questions.Connection, Protocol):
    """What a node must know of a connection, and can do with it."""

    def position(self, room: str) -> int:
        """Up to where it has what was published in a room."""

    def soon(self, action: Action, *args: Any) -> None:
        """Do something to it in its turn."""

    async def end(self, code: CloseCode, reason: str = "") -> None:
        """Close it, as something to do in its turn."""

    def terminate(self, code: CloseCode, reason: str = "") -> None:
        """Close it now."""

    async def review(self) -> None:
        """See whether it may still be here, and in its threads: an order may have been missed.

        Raises `redis.RedisError`.
        """

    def expel(self, room: str, reason: str, *, before: float = math.inf) -> None:
        """Take it out of a room, now, if it entered before then (seconds of Redis' clock)."""


REVIEW_BATCH = 200
"""Connections whose rights are read at the same time."""
REVIEW_PAUSE = 0.5
"""Seconds before rights are read again when Redis, or what a product's policy asks, did not answer."""
REVIEW_SECONDS = 30.0
"""Who is asked for a connection's rights, other than Redis, has so long to answer: all rooms wait for it."""


class ConnectionRegistry:
    """This process, as one event loop sees it."""

    def __init__(self) -> None:
        self.id = uuid4().hex
        self.connections: dict[str, Connection] = {}
        self.is_draining = False
        """Nobody is let in any more."""
        self._is_told_to_go = False
        self.on_presence: Callable[[PresenceChanged], None] = lambda signal: None
        self._layer = room_layer()
        self._users: dict[tuple[str, str], set[str]] = {}
        self._channel: str | None = None
        self._tokens: dict[str, set[str]] = {}
        """Connections by the token that opened them, or that they were refreshed with."""
        self._starting = asyncio.Lock()
        self._probes: dict[str, asyncio.Future[None]] = {}
        self._probe: asyncio.Task[None] | None = None
        self._started_at = time.time()
        self._meter = questions.Meter()
        self._answering: set[asyncio.Task[None]] = set()
        self._closers: list[Callable[[], Awaitable[None]]] = []

    @classmethod
    def current(cls) -> ConnectionRegistry:
        """The node of the running loop."""
        return nodes()

    async def start(self) -> None:
        """Join the control group, unless that is done. Raises `redis.RedisError`."""
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
            self._layer.when_restored(self._review)
            self._channel = channel
            async with client().pipeline(transaction=False) as pipeline:
                self._remember(pipeline)
                await pipeline.execute()

    async def stop(self) -> None:
        """Leave the control group."""
        answering = tuple(self._answering)
        self.abort()
        await asyncio.gather(*answering, return_exceptions=True)
        if self._channel is not None:
            self._layer.detach(self._channel)
        self._channel = None

    def before_stop(self, close: Callable[[], Awaitable[None]]) -> None:
        """Await `close()` when all connections have been closed. It may raise `redis.RedisError`."""
        self._closers.append(close)

    async def close(self) -> None:
        """All connections are closed: end what was built on this registry. Raises `redis.RedisError`."""
        closers, self._closers = self._closers, []
        await asyncio.gather(*(close() for close in closers))

    def abort(self) -> None:
        """End what runs in the background: the event loop ends."""
        for task in self._answering:
            task.cancel()

    def add(self, connection: Connection) -> None:
        """From now on signals reach this connection."""
        self.connections[connection.connection_id] = connection
        if connection.user not in self._users:
            self._users[connection.user] = set()
            metrics.USERS.labels(connection.user[0]).inc()
        self._users[connection.user].add(connection.connection_id)
        self._tokens.setdefault(connection.principal.jti, set()).add(connection.connection_id)

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.pop(connection.connection_id, None)
        _discard(self._tokens, connection.principal.jti, connection.connection_id)
        if _discard(self._users, connection.user, connection.connection_id):
            metrics.USERS.labels(connection.user[0]).dec()

    def refreshed(self, connection: Connection, previous: str) -> None:
        """The connection goes on with another token than that of the `jti` `previous`."""
        _discard(self._tokens, previous, connection.connection_id)
        self._tokens.setdefault(connection.principal.jti, set()).add(connection.connection_id)

    def connections_of(self, namespace: str, user_id: str) -> Iterator[Connection]:
        """A user's connections to this process."""
        for connection_id in tuple(self._users.get((namespace, user_id), ())):
            yield self.connections[connection_id]

    # --- Signals ---------------------------------------------------------------------------------

    def message(self, message: dict[str, Any]) -> None:
        """The mailbox of the node: a signal takes effect before anything that is published after it is written."""
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

    def _obey(self, signal: Signal) -> None:
        match signal:
            case UserDisconnected():
                theirs = self.connections_of(signal.namespace, signal.user_id)
                here = [connection for connection in theirs if connection.opened_at <= signal.at]
                _each(here, lambda connection: connection.terminate(CloseCode.REVOKED, signal.reason))
            case TokenRevoked():
                here = [self.connections[each] for each in self._tokens.get(signal.jti, ())]
                _each(here, lambda connection: connection.terminate(CloseCode.REVOKED))
            case ThreadRevoked():
                room = thread_room(signal.thread_id)
                # A revoke holds until it is taken back; a member who was expelled may have come back.
                before = signal.at if signal.reason == "expelled" and signal.at else math.inf
                here = [*self.connections_of(signal.namespace, signal.user_id)]
                _each(here, lambda connection: connection.expel(room, signal.reason, before=before))
            case InstanceDrained():
                # Said twice it must not count as the second signal, which ends the process at once.
                if signal.instance == self.id and not self._is_told_to_go:
                    self._is_told_to_go = True
                    logger.info("told to drain", extra={"node": self.id})
                    os.kill(os.getpid(), signals.SIGTERM)
            case PresenceChanged():
                self.on_presence(signal)

    async def _review(self, seconds: float) -> None:
        """Orders may have been missed for so many seconds: look at the rights of every connection.

        After a loss for longer than orders are remembered, no look would tell: then all connections begin anew.
        """
        connections = tuple(self.connections.values())
        if seconds > revocation.MARK_SECONDS / 2:
            _each(connections, lambda connection: connection.terminate(CloseCode.RESTARTING))
            return
        for start in range(0, len(connections), REVIEW_BATCH):
            await asyncio.gather(*map(self._review_one, connections[start : start + REVIEW_BATCH]))

    async def _review_one(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(REVIEW_SECONDS) as patience:
                await self._review_until_answered(connection, patience)
        except Exception:
            logger.exception("rights not known", extra={"connection_id": connection.connection_id})
            connection.terminate(CloseCode.INTERNAL_ERROR)

    async def _review_until_answered(self, connection: Connection, patience: asyncio.Timeout) -> None:
        while connection.connection_id in self.connections:
            try:
                await connection.review()
                return
            except RedisError:  # then there is nothing to deliver either
                patience.reschedule(asyncio.get_running_loop().time() + REVIEW_SECONDS)
            except OSError:
                pass
            await asyncio.sleep(REVIEW_PAUSE * random.uniform(0.5, 1.0))  # noqa: S311

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
                self._remember(pipeline)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            logger.warning("question not answered", extra={"node": self.id, "error": spelled(error)})
        except Exception:
            report("answer")

    def _remember(self, pipeline: Any) -> None:
        """A survey names the instances that are known and do not answer."""
        pipeline.hset(key("instances"), self.id, msgspec.json.encode(self.instance))
        pipeline.expire(key("instances"), questions.REMEMBER_SECONDS)

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
        ends = await history.ends(groups.values())
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


nodes: PerLoop[ConnectionRegistry] = PerLoop(ConnectionRegistry, ConnectionRegistry.abort)


def _each(connections: Sequence[Connection], obey: Callable[[Connection], None]) -> None:
    """Obey in each connection; what goes wrong in one does not keep the order from the others."""
    for connection in connections:
        try:
            obey(connection)
        except Exception:
            logger.exception("signal not obeyed", extra={"connection_id": connection.connection_id})


def _discard(index: dict[Any, set[str]], key: object, connection_id: str) -> bool:
    """Take a connection out of an index; True when it was the last one under its key."""
    if (found := index.get(key)) is None:
        return False
    found.discard(connection_id)
    if found:
        return False
    del index[key]
    return True
