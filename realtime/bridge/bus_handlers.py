"""Bus handlers: what a bus message does before it is delivered. They run concurrently where order does not matter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from weakref import WeakValueDictionary

from redis.exceptions import RedisError

from realtime.bridge.bus_entry import BusEntry
from realtime.bridge.dead_letters import dead_letter
from realtime.layers.history import MARKER_SECONDS
from realtime.protocol.bus_message import BusMessage, InvalidMessage, subjects
from realtime.protocol.catalogue import BusContext, BusHandler, catalogue
from realtime.protocol.payloads import Payload
from realtime.redis.client import key
from realtime.redis.connection import is_refusal
from realtime.redis.pipelining import Pipes
from realtime.telemetry import metrics
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

HANDLER_SECONDS = 30.0
"""A handler that takes longer has failed: it must not hold up the bus for ever."""


async def _failure(
    handler: BusHandler, payload: Payload, context: BusContext, until: float
) -> BaseException | None:
    """What a handler raised by this time of the loop, even if that is no `Exception`; None if it succeeded."""

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

    Messages about the same user, thread or token, or with the same id, are handled in the order in which they came; so
    are messages of one event that are about none of these. All other messages are handled at the same time.
    """

    def __init__(self) -> None:
        self._handlers = catalogue().bus_handlers
        self._last: WeakValueDictionary[str, asyncio.Task[None]] = WeakValueDictionary()
        """The latest task for each subject, id or event: the next one waits for it."""

    def apply_to(self, entry: BusEntry) -> bool:
        """Whether an entry has handlers to run."""
        for message in entry.messages:  # (a loop: this runs for every message of the bus)
            if message.event in self._handlers:
                return not entry.is_repeated
        return False

    async def run(self, pipes: Pipes, entries: Sequence[BusEntry]) -> None:
        """Return when all handlers have run, and the entries that are not valid are kept as dead letters.

        An entry whose handler fails becomes a dead letter, too. Raises `redis.RedisError` or `OSError` when Redis is
        away: then some handlers have run, and running all of them again does no harm.
        """
        new = [entry for entry in entries if not entry.is_repeated]
        letters = [dead_letter(pipes, entry, entry.error) for entry in new if entry.error]
        running = [
            self._start(pipes, entry, message)
            for entry in new
            for message in entry.messages
            if message.event in self._handlers
        ]
        for result in await asyncio.gather(*letters, *running, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _start(self, pipes: Pipes, entry: BusEntry, message: BusMessage) -> asyncio.Task[None]:
        names = subjects(message.payload) or {message.event}
        if message.id:
            names.add(f"id:{message.id}")
        earlier = {self._last[name] for name in names if name in self._last}
        task = asyncio.create_task(self._handle(pipes, entry, message, earlier), name="bus handlers")
        self._last.update(dict.fromkeys(names, task))
        return task

    async def _handle(
        self, pipes: Pipes, entry: BusEntry, message: BusMessage, earlier: set[asyncio.Task[None]]
    ) -> None:
        if earlier:
            await asyncio.wait(earlier)
        marker = key("handled", message.id or "")
        if message.id and await pipes.to(marker).send("GET", marker) not in {None, entry.order.encode()}:
            if not message.targets:
                metrics.BUS_MESSAGES.labels("duplicate").inc()  # a message with rooms is counted by its batch
            return
        context = BusContext(at=entry.at, order=entry.order)
        for handler in self._handlers[message.event]:
            error = await self._run_one(pipes, handler, message.payload, context)
            if error is not None:
                logger.error("bus handler failed", exc_info=error, extra={"event": message.event})
                await dead_letter(pipes, entry, InvalidMessage("handler_failed", spelled(error)))
        if message.id:
            # Not before its handlers have run: after a crash the message is repeated, and its work must be done then.
            await pipes.to(marker).send("SET", marker, entry.order, "EX", MARKER_SECONDS)

    @staticmethod
    async def _run_one(
        pipes: Pipes, handler: BusHandler, payload: Payload, context: BusContext
    ) -> BaseException | None:
        """Why a handler failed, or None. Raises `redis.RedisError` or `OSError` when the handler is not to blame."""
        loop = asyncio.get_running_loop()
        until = loop.time() + HANDLER_SECONDS
        error = await _failure(handler, payload, context, until)
        if isinstance(error, RedisError | OSError) and not is_refusal(error):  # TimeoutError is an OSError
            if handler in catalogue().orders:
                raise error  # an order is not lost to an outage
            await pipes.answer()  # raises if the bridge's own Redis is away
            if loop.time() < until:
                error = await _failure(handler, payload, context, until)
        return error
