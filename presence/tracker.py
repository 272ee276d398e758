"""Presence as one instance keeps it: its connections and the status of their users, sent to Redis in batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis.exceptions import RedisError, ResponseError

from presence import store
from presence.lease import Lease
from presence.namespaces import OLDEST
from presence.operations import BATCH, OperationQueue, Presentee, batch_size, is_own_fault
from presence.roster import Registration, Roster
from presence.snapshots import Snapshots
from presence.store import LeaseLost, Member, Status
from realtime.auth import revocation
from realtime.conf import conf
from realtime.connections.registry import ConnectionRegistry
from realtime.layers.signals import PresenceChanged
from realtime.redis.client import is_cancelled
from realtime.tasks.per_loop import PerLoop
from realtime.tasks.supervision import supervise
from realtime.telemetry.logs import digest, spelled

logger = logging.getLogger(__name__)


class PresenceTracker:
    """The presence of this instance's users in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.registry = ConnectionRegistry.current()
        self.registry.before_stop(self.close)
        self.registry.on_presence = _on_presence
        self._lease = Lease(namespace, self.registry.id)
        self._snapshots = Snapshots(namespace)
        self._queue = OperationQueue()
        self._roster = Roster()
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    @classmethod
    def current(cls, namespace: str) -> PresenceTracker:
        """The tracker of the running loop."""
        trackers = _trackers()
        if namespace not in trackers:
            trackers[namespace] = cls(namespace)
        return trackers[namespace]

    @classmethod
    async def close_all(cls) -> None:
        """Close the trackers of the running loop. Raises `redis.RedisError`."""
        trackers = _trackers.pop() or {}
        await asyncio.gather(*(tracker.close() for tracker in trackers.values()))

    # --- What connections do ---------------------------------------------------------------------

    async def connect(
        self, presentee: Presentee, *, refreshed: bool = False, dropped: Sequence[str] = ()
    ) -> None:
        """A connection opened or, if `refreshed`, has other claims; it has no right to the `dropped` groups.

        Raises `redis.RedisError`.
        """
        self._roster.end_grace(presentee.user_id)
        self._roster.put(presentee)
        if not refreshed:
            self._roster.arrive(presentee)
        try:
            answer = await self._ask({**presentee.connect(), "refreshed": refreshed, "dropped": dropped})
        except BaseException:
            if not refreshed:  # Redis may have done it all the same
                self.disconnect(presentee.connection_id)
            raise
        finally:
            self._roster.arrived(presentee)
        self._roster.note(presentee.user_id, answer)

    def regroup(self, presentee: Presentee, dropped: Sequence[str] = ()) -> None:
        """A connection is in other groups now, and has no right to the `dropped` ones; sent with the next batch."""
        if presentee.connection_id in self._roster:
            self._roster.put(presentee)
            change = {"does": "regroup", "connection": presentee.connection_id}
            self._tell({**change, "groups": presentee.groups, "dropped": dropped})

    def disconnect(self, connection_id: str) -> None:
        """A connection was lost, and `ConnectionRegistry` has forgotten it: the grace period of its user may begin."""
        if (presentee := self._roster.remove(connection_id)) is None:
            return
        if not any(self.registry.connections_of(self.namespace, presentee.user_id)):
            self._roster.begin_grace(presentee, self._now() + conf().grace_period)
        self._tell({"does": "disconnect", "connection": connection_id})

    async def logout(self, connection_id: str) -> None:
        """A connection ends without a grace period. Raises `redis.RedisError`."""
        # No longer present at once: an operation behind this one finds no record of the user, and must not have the
        # connection registered again.
        if (presentee := self._roster.remove(connection_id)) is None:
            return
        try:
            await self._ask({"does": "logout", "connection": connection_id, "at": await _clock()})
        except BaseException:
            self._roster.put(presentee)
            raise

    def heartbeat(self, user_id: str) -> None:
        """The user's client sent a heartbeat; sent with the next batch."""
        self._queue.heartbeat(user_id)

    def seen(self, user_id: str) -> None:
        """The user's client sent some frame, which keeps its record but is no heartbeat."""
        self._queue.seen(user_id)

    async def choose(self, user_id: str, status: Status) -> None:
        """The user chose a status. Raises `redis.RedisError`."""
        choice: dict[str, Any] = {"does": "choose", "user": user_id, "status": status, "reason": "chosen"}
        choice["at"] = await _clock()
        if not (answer := await self._ask(choice)):
            self._tell_again(user_id)
            answer = await self._ask(choice)
        if not answer:
            raise RedisError("the user is not known")
        self._roster.note(user_id, answer)

    async def snapshot(self, group: str) -> list[Member]:
        """The members of a group, as of now or later. Raises `redis.RedisError`."""
        return await self._snapshots.of(group)

    # --- Batches ---------------------------------------------------------------------------------

    async def _ask(self, operation: Mapping[str, Any]) -> str:
        answer = self._queue.ask(operation)
        self._send_soon()
        return await answer

    def _tell(self, operation: Mapping[str, Any] | msgspec.Raw) -> None:
        self._queue.tell(operation)
        self._send_soon()

    def _send_soon(self) -> None:
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
                logger.warning("presence not sent", extra={**self._facts, "error": spelled(error)})
                await asyncio.sleep(random.uniform(0, conf().batch_interval))  # noqa: S311

    async def _flush(self) -> None:
        """Send everything that is pending; with nothing pending the lease is renewed."""
        self._roster.end_grace_periods(self._now())
        self._queue.touch_seen(self._now())
        await self._send_batch()
        while self._queue:
            await self._send_batch()

    async def _send_batch(self) -> None:
        """One call. What it did not do stays pending, whatever ended it."""
        batch = self._queue.take()
        try:
            answers = await self._apply([pending.operation for pending in batch])
        except BaseException as error:
            if not is_own_fault(error):
                self._queue.put_back(batch, error)
                raise
            logger.exception("presence operation left out", extra=self._facts)
            self._queue.leave_out(batch, error)
            return
        for user, answer in self._queue.settle(batch, answers):
            self._roster.note(user, answer)
            if not answer:
                self._tell_again(user)

    async def _apply(self, operations: Sequence[msgspec.Raw]) -> list[str]:
        while True:
            try:
                return await self._lease.apply(operations)
            except LeaseLost as lost:
                await self._register(lost.epoch)

    # --- Registration ----------------------------------------------------------------------------

    def _tell_again(self, user_id: str) -> None:
        """Redis has lost the record of a user of this instance: register their connections with the next batch."""
        theirs = self.registry.connections_of(self.namespace, user_id)
        ids = [connection.connection_id for connection in theirs]
        for _, operation in self._roster.registered(ids, wiped=False):
            self._tell(operation)

    async def _register(self, epoch: str) -> None:
        """Tell Redis about every connection: it does not know this instance (any more), or not all of it.

        Another epoch means that Redis lost everything: then no status changed, and nothing is announced. The same epoch
        means that the lease ended and changes may have been announced, or that Redis lost its last writes.
        """
        wiped = self._lease.begin_registration(epoch)
        if self._lease.epoch and not wiped:
            # Perhaps this process was suspended: first it notices which connections were closed meanwhile, or their
            # users would be announced online once more.
            await asyncio.sleep(conf().batch_interval)
        registrations = self._roster.registrations(wiped=wiped, now=self._now())
        await self._lease.apply([], registers=True)  # there may be nothing to register but this instance
        await self._register_all(registrations)
        await self._take_off_the_closed()
        if self._lease.epoch:
            found = {"connections": len(registrations), "wiped": wiped}
            logger.warning("presence registered again", extra={**self._facts, **found})
        self._lease.end_registration(epoch)

    async def _register_all(self, registrations: Sequence[Registration]) -> None:
        """Send registrations in as many calls as that takes."""
        done = 0
        while done < len(registrations):
            batch = registrations[done : done + BATCH]
            batch = batch[: batch_size([operation for _, operation in batch])]
            try:
                answers = await self._lease.apply([operation for _, operation in batch], registers=True)
            except ResponseError as error:
                if not is_own_fault(error):
                    raise
                user = digest(self.namespace, batch[0][0])
                logger.exception("presence not registered", extra={**self._facts, "user": user})
                answers = [""]
            for (user, _), answer in zip(batch, answers, strict=False):
                self._roster.note(user, answer)
            done += len(answers)

    async def _take_off_the_closed(self) -> None:
        """Connections that only Redis knows were closed, and Redis lost that."""
        async for part in store.connections(self.namespace, self.registry.id):
            closed = [connection for connection in part if connection not in self._roster]
            losses = [store.encode({"does": "disconnect", "connection": each}) for each in closed]
            await self._register_all([("", loss) for loss in losses])

    def on_presence(self, signal: PresenceChanged) -> None:
        """A status was changed by another instance, by the sweeper or over the bus."""
        self._roster.change(signal)

    # --- The end ---------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Send nothing any more: the loop ends."""
        if self._runner is not None:
            self._runner.cancel()

    async def close(self) -> None:
        """Send what is still pending and give the lease back. Raises `redis.RedisError`."""
        if self._runner is None:
            return
        self.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self._runner = None  # closed again, it would take its lease back first
        self._queue.tell({"does": "close"})
        await self._flush()

    @property
    def _facts(self) -> dict[str, str]:
        """What every log line of this tracker says."""
        return {"instance": self.registry.id, "namespace": self.namespace}

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _cancel_all(trackers: Mapping[str, PresenceTracker]) -> None:
    for tracker in trackers.values():
        tracker.cancel()


_trackers: PerLoop[dict[str, PresenceTracker]] = PerLoop(dict, _cancel_all)
"""By namespace."""


def _on_presence(signal: PresenceChanged) -> None:
    if (tracker := _trackers().get(signal.namespace or OLDEST)) is not None:
        tracker.on_presence(signal)


async def _clock() -> float:
    """Milliseconds on the clock that also stamps the messages of the bus. Raises `redis.RedisError`."""
    return await revocation.now() * 1000
