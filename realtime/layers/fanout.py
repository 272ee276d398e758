"""Fan-out: handing what a group receives to its members in this instance, fairly and without waiting for anything.

A small group is served at once. A large one is served in slices of `SLICE` members, one slice per turn of the event
loop, and large groups take turns, so that none delays another, or anything else that the process has to do, by more
than one slice. Nothing here awaits and nothing is cancelled; each listener keeps its own position
(`realtime.layers.listener`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter, time_ns
from typing import Any

from realtime.layers.group import Compare, Group, Item
from realtime.layers.listener import Listener, State
from realtime.layers.outlets import Ephemeral, PublicationBatch
from realtime.telemetry import metrics, tracing
from realtime.telemetry.metrics import tally

logger = logging.getLogger(__name__)

SLICE = 200
"""Members served in one turn of the event loop."""
WAITING_BYTES = 16 * 1024 * 1024
"""Size of what may wait for its fan-out in an instance. Beyond it, listeners read publications from the history."""


class FanOut:
    """Serves the groups of an event loop."""

    def __init__(self) -> None:
        self._turns: deque[Group] = deque()
        """Groups with a fan-out under way; each gets one slice in turn."""
        self._is_scheduled = False

    def serve(self, group: Group) -> None:
        """Hand out what waits in a group: at once if the group is small, else in the turns to come."""
        if group.fan_out is None and len(group) <= SLICE:
            for _ in _fan_out(group):
                pass
            return
        if group.fan_out is None and group.waiting:
            group.fan_out = _fan_out(group)
            self._turns.append(group)
            self._schedule()
        if sum(busy.waiting_bytes for busy in self._turns) > WAITING_BYTES:
            group.give_up_waiting()

    def stop(self) -> None:
        """Give up what is under way in rooms: they are compared with their histories later."""
        for group in [group for group in self._turns if group.room is not None]:
            self._turns.remove(group)
            group.fan_out = None
            group.clear()

    def _schedule(self) -> None:
        if self._turns and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._turns:
            group = self._turns.popleft()
            assert group.fan_out is not None  # noqa: S101
            if next(group.fan_out, False):
                self._turns.append(group)
            else:
                group.fan_out = None
        self._schedule()


def _fan_out(group: Group) -> Iterator[bool]:
    """Hand out all that waits in a group, a slice of its members at each step.

    An item goes to the members that the group has when the item's turn comes. An exception ends the item, not the
    fan-out of the room.
    """
    while group.waiting:
        item = group.next_item()
        try:
            receivers = group.receivers(item)
            if isinstance(item, PublicationBatch) and len(receivers) <= SLICE and not tracing.tracer:
                _publish(item, receivers)  # nearly always: there is nothing to measure
                tally.fan_out(item.publications, len(receivers))
                yield True
                continue
            served, started, begun = 0, perf_counter(), time_ns() if tracing.tracer else 0
            for start in range(0, len(receivers), SLICE):
                served += _serve(item, receivers[start : start + SLICE])
                yield True
            if isinstance(item, PublicationBatch) and len(receivers) > SLICE:
                metrics.FANOUT_SECONDS.observe(perf_counter() - started)
            _count(item, served, begun)
        except Exception:
            logger.exception("fan-out failed", extra={"room": group.room})
            if isinstance(item, PublicationBatch):
                group.put(Compare(group.tail))  # listeners that were not served yet find out what they lack


def _serve(item: Item, receivers: Sequence[Any]) -> int:
    """Hand an item to some receivers; returns how many of them took it."""
    if isinstance(item, PublicationBatch):
        _publish(item, receivers)
        return len(receivers)
    served = 0
    for receiver in receivers:
        try:
            served += item.give(receiver)
        except Exception:
            _on_failure(receiver)
    return served


def _publish(batch: PublicationBatch, listeners: Sequence[Listener]) -> None:
    """The busiest loop of the project: nearly every listener stands right before the batch and gets all of it."""
    wire, previous, last, live = batch.wire(), batch.previous, batch.last, State.LIVE
    is_for_all = not batch.excluded
    for listener in listeners:
        try:
            if listener.position == previous and listener.state is live and is_for_all:
                listener.write(wire)
                listener.position = last
            else:
                listener.take(batch)
        except Exception:
            _on_failure(listener)


def _on_failure(receiver: object) -> None:
    outlet = receiver.outlet if isinstance(receiver, Listener) else receiver
    logger.exception("delivery failed", extra={"connection_id": getattr(outlet, "connection_id", "")})  # noqa: LOG004


def _count(item: Item, served: int, begun: int) -> None:
    if isinstance(item, PublicationBatch):
        if begun:
            tracing.fanned_out(item.publications, served, begun)
        tally.fan_out(item.publications, served)
    elif isinstance(item, Ephemeral):
        tally.sent("ephemeral", item.frame, served)
