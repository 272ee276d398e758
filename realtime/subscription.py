"""One Pub/Sub connection: batched, never paused, proven alive, and mended when Redis comes back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import hiredis
from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.connection import Liveness, connect, pack, patience
from realtime.logs import spelled
from realtime.topology import Server, Topology, topology

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 1.0
"""Seconds between two attempts to connect."""
PROVEN_SECONDS = 10.0
"""A connection that lasted so long makes up for the failures before it."""
TAKEN_SECONDS = 1.0
"""A Cluster tells us within so long where a channel went, unless its servers do not agree yet."""

Message = tuple[bytes, bytes]
"""Channel and payload."""


def silence_limit() -> float:
    """Seconds without an answer after which a subscription is dead."""
    return min(patience(), max(conf().node_lease, 0.8))


class Subscription:
    """Keeps its channels subscribed until closed.

    All callbacks are called from the loop and return at once.

    `on_messages` gets everything that has arrived, in order.
    `on_lost` gets the channels that were subscribed, at the moment their connection ends or the server takes them away.
    `on_restored` gets all that were lost and are still wanted, once the last of them is subscribed again: what was
    published in them meanwhile did not come.
    `on_trouble` is called when the topology should be looked at again.

    A channel is *wanted* from `begin` to `unsubscribe`. Its future is done while Redis has it subscribed. The queues
    hold what the open connection has not been told yet; a new connection is told all that is wanted, so they end with
    it.
    """

    def __init__(
        self,
        on_messages: Callable[[Sequence[Message]], None],
        on_lost: Callable[[Collection[bytes]], None],
        on_restored: Callable[[Collection[bytes]], None],
        server: Server = None,
        on_trouble: Callable[[], None] = lambda: None,
        *,
        sharded: bool = True,
    ) -> None:
        self._commands = topology() if sharded else Topology()
        self._server = server
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_restored = on_restored
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._wanted: dict[bytes, asyncio.Future[None]] = {}
        self._outstanding: dict[bytes, int] = {}
        """SUBSCRIBEs sent and not yet confirmed: an older answer must not pass for the newest."""
        self._to_subscribe: dict[bytes, None] = {}
        self._to_unsubscribe: dict[bytes, None] = {}
        self._scheduled = False
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._failures = 0
        self._lost: set[bytes] = set()
        """Lost, and perhaps subscribed again, but `on_restored` has not been told yet."""
        self._missing: set[bytes] = set()
        """Those of them that are not subscribed again."""
        self._taken: set[bytes] = set()
        """Those of them that the server took away itself."""

    def is_lost(self, channel: bytes) -> bool:
        """Whether the channel was lost and is not restored, or there is no connection because it failed."""
        return channel in self._lost or (self._link is None and self._failures > 0)

    async def subscribe(self, channels: Iterable[bytes]) -> None:
        """Return once all of them are subscribed (or not wanted any more), however long that takes.

        Who is cancelled in it has to `unsubscribe`.
        """
        if waiting := [future for future in self.begin(channels) if not future.done()]:
            await asyncio.wait(waiting)

    def begin(self, channels: Iterable[bytes], *, lost: bool = False) -> list[asyncio.Future[None]]:
        """Want channels; each is subscribed when its future is done. With `lost` they are to be restored."""
        waiting = []
        for channel in channels:
            if channel not in self._wanted:
                self._want(channel)
                if lost:
                    self._lose(channel)
            waiting.append(self._wanted[channel])
        self._schedule()
        self._tell_restored()
        return waiting

    def _want(self, channel: bytes) -> None:
        self._wanted[channel] = self._loop.create_future()
        if self._link is None:
            return
        if channel not in self._to_unsubscribe:
            self._to_subscribe[channel] = None
            return
        del self._to_unsubscribe[channel]  # it has never been out
        if channel not in self._outstanding:
            self._wanted[channel].set_result(None)

    def unsubscribe(self, channel: bytes) -> None:
        """No more of this channel."""
        if (future := self._wanted.pop(channel, None)) is None:
            return
        if not future.done():
            future.set_result(None)  # who waits for it may wait for others too
        self._lost.discard(channel)
        self._missing.discard(channel)
        if self._link is None:
            return
        if channel in self._to_subscribe:
            del self._to_subscribe[channel]
        elif channel in self._taken:
            self._taken.discard(channel)
        else:
            self._to_unsubscribe[channel] = None
            self._schedule()
        self._tell_restored()  # it may be the last one that was missing

    def close(self) -> None:
        """Give the connection back; no callback is called any more."""
        if self._connecting is not None:
            self._connecting.cancel()
        link, self._link = self._link, None
        if link is not None:
            link.end(ConnectionError("closed"))
        for channel in tuple(self._wanted):
            self.unsubscribe(channel)

    # --- Connection ------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._link is None:
            if self._connecting is None or self._connecting.done():
                self._connecting = self._loop.create_task(self._connect(), name="subscription")
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send_commands)

    async def _connect(self) -> None:
        while True:
            if self._failures:
                # Full jitter (M. Brooker, "Exponential Backoff And Jitter"): many processes lose Redis together.
                pause = min(LONGEST_PAUSE, 0.05 * 2 ** min(self._failures, 10))
                await asyncio.sleep(random.uniform(0.01, pause))  # noqa: S311
            link = _Link(self._on_replies, self._on_end)
            try:
                await link.open(self._server)
            except Exception as error:
                if not isinstance(error, RedisError | OSError):
                    logger.exception("subscription failed")
                self._failed(error)
                continue
            self._link = link
            self._missing = set(self._lost)
            self._send_subscribe(list(self._wanted))
            return

    def _on_end(self, link: _Link, error: BaseException) -> None:
        """The connection is over."""
        if link is not self._link:
            return  # it was closed, or never begun
        self._link = None
        self._outstanding.clear()
        self._to_subscribe.clear()
        self._to_unsubscribe.clear()
        self._taken.clear()
        lost = [channel for channel, future in self._wanted.items() if future.done()]
        for channel in lost:
            self._wanted[channel] = self._loop.create_future()
        self._lost.update(lost)
        if self._loop.time() - link.opened_at > PROVEN_SECONDS:
            self._failures = 0
        try:
            if lost:
                self._on_lost(lost)
        finally:
            self._failed(error)
            self._schedule()

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        logger.warning("subscription lost", extra={"error": spelled(error), "failures": self._failures})
        self._on_trouble()

    # --- Commands --------------------------------------------------------------------------------

    def _send_commands(self) -> None:
        """Everything asked for in one turn of the loop goes out together."""
        self._scheduled = False
        if self._link is None:
            return  # a new connection subscribes to all that is wanted
        unsubscribe, self._to_unsubscribe = list(self._to_unsubscribe), {}
        subscribe, self._to_subscribe = list(self._to_subscribe), {}
        self._send(self._commands.unsubscribe_command, unsubscribe)
        self._send_subscribe(subscribe)

    def _send_subscribe(self, channels: Sequence[bytes]) -> None:
        for channel in channels:
            self._outstanding[channel] = self._outstanding.get(channel, 0) + 1
        self._send(self._commands.subscribe_command, channels)

    def _send(self, command: bytes, channels: Sequence[bytes]) -> None:
        assert self._link is not None  # noqa: S101
        most = self._commands.subscribe_most
        for start in range(0, len(channels), most):
            self._link.write(pack(command, *channels[start : start + most]))

    # --- Reading ---------------------------------------------------------------------------------

    def _on_replies(self, replies: Iterable[Any]) -> None:
        messages: list[Message] = []
        for reply in replies:
            if isinstance(reply, Exception):
                raise RedisError(str(reply))
            kind = reply[0]
            if kind in {b"message", b"smessage"}:
                messages.append((reply[1], reply[2]))
            elif kind in {b"subscribe", b"ssubscribe"}:
                self._confirm(reply[1])
            elif kind == b"sunsubscribe" and self._is_subscribed(reply[1]):
                self._take_away(reply[1])
        if messages:
            self._on_messages(messages)

    def _is_subscribed(self, channel: bytes) -> bool:
        """Whether the channel should be subscribed at Redis: no SUBSCRIBE is on its way, nor about to be."""
        return (
            channel in self._wanted
            and channel not in self._outstanding
            and channel not in self._to_subscribe
            and channel not in self._taken
        )

    def _confirm(self, channel: bytes) -> None:
        left = self._outstanding.pop(channel, 1) - 1
        if left > 0:
            self._outstanding[channel] = left
            return
        if (future := self._wanted.get(channel)) and not future.done():
            future.set_result(None)
        if channel in self._missing:
            self._missing.discard(channel)
            self._tell_restored()

    def _tell_restored(self) -> None:
        if self._lost and not self._missing and self._link is not None:
            restored, self._lost = self._lost, set()
            self._on_restored(restored)

    def _lose(self, channel: bytes) -> None:
        self._lost.add(channel)
        if not self._wanted[channel].done():
            self._missing.add(channel)

    def _take_away(self, channel: bytes) -> None:
        """Another server has the slot of this channel now, and the topology is asked which."""
        self._wanted[channel] = self._loop.create_future()
        self._taken.add(channel)
        self._lose(channel)
        self._on_lost([channel])
        self._loop.call_later(TAKEN_SECONDS, self._try_again, channel)
        self._on_trouble()

    def _try_again(self, channel: bytes) -> None:
        """It is still for us to subscribe: then it came back, or the server will refuse, and all begins anew."""
        if channel in self._taken and self._link is not None:
            self._taken.discard(channel)
            self._send_subscribe([channel])


class _Link(asyncio.Protocol):
    """One connection, from its beginning to its end, which is told once."""

    def __init__(
        self,
        on_replies: Callable[[Iterable[Any]], None],
        on_end: Callable[[_Link, BaseException], None],
    ) -> None:
        self._on_replies = on_replies
        self._on_end = on_end
        self._reader = hiredis.Reader()
        self._writer: asyncio.StreamWriter | None = None
        self._has_ended = False
        self._loop = asyncio.get_running_loop()
        self.opened_at = self._loop.time()
        self._liveness = Liveness(silence_limit(), self._ping, self._on_dead)

    async def open(self, server: Server) -> None:
        self._writer = await connect(self, server)
        self._liveness.watch()

    def write(self, packed: bytes) -> None:
        assert self._writer is not None  # noqa: S101  (open)
        if not self._has_ended:
            self._writer.write(packed)

    def _ping(self) -> bool:
        self.write(b"PING\r\n")
        return True

    def _on_dead(self) -> None:
        logger.warning("subscription does not answer")
        self.end(ConnectionError("redis does not answer"))

    def data_received(self, data: bytes) -> None:
        if self._has_ended:
            return
        self._liveness.heard()
        self._reader.feed(data)
        try:
            self._on_replies(iter(self._reader.gets, False))
        except Exception as error:
            if not isinstance(error, RedisError):
                logger.exception("subscription failed")
            self.end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(exc or ConnectionError("redis closed the subscription"))

    def end(self, error: BaseException) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._liveness.stop()
            if self._writer is not None:
                self._writer.transport.abort()
            self._on_end(self, error)
