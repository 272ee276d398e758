"""The Pub/Sub listener: what backbones PUBLISH, delivered by the bridge that leads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from itertools import groupby

from redis.exceptions import RedisError

from realtime.auth.revocation import now
from realtime.bridge.batch import Batch, in_batches
from realtime.bridge.bus_entry import CHANNEL, BusEntry, published
from realtime.bridge.bus_handlers import Handlers
from realtime.bridge.dead_letters import drop
from realtime.bridge.inbox import Inbox
from realtime.bridge.read_size import READ_MOST
from realtime.layers.history import NO_LEASE
from realtime.redis.client import is_cancelled, key
from realtime.redis.lease import Lease
from realtime.redis.pipelining import Pipes
from realtime.redis.pubsub import Message
from realtime.redis.sharded_pubsub import Subscriptions
from realtime.tasks.supervision import report
from realtime.telemetry.logs import spelled


class PubSubListener:
    """Delivers what arrives over Pub/Sub while its bridge leads; what fails is dropped, since nothing keeps it."""

    def __init__(self, lease: Lease, handlers: Handlers) -> None:
        self.is_leading = False
        """A message that arrives while no bridge leads is lost."""
        self.subscribed = asyncio.Event()
        self._lease = lease
        self._handlers = handlers
        self._inbox = Inbox()
        self._latest = 0
        """The time given to the latest message, in microseconds."""

    async def run(self) -> None:
        """Deliver messages in order, all that wait together, until cancelled."""
        subscriptions = Subscriptions(self._on_messages, _ignore, _ignore, sharded=False)
        with contextlib.closing(subscriptions), contextlib.closing(Pipes()) as pipes:
            await subscriptions.subscribe([key(CHANNEL).encode()])
            self.subscribed.set()
            while not is_cancelled():
                entries = [published(raw) for raw in await self._inbox.take(READ_MOST)]
                for part in in_batches(entries, self._handlers):
                    for has_id, group in groupby(part, _has_id):
                        # Without an id only the lease keeps a message from being delivered twice.
                        await self._deliver(pipes, list(group), NO_LEASE if has_id else self._lease.fence)

    def _on_messages(self, messages: Sequence[Message]) -> None:
        if self.is_leading:
            self._inbox.put([raw for _, raw in messages])

    async def _deliver(self, pipes: Pipes, entries: Sequence[BusEntry], lease: tuple[str, str]) -> None:
        """Deliver entries, or drop them: without an id, to try twice could deliver twice."""
        try:
            if any(map(self._handlers.apply_to, entries)):
                # Each has a time of its own, by Redis' clock.
                first = max(int(await now() * 1e6), self._latest + 1)
                self._latest = first + len(entries) - 1
                entries = [entry.added_at(at) for at, entry in enumerate(entries, first)]
            await self._handlers.run(pipes, entries)
            await Batch(entries, pipes, lease=lease).send()
        except Exception as error:
            if not isinstance(error, RedisError | OSError):
                report("pubsub")
            drop(len(entries), spelled(error))


def _has_id(entry: BusEntry) -> bool:
    """Whether its id keeps a message from being delivered twice."""
    return any(message.id for message in entry.messages)


def _ignore(channels: Collection[bytes]) -> None:
    """Do nothing: what was published while the subscription was lost is lost."""
