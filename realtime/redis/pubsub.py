"""One Pub/Sub connection: batched, never paused, checked for liveness, and restored when Redis comes back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from realtime.conf import conf
from realtime.redis.connection import Session, pack, patience
from realtime.redis.topology import Server, Topology, topology
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 1.0
"""Seconds between two attempts to connect."""
PROVEN_SECONDS = 10.0
"""After a connection that lasted this long, failures are counted from the start."""
TAKEN_SECONDS = 1.0
"""Time for a Cluster to say which server has a channel now, before the former server is asked again."""

Message = tuple[bytes, bytes]
"""Channel and payload."""


def silence_limit() -> float:
    """Seconds without an answer after which a subscription is dead."""
    return min(patience(), max(conf().node_lease, 0.8))


@dataclass(slots=True)
class _Channel:
    """Whether a channel is wanted, and which commands about it the open connection has been sent."""

    waiting: asyncio.Future[None] | None = None
    """Done when Redis has the channel subscribed, or it is not wanted any more. Then there is none: it takes memory."""
    is_wanted: bool = False
    is_asked: bool = False
    """The last command about it was SUBSCRIBE."""
    unconfirmed: int = 0
    """SUBSCRIBEs without an answer: an older answer must not pass for the newest."""

    @property
    def is_confirmed(self) -> bool:
        """Whether Redis has it subscribed."""
        return self.is_asked and not self.unconfirmed

    def wait_no_longer(self) -> None:
        """Let those go on that wait."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


