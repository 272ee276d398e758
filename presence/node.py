"""Presence as one socket process keeps it: which connections are here, told to Redis in batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from redis.exceptions import RedisError

from presence import store
from presence.store import LeaseLost, Member, Operation, State, Status
from realtime.conf import conf
from realtime.control import PresenceChanged
from realtime.logs import spelled
from realtime.node import Node
from realtime.redis import is_cancelled
from realtime.rooms import HUB

logger = logging.getLogger(__name__)

SNAPSHOT_INTERVAL = 0.25
"""Seconds: a group's snapshot is read at most so often, however many connect."""
BATCH = 500
"""Operations a call: keeps one script under a few milliseconds."""

_nodes: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, PresenceNode]] = WeakKeyDictionary()


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
    operation: Operation
    answer: asyncio.Future[str] | None = None
    """None: nobody waits; it is kept until Redis takes it."""


class PresenceNode:
    """The presence side of this process, for one namespace. Every call to Redis also renews its lease."""

    def __init__(self, namespace: str = HUB) -> None:
        self.namespace = namespace
        self.node = Node.current()
        if namespace == HUB:
            self.node.on_presence = self._remember  # a customer's status is changed by nobody else
        self._present: dict[str, Presentee] = {}
        self._states: dict[str, State] = {}
        self._in_grace: dict[str, tuple[Presentee, float]] = {}
        self._heard: set[str] = set()
        self._seen: set[str] = set()
        self._touch_at = 0.0
        self._pending: list[_Pending] = []
        self._epoch = ""
        self._calls = 0
        self._acked = 0
        """The last call that was answered; a Redis that does not know of it has lost something."""
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._snapshots: dict[str, asyncio.Task[list[Member]]] = {}
        self._snapshot_at: dict[str, float] = {}

    @classmethod
    def current(cls, namespace: str = HUB) -> PresenceNode:
        """The presence node of the running loop."""
        nodes = _nodes.setdefault(asyncio.get_running_loop(), {})
        if namespace not in nodes:
            nodes[namespace] = cls(namespace)
        return nodes[namespace]

    @classmethod
    async def close_all(cls) -> None:
        """Close those of the running loop. Raises `redis.RedisError`."""
        nodes = _nodes.pop(asyncio.get_running_loop(), {})
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
        try:
            answer = await self._ask({**_connect(presentee), "refreshed": refreshed, "dropped": dropped})
        except BaseException:
            if not refreshed:
                # It may have reached Redis all the same.
                self.disconnect(presentee.connection_id)
            raise
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
        """A connection was lost (and `Node` has forgotten it): the grace period of its user may begin."""
        if (presentee := self._present.pop(connection_id, None)) is None:
            return
        if not any(self.node.connections_of(self.namespace, presentee.user_id)):
            self._in_grace[presentee.user_id] = (presentee, self._now() + conf().grace_period)
        self._tell({"does": "disconnect", "connection": connection_id})

    async def logout(self, connection_id: str) -> None:
        """A connection ends for good: no grace period. Raises `redis.RedisError`."""
        if connection_id in self._present:
            await self._ask({"does": "logout", "connection": connection_id})
            self._present.pop(connection_id, None)

    def heartbeat(self, user_id: str) -> None:
        """The user's client sent a sign of life; told with the next batch."""
        self._heard.add(user_id)

    def seen(self, user_id: str) -> None:
        """The user's client sent some frame: no heartbeat, but its record must not expire."""
        self._seen.add(user_id)

    async def choose(self, user_id: str, status: Status) -> None:
        """The user chose a status. Raises `redis.RedisError`."""
        self._heard.discard(user_id)
        self._note(
            user_id,
            await self._ask({"does": "choose", "user": user_id, "status": status, "reason": "chosen"}),
        )

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

    async def _ask(self, operation: Operation) -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._submit(_Pending(operation, answer))
        return await answer

    def _tell(self, operation: Operation) -> None:
        self._submit(_Pending(operation))

    def _submit(self, pending: _Pending) -> None:
        self._pending.append(pending)
        self._wake.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run(), name="presence")

    async def _run(self) -> None:
        while not is_cancelled():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(conf().batch_interval):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._flush()
            except RedisError as error:
                logger.warning("presence not told", extra={"node": self.node.id, "error": spelled(error)})
                await asyncio.sleep(random.uniform(0, conf().batch_interval))  # noqa: S311

    async def _flush(self) -> None:
        """Tell everything that is pending; with nothing pending only the lease is renewed."""
        self._forget_the_gone()
        heard, self._heard = self._heard, set()
        self._pending += [_Pending({"does": "heartbeat", "user": user}) for user in heard]
        if self._now() >= self._touch_at:
            self._touch_at = self._now() + conf().presence_ttl / 4
            seen, self._seen = self._seen - heard, set()
            self._pending += [_Pending({"does": "touch", "user": user}) for user in seen]
        while True:
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            try:
                answers = await self._apply([pending.operation for pending in batch])
            except BaseException as error:
                self._pending = [pending for pending in batch if pending.answer is None] + self._pending
                for pending in batch:
                    if pending.answer is not None and not pending.answer.done():
                        pending.answer.set_exception(
                            error if isinstance(error, RedisError) else RedisError("interrupted")
                        )
                raise
            for pending, answer in zip(batch, answers, strict=True):
                if pending.operation["does"] == "heartbeat":
                    self._note(pending.operation["user"], answer)
                if pending.answer is not None and not pending.answer.done():
                    pending.answer.set_result(answer)
            if not self._pending:
                return

    async def _apply(self, operations: list[Operation]) -> list[str]:
        while True:
            try:
                return await self._call(operations)
            except LeaseLost as lost:
                await self._register(lost.epoch)

    async def _call(self, operations: Sequence[Operation], *, register: bool = False) -> list[str]:
        self._calls += 1
        number = self._calls
        _, answers = await store.apply(
            operations,
            node=self.node.id,
            epoch=self._epoch,
            register=register,
            number=number,
            acked=self._acked,
            namespace=self.namespace,
        )
        self._acked = number
        return answers

    async def _register(self, epoch: str) -> None:
        """Tell Redis about every connection here: it does not know this process (any more), or not all of it.

        Another epoch means that Redis lost everything: then nothing changed for anybody, and nothing is
        announced. The same epoch means that our lease ended and the others may have been told, or that Redis
        lost what it was told last.
        """
        wiped = bool(self._epoch) and epoch != self._epoch
        waiting = {
            pending.operation.get("connection") for pending in self._pending if pending.answer is not None
        }
        operations: list[Operation] = [{"does": "only", "connections": list(self._present)}]
        for presentee in self._present.values():
            if presentee.connection_id in waiting or presentee.user_id not in self._states:
                continue  # never announced: its own operation is on its way
            operations.append(
                {
                    **_connect(presentee),
                    "restored": self._states[presentee.user_id],
                    "silent": wiped,
                }
            )
        if wiped:
            operations += self._grace_operations()
        for start in range(0, len(operations), BATCH):
            await self._call(operations[start : start + BATCH], register=True)
        if self._epoch:
            logger.warning(
                "presence registered again",
                extra={"node": self.node.id, "connections": len(operations) - 1, "wiped": wiped},
            )
        self._epoch = epoch

    def _grace_operations(self) -> list[Operation]:
        now = self._now()
        return [
            {
                "does": "grace",
                "user": user,
                "name": presentee.name,
                "groups": presentee.groups,
                "restored": self._states[user],
                "remaining": int((until - now) * 1000),
            }
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
        if known := store.state(answer):
            self._states[user_id] = known

    def _remember(self, signal: PresenceChanged) -> None:
        """What the bridge tells everybody: changes made elsewhere, by another process or by the sweeper."""
        if signal.status == "offline":
            self._states.pop(signal.user_id, None)
            self._in_grace.pop(signal.user_id, None)
        elif signal.user_id in self._states:
            self._states[signal.user_id] = State(signal.status, signal.chosen, signal.since)

    async def close(self) -> None:
        """Tell what is still pending and give the lease back. Raises `redis.RedisError`."""
        if self._runner is None:
            return
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self._pending.append(_Pending({"does": "close"}))
        await self._flush()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _connect(presentee: Presentee) -> dict[str, Any]:
    return {
        "does": "connect",
        "connection": presentee.connection_id,
        "user": presentee.user_id,
        "name": presentee.name,
        "groups": presentee.groups,
    }
