"""All subscriptions of an event loop, each on the server that has the channel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence

from realtime.conf import conf
from realtime.redis.pubsub import Message, Subscription
from realtime.redis.topology import Server, topology


def proof_interval() -> float:
    """Seconds between two reads of the topology: a server that has become a replica does not say so."""
    return max(min(conf().node_lease / 4, 5.0), 0.2)


class Subscriptions:
    """A `Subscription` to each server, between which channels move with their slots.

    The callbacks are those of `Subscription`; a channel that moves is lost, and restored once it has arrived.

    With `sharded=False` the channels are plain ones, for which any server of a Cluster will do: they are subscribed
    at one, and at another when that is in trouble.
    """

    def __init__(
        self,
        on_messages: Callable[[Sequence[Message]], None],
        on_lost: Callable[[Collection[bytes]], None],
        on_restored: Callable[[Collection[bytes]], None],
        *,
        sharded: bool = True,
    ) -> None:
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_restored = on_restored
        self._sharded = sharded
        self._topology = topology()
        self._servers: dict[Server, Subscription] = {}
        self._places: dict[bytes, Server] = {}
        """Where each wanted channel is (being) subscribed."""
        self._waiting: dict[bytes, None] = {}
        """Wanted, but the servers are not known yet."""
        self._anywhere: Server = None
        self._timer: asyncio.TimerHandle | None = None

    def is_lost(self, channel: bytes) -> bool:
        """Whether the channel was lost and is not restored, or cannot be subscribed just now."""
        subscription = self._servers.get(self._owner(channel))
        return subscription is not None and subscription.is_lost(channel)

    async def subscribe(self, channels: Sequence[bytes]) -> None:
        """Return once all of them are subscribed (or not wanted any more), however long that takes.

        A caller that is cancelled has to `unsubscribe`.
        """
        for channel in channels:
            if channel not in self._places:
                self._waiting[channel] = None
        await self._topology.known()
        self._start()
        while waiting := self._begin(channels):
            await asyncio.wait(waiting)  # a channel that has moved meanwhile has a new future

    def unsubscribe(self, channel: bytes) -> None:
        """End the subscription of a channel."""
        self._waiting.pop(channel, None)
        if subscription := self._servers.get(self._places.pop(channel, None)):
            subscription.unsubscribe(channel)

    def close(self) -> None:
        """Give the connections back; no callback is called any more."""
        self._topology.on_change.discard(self._follow)
        if self._timer is not None:
            self._timer.cancel()
        self._places.clear()  # a member that leaves from here on must not open a connection
        self._waiting.clear()
        servers, self._servers = self._servers, {}
        for subscription in servers.values():
            subscription.close()

    # --- Servers ---------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._timer is None:
            self._anywhere = self._topology.any_server()
            self._topology.on_change.add(self._follow)
            self._look()

    def _look(self) -> None:
        self._topology.refresh()
        self._timer = asyncio.get_running_loop().call_later(proof_interval(), self._look)

    def _owner(self, channel: bytes) -> Server:
        return self._topology.owner(channel) if self._sharded else self._anywhere

    def _begin(self, channels: Iterable[bytes], *, lost: bool = False) -> list[asyncio.Future[None]]:
        """Subscribe to the channels that are (still) wanted, each at its server."""
        by_server: dict[Server, list[bytes]] = {}
        for channel in channels:
            if channel in self._waiting:
                del self._waiting[channel]
                self._places[channel] = self._owner(channel)
            if channel in self._places:
                by_server.setdefault(self._places[channel], []).append(channel)
        return [
            future for server, part in by_server.items() for future in self._at(server).begin(part, lost=lost)
        ]

    def _at(self, server: Server) -> Subscription:
        if server not in self._servers:
            self._servers[server] = Subscription(
                self._on_messages,
                self._on_lost,
                self._on_restored,
                server,
                lambda: self._on_trouble(server),
                sharded=self._sharded,
            )
        return self._servers[server]

    def _on_trouble(self, server: Server) -> None:
        self._topology.refresh()
        if not self._sharded and server == self._anywhere:
            self._anywhere = self._topology.any_server()
            self._follow()

    def _follow(self) -> None:
        """Move the channels whose slots have moved, and close the subscriptions to servers that have left."""
        servers = self._topology.servers()
        if self._anywhere not in servers:
            self._anywhere = self._topology.any_server()
        moved = [channel for channel, place in self._places.items() if place != self._owner(channel)]
        for channel in moved:
            self._servers[self._places[channel]].unsubscribe(channel)
            self._places[channel] = self._owner(channel)
        try:
            if moved:
                self._on_lost(moved)
        finally:
            self._begin(moved, lost=True)
        for server in self._servers.keys() - servers:
            self._servers.pop(server).close()
