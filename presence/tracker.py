"""Presence as one socket process keeps it: which connections are here, told to Redis in batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

import msgspec
from redis.exceptions import RedisError, ResponseError

from presence import store
from presence.namespaces import OLDEST as HUB
from presence.store import LeaseLost, Member, Operation, State, Status
from realtime.auth import revocation
from realtime.conf import conf
from realtime.connections.registry import ConnectionRegistry
from realtime.layers.signals import PresenceChanged
from realtime.redis.client import is_cancelled
from realtime.tasks.per_loop import PerLoop
from realtime.tasks.supervision import report, supervise
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

SNAPSHOT_INTERVAL = 0.25
"""Seconds: a group's snapshot is read at most so often, however many connect."""
BATCH = 500
"""Operations a call; Redis itself bounds how much work they may be (`store.WORK`)."""
BATCH_BYTES = 256 * 1024
"""Of the operations of a call, as they are encoded: they hold names and groups of any length."""


@dataclass(frozen=True, slots=True)
class Presentee:
    """A connection whose user is listed."""

    connection_id: str
    user_id: str
    name: str
    groups: tuple[str, ...]
    """Of a customer: threads."""


@dataclass(slots=True)
class _Pending:
    operation: msgspec.Raw
    answer: asyncio.Future[str] | None = None
    user: str = ""
    again: set[str] | None = None
    """Where to put the user back: for them it is enough to be told once, however late. Without it and without an
    `answer` that is awaited, the operation itself is kept until Redis takes it."""

    def resolve(self, answer: str) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error if isinstance(error, RedisError) else RedisError("interrupted"))


