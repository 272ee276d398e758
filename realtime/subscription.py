"""One Pub/Sub connection of a process: batched, drained, proven alive, and mended when Redis comes back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any

import hiredis
from redis.exceptions import RedisError

from realtime.location import Address
from realtime.logs import spelled
from realtime.pipe import connect

logger = logging.getLogger(__name__)

BATCH = 512
"""Channels a SUBSCRIBE."""
LONGEST_PAUSE = 1.0
TAKEN_SECONDS = 1.0
"""A Cluster tells us within so long where a channel went, unless its servers do not agree yet."""

Message = tuple[bytes, bytes]
"""Channel and payload."""


class Subscription:
    """Keeps its channels subscribed until closed.

    `on_messages` gets everything that has already arrived, in order; what it returns is awaited before more is read.
    `on_restored` gets the channels that were lost, once all of them are subscribed again: what was published in them
    meanwhile did not come.
    """

    def __init__(
        self,
        on_messages: Callable[[Sequence[Message]], Awaitable[None] | None],
        on_restored: Callable[[Collection[bytes]], None],
        server: Address | None = None,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self._server = server
        self._on_trouble = on_trouble
        self._subscribe, self._unsubscribe = (
            (b"SUBSCRIBE", b"UNSUBSCRIBE") if server is None else (b"SSUBSCRIBE", b"SUNSUBSCRIBE")
        )
        self._batch = BATCH if server is None else 1  # a Cluster takes those of one slot at once
        self._asked_at = 0.0
        self._on_messages = on_messages
        self._on_restored = on_restored
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}
        """Wanted channels; the future is done once Redis has confirmed."""
        self._outstanding: dict[bytes, int] = {}
        """SUBSCRIBEs sent and not yet confirmed: an older answer must not pass for the newest."""
        self._to_subscribe: dict[bytes, None] = {}
        self._to_unsubscribe: dict[bytes, None] = {}
        self._scheduled = False
        self._writer: asyncio.StreamWriter | None = None
        self._runner: asyncio.Task[None] | None = None
        self._lost = False
        self._lost_channels: set[bytes] = set()
        """Lost, and perhaps subscribed again, but `on_restored` has not been told yet."""
        self._missing: set[bytes] = set()
        """Those of them that are not subscribed again."""
        self._taken: set[bytes] = set()
        """Those of them that the server took away itself."""
        self.heard_at = 0.0
        """Loop time at which anything last came from Redis."""

    @property
    def is_lost(self) -> bool:
        """Whether there was a connection, or an attempt at one, that failed, and none since."""
        return self._lost

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection just now."""
        return self._writer is not None

    async def subscribe(self, channels: Iterable[bytes]) -> None:
        """Return once all of them are subscribed, however long that takes."""
        for future in self.begin(channels):
            await asyncio.shield(future)

    def begin(self, channels: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Subscribe; each is once its future is done."""
        waiting = []
        for channel in channels:
            if channel not in self._confirmed:
                self._confirmed[channel] = asyncio.get_running_loop().create_future()
                if channel in self._to_unsubscribe:
                    del self._to_unsubscribe[channel]
                    if channel not in self._outstanding:
                        self._confirmed[channel].set_result(None)
                else:
                    self._to_subscribe[channel] = None
            waiting.append(self._confirmed[channel])
        self._schedule()
        return waiting

    def unsubscribe(self, channel: bytes) -> None:
        """No more of this channel."""
        if future := self._confirmed.pop(channel, None):
            if not future.done():
                future.set_result(None)  # who waits for it may wait for others too
            self._lost_channels.discard(channel)
            self._missing.discard(channel)
            if channel in self._to_subscribe:
                del self._to_subscribe[channel]
            elif channel in self._taken:
                self._taken.discard(channel)
            else:
                self._to_unsubscribe[channel] = None
                self._schedule()
            if self._writer is not None:
                self._look_whether_restored()  # it may be the last one that was missing

    async def close(self) -> None:
        """Give the connection back."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None

    def reconnect(self) -> None:
        """Drop the connection: it does not deliver."""
        if self._writer is not None:
            self._writer.transport.abort()

    def prove(self, quiet: float) -> None:
        """Ask for a sign of life after so many seconds without; drop the connection if the last question got none."""
        if self._writer is None:
            return
        if self._asked_at > self.heard_at:
            logger.warning("subscription does not answer")
            self.reconnect()
        elif asyncio.get_running_loop().time() - self.heard_at > quiet:
            self._asked_at = asyncio.get_running_loop().time()
            self._writer.write(b"PING\r\n")

    # --- Commands --------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run(), name="subscription")
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send_commands)

    def _send_commands(self) -> None:
        """Everything asked for in one turn of the loop goes out together."""
        self._scheduled = False
        if self._writer is None or self._writer.transport.is_closing():
            return  # a new connection subscribes to all that is wanted
        unsubscribe, self._to_unsubscribe = list(self._to_unsubscribe), {}
        subscribe, self._to_subscribe = list(self._to_subscribe), {}
        self._send(self._unsubscribe, unsubscribe)
        self._send_subscribe(subscribe)

    def _send_subscribe(self, channels: Sequence[bytes]) -> None:
        for channel in channels:
            self._outstanding[channel] = self._outstanding.get(channel, 0) + 1
        self._send(self._subscribe, channels)

    def _send(self, command: bytes, channels: Sequence[bytes]) -> None:
        assert self._writer is not None  # noqa: S101
        for start in range(0, len(channels), self._batch):
            arguments: Any = (command, *channels[start : start + self._batch])
            self._writer.write(hiredis.pack_command(arguments))

    # --- Reading ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        lost = False
        while True:
            connected_at = asyncio.get_running_loop().time()
            try:
                await self._serve(restored=lost)
            except Exception as error:
                if not isinstance(error, RedisError | OSError):
                    logger.exception("subscription failed")
                if asyncio.get_running_loop().time() - connected_at > 10:
                    failures = 0
                lost = True
                failures += 1
                self._lost = True
                self._on_trouble()
                logger.warning("subscription lost", extra={"error": spelled(error), "failures": failures})
            finally:
                self._writer = None
            # Full jitter (M. Brooker, "Exponential Backoff And Jitter"): many processes lose Redis together.
            await asyncio.sleep(random.uniform(0.01, min(LONGEST_PAUSE, 0.05 * 2**failures)))  # noqa: S311

    async def _serve(self, *, restored: bool) -> None:
        """One connection, until it is lost."""
        receiver = _Receiver(self._on_replies)
        self._writer = await connect(receiver, self._server)
        self._asked_at = 0.0
        receiver.transport = self._writer.transport
        try:
            self._lost = False
            self._outstanding.clear()
            self._to_subscribe.clear()
            self._to_unsubscribe.clear()
            for channel, future in self._confirmed.items():
                if future.done():
                    self._confirmed[channel] = asyncio.get_running_loop().create_future()
            wanted = list(self._confirmed)
            self._taken.clear()
            if restored:
                self._lost_channels = set(wanted)
            self._missing = set(self._lost_channels)
            self._send_subscribe(wanted)
            await receiver.over
        finally:
            self._writer.transport.abort()
            receiver.stop()

    def _on_replies(self, replies: Iterable[Any]) -> Awaitable[None] | None:
        self.heard_at = asyncio.get_running_loop().time()
        messages: list[Message] = []
        for reply in replies:
            if isinstance(reply, Exception):
                raise RedisError(str(reply))
            if reply[0] == b"message" or reply[0] == b"smessage":
                messages.append((reply[1], reply[2]))
            elif reply[0] in {b"subscribe", b"ssubscribe"}:
                self._confirm(reply[1])
            elif (
                reply[0] == b"sunsubscribe"
                and reply[1] in self._confirmed
                and reply[1] not in self._outstanding
            ):
                self._take_away(reply[1])
        return self._on_messages(messages) if messages else None

    def _confirm(self, channel: bytes) -> None:
        left = self._outstanding.pop(channel, 1) - 1
        if left > 0:
            self._outstanding[channel] = left
        elif (future := self._confirmed.get(channel)) and not future.done():
            future.set_result(None)
        if channel in self._missing:
            self._missing.discard(channel)
            self._look_whether_restored()

    def _look_whether_restored(self) -> None:
        if self._lost_channels and not self._missing:
            restored, self._lost_channels = self._lost_channels, set()
            self._on_restored(restored)

    def _take_away(self, channel: bytes) -> None:
        """Another server has the slot of this channel now, and whoever looks after us is asked to see which."""
        loop = asyncio.get_running_loop()
        self._confirmed[channel] = loop.create_future()
        self._taken.add(channel)
        self._lost_channels.add(channel)
        self._missing.add(channel)
        self._on_trouble()
        loop.call_later(TAKEN_SECONDS, self._try_again, channel)

    def _try_again(self, channel: bytes) -> None:
        """It is still for us to subscribe: then it came back, or the server will refuse, and all begins anew."""
        if channel in self._taken and self._writer is not None and not self._writer.transport.is_closing():
            self._taken.discard(channel)
            self._send_subscribe([channel])


class _Receiver(asyncio.Protocol):
    """Reads replies, and reads on only when what they ask for has been done."""

    def __init__(self, on_replies: Callable[[Iterable[Any]], Awaitable[None] | None]) -> None:
        loop = asyncio.get_running_loop()
        self.transport: Any
        self.over: asyncio.Future[None] = loop.create_future()
        """Fails when the connection is lost, or something else went wrong."""
        self._on_replies = on_replies
        self._reader = hiredis.Reader()
        self._rest: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            rest = self._on_replies(iter(self._reader.gets, False))
        except Exception as error:
            self._end(error)
            return
        if rest is not None:
            self.transport.pause_reading()
            self._rest = asyncio.ensure_future(rest)
            self._rest.add_done_callback(self._read_on)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("redis closed the subscription"))

    def stop(self) -> None:
        """No more of what was read."""
        if self._rest is not None:
            self._rest.cancel()
        self._end(ConnectionError("stopped"))
        self.over.exception()

    def _read_on(self, rest: asyncio.Task[None]) -> None:
        self._rest = None
        if not rest.cancelled() and (error := rest.exception()):
            self._end(error)
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _end(self, error: BaseException) -> None:
        if not self.over.done():
            self.over.set_exception(error)