class Subscription(Session):
    """Keeps its channels subscribed until closed.

    All callbacks are called from the loop and return at once.

    `on_messages` gets everything that has arrived, in order.
    `on_lost` gets the channels that were subscribed, at the moment their connection ends or the server takes them away.
    `on_restored` gets all that were lost and are still wanted, once the last of them is subscribed again: what was
    published in them meanwhile did not come.
    `on_trouble` is called when the topology should be read again.

    A channel is *wanted* from `begin` to `unsubscribe`. Where the open connection has been sent something else, the
    command follows at the end of the turn of the loop; a new connection subscribes to all wanted channels.
    """

    name = "subscription"

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
        super().__init__(server, on_trouble, silence_limit(), self._ping)
        self._commands = topology() if sharded else Topology()
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_restored = on_restored
        self._channels: dict[bytes, _Channel] = {}
        self._changed: dict[bytes, None] = {}
        """Channels for which a command may have to be sent."""
        self._lost: set[bytes] = set()
        """Lost, and perhaps subscribed again, but `on_restored` has not been called yet."""
        self._failures = 0

    def is_lost(self, channel: bytes) -> bool:
        """Whether the channel was lost and is not restored, or there is no connection because it failed."""
        return channel in self._lost or (self._writer is None and self._failures > 0)

    async def subscribe(self, channels: Iterable[bytes]) -> None:
        """Return once all of them are subscribed (or not wanted any more), however long that takes.

        A caller that is cancelled has to `unsubscribe`.
        """
        if waiting := self.begin(channels):
            await asyncio.wait(waiting)

    def begin(self, channels: Iterable[bytes], *, lost: bool = False) -> list[asyncio.Future[None]]:
        """Want channels; all are subscribed when these futures are done. With `lost` they are to be restored."""
        waiting = []
        for name in channels:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = _Channel()
            if not channel.is_wanted:
                self._want(name, channel)
                if lost:
                    self._lost.add(name)
            if channel.waiting is not None:
                waiting.append(channel.waiting)
        return waiting

    def _want(self, name: bytes, channel: _Channel) -> None:
        channel.is_wanted = True
        channel.waiting = self._loop.create_future()
        self._update(name, channel)  # the subscription may not have been cancelled yet
        self._change(name)

    def unsubscribe(self, name: bytes) -> None:
        """End the subscription of a channel."""
        channel = self._channels.get(name)
        if channel is None or not channel.is_wanted:
            return
        channel.is_wanted = False
        channel.wait_no_longer()  # a caller may wait for several channels
        self._lost.discard(name)
        self._change(name)

    def close(self) -> None:
        """Give the connection back; no callback is called any more."""
        super().close()
        for name in self._channels:
            self.unsubscribe(name)

    def _change(self, name: bytes) -> None:
        self._changed[name] = None
        self.schedule()

    def _update(self, name: bytes, channel: _Channel) -> None:
        if channel.is_wanted:
            if channel.is_confirmed:
                channel.wait_no_longer()
        elif not channel.is_asked and not channel.unconfirmed:
            del self._channels[name]

    # --- Connection ------------------------------------------------------------------------------

    async def pause(self) -> None:
        if self._failures:
            # Full jitter (M. Brooker, "Exponential Backoff And Jitter"): many instances lose Redis together.
            longest = min(LONGEST_PAUSE, 0.05 * 2 ** min(self._failures, 10))
            await asyncio.sleep(random.uniform(0.01, longest))  # noqa: S311

    def _ping(self) -> bool:
        if self._writer is not None:
            self._writer.write(pack("PING"))
        return True

    def on_failure(self, error: BaseException, lasted: float | None) -> None:
        self._failures = 1 if (lasted or 0.0) > PROVEN_SECONDS else self._failures + 1
        if self._failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, ...: an outage does not fill the log
            logger.warning("subscription lost", extra={"error": spelled(error), "failures": self._failures})
        self._channels = {name: channel for name, channel in self._channels.items() if channel.is_wanted}
        self._changed = dict.fromkeys(self._channels)
        lost = [name for name, channel in self._channels.items() if channel.waiting is None]
        for channel in self._channels.values():
            channel.is_asked, channel.unconfirmed = False, 0
        for name in lost:
            self._channels[name].waiting = self._loop.create_future()
        self._lost.update(lost)
        self.schedule()
        if lost:
            self._on_lost(lost)

    def outgoing(self) -> bytes:
        self._report_restored()  # the last channel that was missing may not be wanted any more
        subscribe, unsubscribe = [], []
        changed, self._changed = self._changed, {}
        for name in changed:
            if (channel := self._channels.get(name)) is None:
                continue
            if channel.is_wanted and not channel.is_asked:
                subscribe.append(name)
                channel.unconfirmed += 1
            elif channel.is_asked and not channel.is_wanted:
                unsubscribe.append(name)
            channel.is_asked = channel.is_wanted
            self._update(name, channel)
        commands = self._commands
        return self._pack(commands.unsubscribe_command, unsubscribe) + self._pack(
            commands.subscribe_command, subscribe
        )

    def _pack(self, command: bytes, channels: Sequence[bytes]) -> bytes:
        most = self._commands.subscribe_most
        parts = [channels[start : start + most] for start in range(0, len(channels), most)]
        return b"".join([pack(command, *part) for part in parts])

    # --- Reading ---------------------------------------------------------------------------------

    def on_replies(self, next_reply: Callable[[], Any]) -> None:
        messages: list[Message] = []
        for reply in iter(next_reply, False):
            if isinstance(reply, Exception):
                raise reply
            kind = reply[0]
            if kind in {b"message", b"smessage"}:
                messages.append((reply[1], reply[2]))
            elif (channel := self._channels.get(reply[1])) is not None:
                self._on_answer(kind, reply[1], channel)
        self._report_restored()
        if messages:
            self._on_messages(messages)

    def _on_answer(self, kind: bytes, name: bytes, channel: _Channel) -> None:
        if kind in {b"subscribe", b"ssubscribe"}:
            channel.unconfirmed = max(channel.unconfirmed - 1, 0)
            self._update(name, channel)
        elif kind == b"sunsubscribe" and channel.is_wanted and channel.is_confirmed:
            self._take_away(name, channel)

    def _take_away(self, name: bytes, channel: _Channel) -> None:
        """Another server has the slot of this channel now, and the topology is asked which.

        If the channel is still ours after `TAKEN_SECONDS`, the slot has come back, or the server refuses and this is
        repeated.
        """
        channel.is_asked = False
        channel.waiting = self._loop.create_future()
        self._lost.add(name)
        self._on_lost([name])
        self._loop.call_later(TAKEN_SECONDS, self._change, name)
        self._on_trouble()

    def _report_restored(self) -> None:
        if self._lost and all(self._channels[name].waiting is None for name in self._lost):
            restored, self._lost = self._lost, set()
            self._on_restored(restored)
