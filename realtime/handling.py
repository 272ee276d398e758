"""Bus handlers: what a bus message does before it is delivered, at the same time wherever order does not matter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from realtime import metrics
from realtime.bus import Delivery, InvalidMessage
from realtime.catalogue import BusContext, catalogue
from realtime.dead_letters import dead_letter
from realtime.incoming import Incoming
from realtime.logs import spelled
from realtime.payloads import Payload
from realtime.pipe import Pipes
from realtime.redis import key
from realtime.roomlog import MARKER_SECONDS
from realtime.rooms import thread_room, user_room

logger = logging.getLogger(__name__)

HANDLER_SECONDS = 30.0
"""A handler that takes longer has failed: it must not hold up the bus for ever."""

_CONCERNED = {"user_id": user_room, "thread_id": thread_room, "jti": "token:{}".format}
"""Fields of a payload that name what it is about."""


def concerns(payload: Payload) -> set[str]:
    """The user, thread and token that a message is about; those of users and threads by their rooms' names."""
    return {
        spell(value)
        for name, spell in _CONCERNED.items()
        if (value := getattr(payload, name, None)) is not None
    }


def is_refusal(error: BaseException) -> bool:
    """Whether Redis would refuse this command at any time, not because of the state that it is in."""
    code = str(error).partition(" ")[0]
    return type(error) is ResponseError and (not code.isupper() or code in {"ERR", "WRONGTYPE"})


class Handlers:
    """Runs the handlers of bus messages.

    Messages that concern the same user, thread or token, or have the same id, are handled in the order in which they
    came; so are those of one event that concern none of these. All others are handled at the same time.
    """

    def __init__(self) -> None:
        self._handlers = catalogue().bus_handlers
        self._last: dict[str, asyncio.Task[None]] = {}
        """Who comes next waits for these."""

    def concern(self, message: Incoming) -> bool:
        """Whether a message has handlers to run."""
        for delivery in message.deliveries:  # (a loop: for every message of the bus)
            if delivery.event in self._handlers:
                return not message.is_repeated
        return False

    async def run(self, pipes: Pipes, messages: Sequence[Incoming]) -> None:
        """Return when all have run. One that fails is kept as a dead letter.

        Raises `redis.RedisError`: then some have run, and the same messages again do no harm.
        """
        running = [
            self._start(pipes, message, delivery)
            for message in messages
            if not message.is_repeated
            for delivery in message.deliveries
            if delivery.event in self._handlers
        ]
        for result in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _start(self, pipes: Pipes, message: Incoming, delivery: Delivery) -> asyncio.Task[None]:
        names = concerns(delivery.payload) or {delivery.event}
        if delivery.id:
            names.add(f"id:{delivery.id}")
        earlier = {self._last[name] for name in names if name in self._last}
        task = asyncio.create_task(self._handle(pipes, message, delivery, earlier), name="bus handlers")
        for name in names:
            self._last[name] = task
        task.add_done_callback(lambda done: self._forget(names, done))
        return task

    def _forget(self, names: set[str], done: asyncio.Task[None]) -> None:
        for name in names:
            if self._last.get(name) is done:
                del self._last[name]

    async def _handle(
        self, pipes: Pipes, message: Incoming, delivery: Delivery, earlier: set[asyncio.Task[None]]
    ) -> None:
        if earlier:
            await asyncio.wait(earlier)
        context = BusContext(at=message.at, order=message.order)
        if delivery.id and await self._was_handled(pipes, delivery.id, context.order):
            if not delivery.targets:
                metrics.BUS_MESSAGES.labels("duplicate").inc()  # else its rooms tell
            return
        for handler in self._handlers[delivery.event]:
            try:
                async with asyncio.timeout(HANDLER_SECONDS):
                    await handler(delivery.payload, context)
            except Exception as error:
                if isinstance(error, RedisError) and not is_refusal(error):
                    raise
                logger.exception("bus handler failed", extra={"event": delivery.event})
                reason = InvalidMessage("handler_failed", spelled(error))
                await dead_letter(pipes, reason, message.source, message.raw)
        if delivery.id:
            await self._mark(pipes, delivery.id, context.order)

    @staticmethod
    async def _was_handled(pipes: Pipes, id: str, order: str) -> bool:
        """Whether another message of this id was handled."""
        marker = key("handled", id)
        known: Any = await pipes.to(marker).send("GET", marker)
        return known is not None and known != order.encode()

    @staticmethod
    async def _mark(pipes: Pipes, id: str, order: str) -> None:
        # Not before its handlers have run: a message that is repeated after a crash must find its work undone.
        marker = key("handled", id)
        await pipes.to(marker).send("SET", marker, order, "EX", MARKER_SECONDS)
