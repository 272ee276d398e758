"""What a process has subscribed to, on whichever servers that is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from realtime.cluster import shards
from realtime.conf import conf
from realtime.location import Address
from realtime.subscription import Message, Subscription


def proof_interval() -> float:
    """Seconds without a sign of life after which a subscription has to prove that it delivers."""
    return max(min(conf().node_lease / 4, 5.0), 0.2)


class Subscriptions:
    """One `Subscription` when Redis is one server; in a Cluster one each, and channels move with slots."""

    def __init__(
        self,
        on_messages: Callable[[Sequence[Message]], Awaitable[None] | None],
        on_restored: Callable[[Collection[bytes]], None],
    ) -> None:
        self._on_messages = on_messages
        self._on_restored = on_restored
        self._only = Subscription(on_messages, on_restored)
        self._shards = shards()
        self._servers: dict[Address, Subscription] = {}
        self._leaving: set[Subscription] = set()
        """To servers that serve nothing any more, not closed yet."""
        self._places: dict[bytes, Address | None] = {}
        """Where each wanted channel is subscribed; None: not yet."""
        self._watcher: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def serving(self, channel: bytes) -> Subscription:
        """The subscription that a channel's messages come by."""
        return self._only if self._shards is None else self._at(self._shards.owner(channel))

    async def subscribe(self, channels: Sequence[bytes]) -> None:
        """Return once all of them are subscribed, however long that takes."""
        if self._shards is None:
            await self._only.subscribe(channels)
            return
        for channel in channels:
            self._places.setdefault(channel, None)
        await self._shards.known()
        self._start()
        await self._settle(channels)

    def unsubscribe(self, channel: bytes) -> None:
        """No more of this channel."""
        if self._shards is None:
            self._only.unsubscribe(channel)
        elif place := self._places.pop(channel, None):
            self._at(place).unsubscribe(channel)

    async def close(self) -> None:
        """Give the connections back."""
        if self._shards is not None:
            self._shards.on_change.discard(self._follow)
        self._places.clear()  # who leaves a group from here on must not bring a connection back
        for task in (*self._tasks, *((self._watcher,) if self._watcher else ())):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for subscription in (self._only, *self._servers.values(), *self._leaving):
            await subscription.close()

    # --- Clusters --------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._watcher is None and self._shards is not None:
            self._shards.on_change.add(self._follow)
            self._watcher = asyncio.create_task(self._watch(), name="subscriptions")

    def _at(self, server: Address) -> Subscription:
        assert self._shards is not None  # noqa: S101
        if server not in self._servers:
            self._servers[server] = Subscription(
                self._on_messages, self._on_restored, server, self._shards.refresh
            )
        return self._servers[server]

    def _begin(self, channels: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Subscribe to those that are (still) wanted, each where it is served."""
        assert self._shards is not None  # noqa: S101
        by_server: dict[Address, list[bytes]] = {}
        for channel in channels:
            if channel in self._places:
                server = self._places[channel] = self._shards.owner(channel)
                by_server.setdefault(server, []).append(channel)
        return [future for server, part in by_server.items() for future in self._at(server).begin(part)]

    def _follow(self) -> None:
        """Slots have moved, and their channels with them."""
        assert self._shards is not None  # noqa: S101
        moved = []
        for channel, place in self._places.items():
            if place is not None and place != self._shards.owner(channel):
                self._servers[place].unsubscribe(channel)
                self._places[channel] = None
                moved.append(channel)
        if moved:
            self._spawn(self._arrive(moved))
        for server in self._servers.keys() - self._shards.servers():
            self._leaving.add(self._servers[server])
            self._spawn(self._leave(self._servers.pop(server)))

    async def _settle(self, channels: Sequence[bytes]) -> None:
        """Return once all of them are subscribed that are (still) wanted, wherever they go meanwhile."""
        waiting = self._begin(channels)
        while waiting:
            for future in waiting:
                await asyncio.shield(future)
            waiting = [future for future in self._begin(channels) if not future.done()]

    async def _arrive(self, channels: Sequence[bytes]) -> None:
        await self._settle(channels)
        self._on_restored(channels)

    async def _leave(self, subscription: Subscription) -> None:
        await subscription.close()
        self._leaving.discard(subscription)

    async def _watch(self) -> None:
        """A connection that died without a word does not say so, nor does a server that has become a replica."""
        assert self._shards is not None  # noqa: S101
        while True:
            await asyncio.sleep(proof_interval())
            self._shards.refresh()
            for subscription in self._servers.values():
                subscription.prove(proof_interval())

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
