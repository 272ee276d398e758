"""Bus handlers: what a bus message does before it is delivered, at the same time wherever order does not matter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from weakref import WeakValueDictionary

from redis.exceptions import RedisError, ResponseError

from realtime.bridge.bus_entry import BusEntry
from realtime.bridge.dead_letters import dead_letter
from realtime.layers.history import MARKER_SECONDS
from realtime.protocol.bus_message import BusMessage, InvalidMessage
from realtime.protocol.catalogue import BUILT_IN, BusContext, BusHandler, catalogue
from realtime.protocol.payloads import Payload
from realtime.protocol.rooms import thread_room, user_room
from realtime.redis.client import key
from realtime.redis.pipelining import Pipes
from realtime.telemetry import metrics
from realtime.telemetry.logs import spelled

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


async def _failure(
    handler: BusHandler, payload: Payload, context: BusContext, until: float
) -> BaseException | None:
    """What a handler raised, whatever that is, by this time of the loop; None if it succeeded."""

    async def run() -> BaseException | None:
        try:
            await handler(payload, context)
        except BaseException as error:
            return error  # raised by a task, SystemExit and KeyboardInterrupt would end the loop
        return None

    # In a task of its own, which may be cancelled without us, or refuse to be.
    running = asyncio.create_task(run(), name="bus handler")
    try:
        await asyncio.wait([running], timeout=until - asyncio.get_running_loop().time())
        if running.cancelled():
            return asyncio.CancelledError("it has cancelled itself")
        if running.done():
            return running.result()
        return TimeoutError(f"it has not ended within {HANDLER_SECONDS:g} s")
    finally:
        running.cancel()


class Handlers:
    """Runs the handlers of bus messages.

    Messages that concern the same user, thread or token, or have the same id, are handled in the order in which they
    came; so are those of one event that concern none of these. All others are handled at the same time.
    """

    def __init__(self) -> None:
        self._handlers = catalogue().bus_handlers
        self._last: WeakValueDictionary[str, asyncio.Task[None]] = WeakValueDictionary()
        """Who comes next waits for these."""

    def concern(self, message: BusEntry) -> bool:
        """Whether a message has handlers to run."""
        for delivery in message.deliveries:  # (a loop: for every message of the bus)
            if delivery.event in self._handlers:
                return not message.is_repeated
        return False

    async def run(self, pipes: Pipes, messages: Sequence[BusEntry]) -> None:
        """Return when all have run, and when what is not valid is kept as a dead letter, as is a handler that fails.

        Raises `redis.RedisError` or `OSError` when Redis is away: then some have run, and the same messages again do no
        harm.
        """
        new = [message for message in messages if not message.is_repeated]
        letters = [dead_letter(pipes, message, message.error) for message in new if message.error]
        running = [
            self._start(pipes, message, delivery)
            for message in new
            for delivery in message.deliveries
            if delivery.event in self._handlers
        ]
        for result in await asyncio.gather(*letters, *running, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _start(self, pipes: Pipes, message: BusEntry, delivery: BusMessage) -> asyncio.Task[None]:
        names = concerns(delivery.payload) or {delivery.event}
        if delivery.id:
            names.add(f"id:{delivery.id}")
        earlier = {self._last[name] for name in names if name in self._last}
        task = asyncio.create_task(self._handle(pipes, message, delivery, earlier), name="bus handlers")
        self._last.update(dict.fromkeys(names, task))
        return task

    async def _handle(
        self, pipes: Pipes, message: BusEntry, delivery: BusMessage, earlier: set[asyncio.Task[None]]
    ) -> None:
        if earlier:
            await asyncio.wait(earlier)
        marker = key("handled", delivery.id or "")
        if delivery.id and await pipes.to(marker).send("GET", marker) not in {None, message.order.encode()}:
            if not delivery.targets:
                metrics.BUS_MESSAGES.labels("duplicate").inc()  # else its rooms tell
            return
        context = BusContext(at=message.at, order=message.order)
        for handler in self._handlers[delivery.event]:
            error = await self._run_one(pipes, handler, delivery.payload, context)
            if error is not None:
                logger.error("bus handler failed", exc_info=error, extra={"event": delivery.event})
                await dead_letter(pipes, message, InvalidMessage("handler_failed", spelled(error)))
        if delivery.id:
            # Not before its handlers have run: a message that is repeated after a crash must find its work undone.
            await pipes.to(marker).send("SET", marker, message.order, "EX", MARKER_SECONDS)

    @staticmethod
    async def _run_one(
        pipes: Pipes, handler: BusHandler, payload: Payload, context: BusContext
    ) -> BaseException | None:
        """Why a handler failed, or None. Raises `redis.RedisError` or `OSError` when it is not to blame."""
        loop = asyncio.get_running_loop()
        until = loop.time() + HANDLER_SECONDS
        error = await _failure(handler, payload, context, until)
        if isinstance(error, RedisError | OSError) and not is_refusal(error):  # TimeoutError is an OSError
            if handler.__module__ in BUILT_IN:
                raise error  # an order is not lost to an outage
            await pipes.answer()  # else it is our Redis that is away
            if loop.time() < until:
                error = await _failure(handler, payload, context, until)
        return error
