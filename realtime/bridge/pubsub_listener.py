"""The Pub/Sub listener: what backbones PUBLISH, delivered by the bridge that leads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from itertools import groupby

from redis.exceptions import LockNotOwnedError, RedisError

from realtime.auth.revocation import now
from realtime.bridge.batch import Batch, in_batches
from realtime.bridge.bus_entry import CHANNEL, BusEntry, published
from realtime.bridge.bus_handlers import Handlers
from realtime.bridge.dead_letters import drop
from realtime.bridge.inbox import Inbox
from realtime.bridge.read_size import READ_MOST
from realtime.layers.history import NO_LEASE
from realtime.layers.history import Lease as Term
from realtime.redis.client import is_cancelled, key
from realtime.redis.lease import Lease
from realtime.redis.pipelining import Pipes
from realtime.redis.pubsub import Message
from realtime.redis.sharded_pubsub import Subscriptions
from realtime.tasks.supervision import report
from realtime.telemetry.logs import spelled


class PubSubListener:
    """Delivers what arrives over Pub/Sub while its bridge leads; what fails is dropped, since nothing keeps it.

    Only the lease prevents a message without an id from being delivered twice: the message is delivered in the term in
    which it was published, and in no other. Messages from before the term are not accepted, and Redis refuses a message
    whose term has ended.
    """

    def __init__(self, lease: Lease, handlers: Handlers) -> None:
        self.subscribed = asyncio.Event()
        self._lease = lease
        self._handlers = handlers
        self._subscriptions = Subscriptions(self._on_messages, _ignore, _ignore, sharded=False)
        self._inbox = Inbox()
        self._term: Term | None = None
        self._latest = 0
        """The time given to the latest message, in microseconds."""

    def close(self) -> None:
        """Give the connection back."""
        self._subscriptions.close()

    @property
    def is_leading(self) -> bool:
        """Whether messages are accepted. A message that arrives while no bridge leads is lost."""
        return self._term is not None

    async def lead(self, term: Term, on_leading: Callable[[], None]) -> None:
        """Accept messages that are published from now on, as messages of this term, until cancelled."""
        # No client publishes in this channel. Redis confirms the subscription on the connection that carries the
        # messages; so all messages that were published before the term have arrived by then.
        channel = ":".join(term).encode()
        try:
            await self._subscriptions.subscribe([channel])
            self._term = term
            on_leading()
            await asyncio.get_running_loop().create_future()
        finally:
            self._term = None
            self._subscriptions.unsubscribe(channel)

    async def run(self) -> None:
        """Deliver messages in order, all that wait together, until cancelled."""
        await self._subscriptions.subscribe([key(CHANNEL).encode()])
        self.subscribed.set()
        with contextlib.closing(Pipes()) as pipes:
            while not is_cancelled():
                entries = [published(*taken) for taken in await self._inbox.take(READ_MOST)]
                for part in in_batches(entries, self._handlers):
                    for term, group in groupby(part, self._term_of):
                        await self._deliver(pipes, list(group), term)

    def _on_messages(self, messages: Sequence[Message]) -> None:
        if self._term is not None:
            self._inbox.put([raw for _, raw in messages], self._term)

    def _term_of(self, entry: BusEntry) -> Term:
        """The only term in which the entry may be delivered; `NO_LEASE` if its id suffices, and it is no order."""
        has_id = any(message.id for message in entry.messages)
        return NO_LEASE if has_id and not self._handlers.apply_to(entry) else entry.term

    async def _deliver(self, pipes: Pipes, entries: Sequence[BusEntry], term: Term) -> None:
        """Deliver entries, or drop them: without an id, to try twice could deliver twice."""
        try:
            if any(entry.error or self._handlers.apply_to(entry) for entry in entries):
                entries = await self._timed(entries)
                await self._confirm(term)
            await self._handlers.run(pipes, entries)
            entries = [entry for entry in entries if not entry.error]  # the others are dead letters now
            if not entries:
                return
            try:
                await Batch(entries, pipes, lease=term).send()
            except LockNotOwnedError:  # Redis has done nothing, and perhaps the lease has only lapsed
                await self._confirm(term)
                await Batch(entries, pipes, lease=term).send()
        except Exception as error:
            if not isinstance(error, RedisError | OSError):
                report("pubsub")
            drop(len(entries), spelled(error))

    async def _timed(self, entries: Sequence[BusEntry]) -> list[BusEntry]:
        """The entries, each with a time of its own by Redis' clock. Raises `redis.RedisError`."""
        first = max(int(await now() * 1e6), self._latest + 1)
        self._latest = first + len(entries) - 1
        return [entry.added_at(at) for at, entry in enumerate(entries, first)]

    async def _confirm(self, term: Term) -> None:
        """Raise `redis.RedisError` if the term has ended.

        A suspended bridge must not handle an order late: the order would replace a newer one that its successor has
        handled. Nor must it keep a dead letter that its successor has kept. If no other bridge has led meanwhile, the
        lease is renewed, and the term continues.
        """
        if not await self._lease.renew(term[1]):
            raise LockNotOwnedError("the lease has ended")


def _ignore(channels: Collection[bytes]) -> None:
    """Do nothing: what was published while the subscription was lost is lost."""
