"""Pings: how a connection whose peer has vanished is noticed."""

from __future__ import annotations

import asyncio
from typing import Protocol

from realtime.tasks.per_loop import PerLoop
from realtime.tasks.supervision import report

PING_SECONDS = 15
"""Between two checks of a connection. A peer that has vanished is noticed within three times that."""


class Peer(Protocol):
    """A connection that can be checked."""

    def check_alive(self) -> None:
        """Ping a peer that has sent nothing since the last check, and give up one that did not answer a ping."""


class Keepalive:
    """Checks all connections of an event loop from one timer.

    uvicorn's own keepalive costs two timers and two frame objects per connection and ping, more than all heartbeats
    together.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buckets: list[set[Peer]] = [set() for _ in range(PING_SECONDS)]
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, peer: Peer) -> None:
        """Check a connection from now on. It joins the bucket that was just checked, and so has its whole time."""
        self._buckets[self._next - 1].add(peer)
        if self._timer is None:
            self._timer = self._loop.call_later(1, self.tick)

    def discard(self, peer: Peer) -> None:
        """Check it no longer."""
        for bucket in self._buckets:
            bucket.discard(peer)

    def tick(self) -> None:
        """Check the connections whose turn it is, one bucket a second."""
        self.stop()
        bucket = self._buckets[self._next]
        self._next = (self._next + 1) % PING_SECONDS
        for peer in tuple(bucket):
            try:
                peer.check_alive()
            except Exception:
                report("keepalive")
        if any(self._buckets):
            self._timer = self._loop.call_later(1, self.tick)

    def stop(self) -> None:
        """Check nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


keepalive: PerLoop[Keepalive] = PerLoop(Keepalive, Keepalive.stop)
"""The keepalive of the running event loop."""