class PresenceTracker:
    """The presence side of this process, for one namespace. Every call to Redis also renews its lease."""

    def __init__(self, namespace: str = HUB) -> None:
        self.namespace = namespace
        self.registry = ConnectionRegistry.current()
        self.registry.before_stop(self.close)
        self.registry.on_presence = _on_presence
        self._present: dict[str, Presentee] = {}
        self._states: dict[str, State] = {}
        self._in_grace: dict[str, tuple[Presentee, float]] = {}
        self._arriving: set[str] = set()
        """Connections whose own operation is on its way: they are registered by nothing else."""
        self._heard: set[str] = set()
        self._seen: set[str] = set()
        self._touched: set[str] = set()
        self._touch_at = 0.0
        self._pending: list[_Pending] = []
        self._epoch = ""
        self._is_registered = True
        """False while Redis knows of a part of the connections only: until all were registered, no call counts."""
        self._calls = 0
        self._acked = 0
        """The last call that was answered; a Redis that does not know of it has lost something."""
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._snapshots: dict[str, asyncio.Task[list[Member]]] = {}
        self._snapshot_at: dict[str, float] = {}

    @classmethod
    def current(cls, namespace: str = HUB) -> PresenceTracker:
        """The presence node of the running loop."""
        nodes = _nodes()
        if namespace not in nodes:
            nodes[namespace] = cls(namespace)
        return nodes[namespace]

    @classmethod
    async def close_all(cls) -> None:
        """Close those of the running loop. Raises `redis.RedisError`."""
        nodes = _nodes.pop() or {}
        await asyncio.gather(*(node.close() for node in nodes.values()))

    # --- What connections tell -------------------------------------------------------------------

    async def connect(
        self, presentee: Presentee, *, refreshed: bool = False, dropped: Sequence[str] = ()
    ) -> None:
        """A connection opened, or (`refreshed`) has other claims now: no right to the `dropped` groups, for one.

        Raises `redis.RedisError`.
        """
        self._in_grace.pop(presentee.user_id, None)
        self._present[presentee.connection_id] = presentee
        if not refreshed:
            self._arriving.add(presentee.connection_id)
        try:
            answer = await self._ask({**_connect(presentee), "refreshed": refreshed, "dropped": dropped})
        except BaseException:
            self._arriving.discard(presentee.connection_id)
            if not refreshed:
                # It may have reached Redis all the same.
                self.disconnect(presentee.connection_id)
            raise
        self._arriving.discard(presentee.connection_id)
        self._note(presentee.user_id, answer)

    def regroup(self, presentee: Presentee, dropped: Sequence[str] = ()) -> None:
        """A connection is in other groups now, and has no right to the `dropped` ones; told with the next batch."""
        if presentee.connection_id not in self._present:
            return
        self._present[presentee.connection_id] = presentee
        self._tell(
            {
                "does": "regroup",
                "connection": presentee.connection_id,
                "groups": presentee.groups,
                "dropped": dropped,
            }
        )

    def disconnect(self, connection_id: str) -> None:
        """A connection was lost (and `ConnectionRegistry` has forgotten it): the grace period of its user may begin."""
        if (presentee := self._present.pop(connection_id, None)) is None:
            return
        if not any(self.registry.connections_of(self.namespace, presentee.user_id)):
            self._in_grace[presentee.user_id] = (presentee, self._now() + conf().grace_period)
        self._tell({"does": "disconnect", "connection": connection_id})

    async def logout(self, connection_id: str) -> None:
        """A connection ends for good: no grace period. Raises `redis.RedisError`."""
        # Out of those who are here at once: an operation behind this one finds no record of the user, and must not
        # have the connection registered again.
        if (presentee := self._present.pop(connection_id, None)) is None:
            return
        try:
            await self._ask({"does": "logout", "connection": connection_id, "at": await _clock()})
        except BaseException:
            self._present[connection_id] = presentee
            raise

    def heartbeat(self, user_id: str) -> None:
        """The user's client sent a sign of life; told with the next batch."""
        self._heard.add(user_id)

    def seen(self, user_id: str) -> None:
        """The user's client sent some frame: no heartbeat, but its record must not expire."""
        self._seen.add(user_id)

    async def choose(self, user_id: str, status: Status) -> None:
        """The user chose a status. Raises `redis.RedisError`."""
        self._heard.discard(user_id)
        choice = {
            "does": "choose",
            "user": user_id,
            "status": status,
            "reason": "chosen",
            "at": await _clock(),
        }
        if not (answer := await self._ask(choice)):
            self._tell_again(user_id)
            answer = await self._ask(choice)
        if not answer:
            raise RedisError("the user is not known")
        self._note(user_id, answer)

    async def snapshot(self, group: str) -> list[Member]:
        """Who is present in a group, as of now or later. Raises `redis.RedisError`."""
        if group not in self._snapshots:
            self._snapshots[group] = asyncio.create_task(self._read_snapshot(group), name="snapshot")
        return await asyncio.shield(self._snapshots[group])

    async def _read_snapshot(self, group: str) -> list[Member]:
        try:
            await asyncio.sleep(self._snapshot_at.get(group, 0.0) + SNAPSHOT_INTERVAL - self._now())
        finally:
            # From here on it would not see who connects: later callers need another one.
            del self._snapshots[group]
        self._snapshot_at[group] = self._now()
        asyncio.get_running_loop().call_later(SNAPSHOT_INTERVAL, self._snapshot_at.pop, group, None)
        return await store.snapshot(group, self.namespace)

    # --- Batches ---------------------------------------------------------------------------------

    async def _ask(self, operation: Mapping[str, Any]) -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._submit(_Pending(store.encode(operation), answer))
        return await answer

    def _tell(self, operation: Mapping[str, Any]) -> None:
        self._submit(_Pending(store.encode(operation)))

    def _submit(self, pending: _Pending) -> None:
        self._pending.append(pending)
        self._wake.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(supervise("presence", self._run), name="presence")

    async def _run(self) -> None:
        while not is_cancelled():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(conf().batch_interval):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._flush()
            except RedisError as error:
                logger.warning("presence not told", extra={"node": self.registry.id, "error": spelled(error)})
                await asyncio.sleep(random.uniform(0, conf().batch_interval))  # noqa: S311

    async def _flush(self) -> None:
        """Tell everything that is pending; with nothing pending only the lease is renewed."""
        self._forget_the_gone()
        if self._now() >= self._touch_at:
            self._touch_at = self._now() + conf().presence_ttl / 4
            self._touched |= self._seen
            self._seen = set()
        await self._tell_some()
        while self._pending or self._heard or self._touched:
            await self._tell_some()

    async def _tell_some(self) -> None:
        """One call's worth. What it did not do stays pending, whatever ended it."""
        batch = self._take()
        try:
            answers = await self._apply([pending.operation for pending in batch])
        except BaseException as error:
            if not _is_own_fault(error):
                self._put_back(batch, error)
                raise
            logger.exception("presence operation left out", extra={"node": self.registry.id})
            batch[0].fail(error)
            self._pending = batch[1:] + self._pending
            return
        self._pending = batch[len(answers) :] + self._pending
        for pending, answer in zip(batch, answers, strict=False):
            pending.resolve(answer)
            if pending.again is not None:
                self._note(pending.user, answer)
                if not answer:
                    self._tell_again(pending.user)

    def _take(self) -> list[_Pending]:
        for does, users in (("heartbeat", self._heard), ("touch", self._touched)):
            while users and len(self._pending) < BATCH:
                user = users.pop()
                operation = store.encode({"does": does, "user": user})
                self._pending.append(_Pending(operation, user=user, again=users))
        size = _batch_size([pending.operation for pending in self._pending[:BATCH]])
        batch, self._pending = self._pending[:size], self._pending[size:]
        return batch

    def _put_back(self, batch: Sequence[_Pending], error: BaseException) -> None:
        """Redis may have done it or not. Who waits is told so; the rest is tried again."""
        told = []
        for pending in batch:
            if pending.again is not None:
                pending.again.add(pending.user)
            elif pending.answer is not None:
                pending.fail(error)
            else:
                told.append(pending)
        self._pending = told + self._pending

    async def _apply(self, operations: Sequence[Operation]) -> list[str]:
        while True:
            try:
                return await self._try(operations)
            except LeaseLost as lost:
                await self._register(lost.epoch)

    async def _try(self, operations: Sequence[Operation], *, register: bool = False) -> list[str]:
        """The answers to some of the first operations; when the very first one can't be done, its error is raised.

        Else all would be tried for ever that are told together with it.
        """
        while True:
            try:
                return await self._call(operations, register=register)
            except ResponseError as error:
                if len(operations) <= 1 or not _is_own_fault(error):
                    raise
            operations = operations[: len(operations) // 2]

    async def _call(self, operations: Sequence[Operation], *, register: bool = False) -> list[str]:
        self._calls += 1
        number = self._calls
        _, answers = await store.apply(
            operations,
            node=self.registry.id,
            epoch=self._epoch if self._is_registered else "",
            register=register,
            number=number,
            acked=self._acked,
            namespace=self.namespace,
        )
        self._acked = number
        return answers

    def _tell_again(self, user_id: str) -> None:
        """Redis does not know a user who is here, having lost the record: with the next batch it does."""
        for connection in self.registry.connections_of(self.namespace, user_id):
            presentee = self._present.get(connection.connection_id)
            if presentee is None or presentee.connection_id in self._arriving:
                continue
            if (operation := self._registration(presentee, wiped=False)) is not None:
                self._submit(_Pending(operation))

    async def _register(self, epoch: str) -> None:
        """Tell Redis about every connection here: it does not know this process (any more), or not all of it.

        Another epoch means that Redis lost everything: then nothing changed for anybody, and nothing is
        announced. The same epoch means that our lease ended and the others may have been told, or that Redis
        lost what it was told last.
        """
        self._is_registered = False
        wiped = bool(self._epoch) and epoch != self._epoch
        operations = [
            (presentee.user_id, operation)
            for presentee in self._present.values()
            if presentee.connection_id not in self._arriving
            and (operation := self._registration(presentee, wiped)) is not None
        ]
        if wiped:
            operations += self._grace_operations()
        await self._call([], register=True)  # perhaps there is nothing to register but this process
        await self._register_all(operations)
        await self._take_off_the_closed()
        if self._epoch:
            logger.warning(
                "presence registered again",
                extra={"node": self.registry.id, "connections": len(operations), "wiped": wiped},
            )
        self._epoch = epoch
        self._is_registered = True

    def _registration(self, presentee: Presentee, wiped: bool) -> msgspec.Raw | None:
        """How Redis is told of a connection that is here already; None if that can't be written."""
        operation = _connect(presentee)
        if state := self._states.get(presentee.user_id):
            operation |= {"restored": state, "silent": wiped}
        try:
            return store.encode(operation)
        except Exception:
            report("presence")
            return None

    async def _register_all(self, operations: Sequence[tuple[str, msgspec.Raw]]) -> None:
        """Operations and their users, in as many calls as that takes."""
        done = 0
        while done < len(operations):
            batch = operations[done : done + BATCH]
            batch = batch[: _batch_size([operation for _, operation in batch])]
            try:
                answers = await self._try([operation for _, operation in batch], register=True)
            except ResponseError as error:
                if not _is_own_fault(error):
                    raise
                logger.exception(
                    "presence not registered", extra={"node": self.registry.id, "user": batch[0][0]}
                )
                answers = [""]
            for (user, _), answer in zip(batch, answers, strict=False):
                self._note(user, answer)
            done += len(answers)

    async def _take_off_the_closed(self) -> None:
        """What Redis knows beside our connections was closed, and Redis lost that."""
        async for part in store.connections(self.registry.id, self.namespace):
            await self._register_all(
                [
                    ("", store.encode({"does": "disconnect", "connection": connection}))
                    for connection in part
                    if connection not in self._present
                ]
            )

    def _grace_operations(self) -> list[tuple[str, msgspec.Raw]]:
        now = self._now()
        return [
            (
                user,
                store.encode(
                    {
                        "does": "grace",
                        "user": user,
                        "name": presentee.name,
                        "groups": presentee.groups,
                        "restored": self._states[user],
                        "remaining": int((until - now) * 1000),
                    }
                ),
            )
            for user, (presentee, until) in self._in_grace.items()
            if user in self._states
        ]

    def _forget_the_gone(self) -> None:
        """Whose grace period is over, in the order of losing them."""
        while self._in_grace:
            user, (_, until) = next(iter(self._in_grace.items()))
            if until > self._now():
                return
            del self._in_grace[user]
            self._states.pop(user, None)

    def _note(self, user_id: str, answer: str) -> None:
        try:
            if known := store.state(answer):
                self._states[user_id] = known
        except msgspec.DecodeError:
            report("presence")

    def _remember(self, signal: PresenceChanged) -> None:
        """What the bridge tells everybody: changes made elsewhere, by another process or by the sweeper."""
        if signal.status == "offline":
            self._states.pop(signal.user_id, None)
            self._in_grace.pop(signal.user_id, None)
        elif signal.user_id in self._states:
            self._states[signal.user_id] = State(signal.status, signal.chosen, signal.since)

    def cancel(self) -> None:
        """Tell nothing any more: the loop ends."""
        if self._runner is not None:
            self._runner.cancel()

    async def close(self) -> None:
        """Tell what is still pending and give the lease back. Raises `redis.RedisError`."""
        if self._runner is None:
            return
        self.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self._pending.append(_Pending(store.encode({"does": "close"})))
        await self._flush()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _cancel_all(nodes: Mapping[str, PresenceTracker]) -> None:
    for node in nodes.values():
        node.cancel()


_nodes: PerLoop[dict[str, PresenceTracker]] = PerLoop(dict, _cancel_all)


def _on_presence(signal: PresenceChanged) -> None:
    if (tracker := _nodes().get(signal.namespace or HUB)) is not None:
        tracker._remember(signal)


"""By namespace."""


def _connect(presentee: Presentee) -> dict[str, Any]:
    return {
        "does": "connect",
        "connection": presentee.connection_id,
        "user": presentee.user_id,
        "name": presentee.name,
        "groups": presentee.groups,
    }


async def _clock() -> float:
    """Milliseconds on the clock that also stamps the messages of the bus. Raises `redis.RedisError`."""
    return await revocation.now() * 1000


def _batch_size(operations: Sequence[msgspec.Raw]) -> int:
    """How many go into one call: one at least."""
    sizes = accumulate(len(memoryview(operation)) for operation in operations)
    return max(1, sum(1 for _ in takewhile(lambda size: size <= BATCH_BYTES, sizes)))


def _is_own_fault(error: BaseException) -> bool:
    """Whether a call failed because of what it was to do: the same will fail again, whatever the state Redis is in."""
    text = str(error).removeprefix("ERR ")
    return isinstance(error, ResponseError) and text.startswith(_OWN_FAULTS)


_OWN_FAULTS = ("user_script", "Error running script", "WRONGTYPE")
