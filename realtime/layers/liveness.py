"""Whether this instance can be reached, whether it is the only one, and whether Redis still has its data."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from uuid import uuid4

from redis.exceptions import RedisError

from realtime.redis.client import key
from realtime.redis.clock import redis_clock
from realtime.redis.pipelining import pipes
from realtime.redis.sharded_pubsub import Subscriptions, proof_interval
from realtime.tasks.task_set import TaskSet

logger = logging.getLogger(__name__)

START_SECONDS = 1.0
"""Longest wait for a Redis that does not answer before the layer is used without it."""


def instance_channel(instance: str) -> bytes:
    """The Pub/Sub channel of an instance, for everything that is sent to one of its channels."""
    return key("process", instance).encode()


class InstanceLiveness:
    """Introduces an instance to the others, and checks regularly who is there.

    `on_wiped` is called when Redis has lost its data while it stayed connected.
    """

    def __init__(
        self, instance: str, subscriptions: Subscriptions, tasks: TaskSet, on_wiped: Callable[[], None]
    ) -> None:
        self.own_channel = instance_channel(instance)
        self.common_channel = key("processes").encode()
        """Of all instances."""
        self.is_alone = False
        """No other instance has this layer, so that all members of its groups are here."""
        self._instance = instance.encode()
        self._subscriptions = subscriptions
        self._pipes = pipes()
        self._tasks = tasks
        self._on_wiped = on_wiped
        self._reachable: asyncio.Task[None] | None = None
        self._has_met = False
        """Another instance has introduced itself since the last check."""
        self._epoch: bytes | None = None
        """Names one life of Redis' data: it changes when they are wiped."""
        self._awake_at = deque((time.time(), time.time()), maxlen=2)

    @property
    def awake_at(self) -> float:
        """A time (seconds since the epoch) at which this process ran, from before it was suspended if it just was.

        What is noticed after a suspension is noticed before or after the next check: so it is the last time but one.
        """
        return self._awake_at[0]

    async def start(self) -> None:
        """Subscribe to the instance's own channel.

        Waits until other instances can send to channels of this one, but at most `START_SECONDS`.
        """
        if self._reachable is None:
            self._reachable = self._tasks.supervise("introduce", self._introduce)
            self._tasks.supervise("layer", self._check_regularly)
        if not self._reachable.done():
            await asyncio.wait([self._reachable], timeout=START_SECONDS)

    def on_message(self, payload: bytes) -> None:
        """An instance has introduced itself."""
        if payload != self._instance:
            self._meet()

    def on_restored(self, channels: Collection[bytes]) -> None:
        """Channels are subscribed again: another instance may have started meanwhile, and did not see this one."""
        if self.own_channel in channels or self.common_channel in channels:
            self._meet()
            self._tasks.supervise("introduce", self._introduce)

    def _meet(self) -> None:
        self._has_met = True
        self.is_alone = False

    async def _introduce(self) -> None:
        """Become reachable, and let every other instance know that it is not alone (any more)."""
        await self._subscriptions.subscribe([self.own_channel, self.common_channel])
        with contextlib.suppress(RedisError, OSError):
            await self._pipes.publish(self.common_channel, self._instance)
            await self._check()

    async def _check_regularly(self) -> None:
        while True:
            await asyncio.sleep(proof_interval())
            self._awake_at.append(time.time())
            with contextlib.suppress(RedisError, OSError):  # TimeoutError is an OSError
                async with asyncio.timeout(proof_interval()):
                    await self._check()

    async def _check(self) -> None:
        """Find out whether there are other instances, what time it is, and whether Redis still has its data.

        Instances that start from now on introduce themselves.
        """
        self._has_met = False
        self.is_alone = await self._pipes.listeners(self.common_channel) == 1 and not self._has_met
        seconds, microseconds = await self._pipes.to(key("stream")).send("TIME")
        redis_clock().set(float(seconds) + float(microseconds) / 1e6)
        name = key("epoch")
        pipe = self._pipes.to(name)
        pipe.send(
            "SET", name, uuid4().hex, "NX"
        )  # another name each time: the instance that sets it notices, too
        known, self._epoch = self._epoch, await pipe.send("GET", name)
        if known is not None and known != self._epoch:
            logger.warning("redis lost its data")
            self._on_wiped()
