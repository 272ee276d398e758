"""A listener: one connection in one room, with the position up to which it has the room's publications.

Everything that delivery promises follows from one rule, which is kept here: a listener takes a publication only if it
is above its position and follows it directly, and the position moves only with what was written to the client. To hand
a publication out twice is therefore harmless, and so is an interruption anywhere: a listener that lacks something sees
that by the next publication, or when its room is compared with its history, and catches up.

Catching up is one loop, whatever made it necessary (a join, a reconnect, a hole in the live tail): read the room's
history above the position, write, wait for the client, until the position has reached the tail.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from realtime.layers.outlets import Ephemeral, Outlet, PublicationBatch
from realtime.protocol.publication import Unrecoverable
from realtime.telemetry import metrics
from realtime.telemetry.metrics import tally

if TYPE_CHECKING:
    from realtime.layers.group import Group

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """What a listener does with publications."""

    PAUSED = enum.auto()
    """It is in the room and gets nothing: its client does not know yet that it is in."""
    CATCHING_UP = enum.auto()
    """It reads the history."""
    LIVE = enum.auto()
    """It gets publications as they come."""
    CLOSED = enum.auto()
    """It never gets anything again."""


class Listener:
    """A connection in a room. It starts paused, at the room's end."""

    __slots__ = (
        "_task",
        "entered_at",
        "group",
        "on_replay",
        "outlet",
        "position",
        "state",
        "write",
    )

    def __init__(self, group: Group, outlet: Outlet) -> None:
        self.group = group
        self.outlet = outlet
        self.write = outlet.write
        self.position = 0
        """The client has everything up to here, beginning where it entered."""
        self.entered_at = 0.0
        """Seconds of Redis' clock."""
        self.on_replay: Callable[[int], None] | None = None
        """Called with the bytes of each part of a replay that the client asked for, until the listener is live."""
        self.state = State.PAUSED
        self._task: asyncio.Task[None] | None = None

    def place(self, position: int) -> None:
        """Say where the client stands, before the listener starts."""
        if self.state is State.PAUSED:
            self.position = position

    def start(self) -> None:
        """Deliver from here on: first what the history has above the position, then the live tail."""
        if self.state is State.PAUSED:
            if self.position >= self.group.tail:
                self._go_live()
            else:
                self.catch_up()

    def pause(self) -> None:
        """Deliver nothing until `start`."""
        self._stop(State.PAUSED)

    def close(self) -> None:
        """Deliver nothing any more. Takes effect at once, also for a fan-out that is under way."""
        self._stop(State.CLOSED)

    def _stop(self, state: State) -> None:
        if self.state is not State.CLOSED:
            self.state = state
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def take(self, batch: PublicationBatch) -> None:
        """Write the publications of a batch that this client lacks, or catch up when there is a hole before them."""
        if self.state is not State.LIVE or (new := batch.above(self.position)) is None:
            return
        if new.previous != self.position:
            self.catch_up()
        else:
            self._write(new)

    def emit(self, ephemeral: Ephemeral) -> bool:
        """Write an event that is stored nowhere, unless the client sent it, reads too slowly, or is not in yet."""
        is_in = self.state is State.LIVE or self.state is State.CATCHING_UP
        if not is_in or self.outlet.connection_id == ephemeral.sender:
            return False
        if self.outlet.is_behind:
            metrics.EPHEMERAL_DROPPED.inc()
            return False
        self.write(ephemeral.wire)
        return True

    def compare(self, end: int) -> None:
        """The room's history ends at `end`: catch up unless this is where the client stands."""
        if self.state is State.LIVE and self.position != end:
            self.catch_up()

    def _write(self, batch: PublicationBatch) -> None:
        if frames := batch.wire_for(self.outlet.connection_id):
            self.write(frames)
        self.position = batch.last

    # --- Catching up -----------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Read the history until there is nothing in it that this client lacks; then go live."""
        self.state = State.CATCHING_UP
        self._task = asyncio.create_task(self._catch_up(), name="catch up")

    async def _catch_up(self) -> None:
        while self.state is State.CATCHING_UP:
            if not await self._step():
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
            # No await between this comparison and going live: the listener gets what the group receives from here on.
            elif self.position >= self.group.tail and self.state is State.CATCHING_UP:
                self._task = None
                self._go_live()

    def _go_live(self) -> None:
        self.state = State.LIVE
        self.on_replay = None

    async def _step(self) -> bool:
        """Read and write once. False: it failed, and is to be tried again."""
        try:
            await self._read_and_write()
        except (RedisError, OSError):
            return False
        except Exception:
            logger.exception("delivery failed", extra={"connection_id": self.outlet.connection_id})
            self.outlet.fail()  # the client comes back, and resumes where it stands
            return False
        return True

    async def _read_and_write(self) -> None:
        found: PublicationBatch | Unrecoverable | None
        try:
            found = await self.group.read(self.position)
        except Unrecoverable as lost:
            found = lost
        if self.state is not State.CATCHING_UP:
            return
        if isinstance(found, Unrecoverable):
            self._lose(found.end)
        elif found is not None:
            await self._replay(found)

    async def _replay(self, batch: PublicationBatch) -> None:
        """Write as fast as the client reads, so that a replay never counts as unsent."""
        self._write(batch)
        for publication in batch.publications:
            tally.sent("replay", publication.frame)
        if self.on_replay is not None:
            self.on_replay(sum(len(publication.frame) for publication in batch.publications))
        await self.outlet.drained()

    def _lose(self, end: int) -> None:
        self.position = end
        metrics.GAPS.labels("lost").inc()
        self.outlet.gap(self.group.room or "", "lost")
