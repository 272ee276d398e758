"""A Channels consumer that needs no task of its own: the channel layer calls it, and so does the server if it can."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from realtime.connections.frame_outlet import EXTENSION, AsgiWriter, FrameWriter, HandingOver
from realtime.protocol.envelope import ErrorCode
from realtime.tasks.serial import SerialExecutor
from realtime.telemetry import metrics
from realtime.telemetry.logs import speak_for, speaking_for

logger = logging.getLogger(__name__)


class EventDrivenConsumer(SerialExecutor, AsyncJsonWebsocketConsumer):
    """Runs handlers one at a time, until the connection is over."""

    __slots__ = ("_handed_over", "base_send", "channel_layer", "channel_name", "scope")

    groups: Any = ()
    """Channels makes a list for each connection. Here groups are entered as rooms."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handed_over = False
        """The server calls `take` for each event; no task waits for the end of the connection."""

    def begin(self, writer: FrameWriter) -> None:
        """Get ready to write with `writer`."""
        raise NotImplementedError

    def charge(self, size: int) -> float:
        """Count one frame of the client, of whatever kind. Returns 0, or how many seconds it came too early.

        A server without a frame writer tells of messages only: then these are counted.
        """
        raise NotImplementedError

    def receive_frame(self, message: Mapping[str, Any]) -> Awaitable[None] | None:
        """Answer a frame of the client as far as nothing has to be waited for. Returns what is left, or None."""
        raise NotImplementedError

    async def websocket_receive(self, message: Any) -> None:
        if (rest := self.receive_frame(message)) is not None:
            await rest

    async def clean_up(self) -> None:
        """The connection is over. Called at least once, whatever ended it."""
        raise NotImplementedError

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, self.base_send = scope, send
        speak_for(self)
        try:
            await self._serve(receive)
        except (StopConsumer, OSError):
            pass  # an OSError says that the peer is gone
        finally:
            # Not in disconnect(): Channels skips that when a handler raised or the task was cancelled.
            if not self._handed_over:
                await self.clean_up()

    async def _serve(self, receive: Any) -> None:
        scope: Any = self.scope
        writer: HandingOver | None = (scope.get("extensions") or {}).get(EXTENSION)
        self.begin(writer or AsgiWriter(self.base_send))
        await self.dispatch(await receive())
        if writer is None:
            while True:
                await self.dispatch(await receive())
        kept: Any = {name: scope[name] for name in ("type", "path", "client", "principal")}
        self.scope = kept
        self._handed_over = True
        writer.hand_over(self)

    def take(self, message: Any, *, is_alone: bool) -> Awaitable[None] | None:
        """Handle an event: at once if it needs no waiting, neither for others nor for anything else.

        Returns what is left to be awaited in a task. `is_alone`: no earlier event is being handled.
        """
        if is_alone and not self.turn.locked() and message["type"] == "websocket.receive":
            rest = speaking_for(self, self._begin_frame, message)
            return None if rest is None else self._finish_frame(rest)
        return self._take_in_turn(message)

    def _begin_frame(self, message: Any) -> Awaitable[None] | None:
        try:
            return self.receive_frame(message)
        except OSError:
            raise
        except Exception as error:
            _report(message["type"], error)
            return None

    async def _finish_frame(self, rest: Awaitable[None]) -> None:
        speak_for(self)
        async with self.turn:
            await _run(rest, "websocket.receive")

    async def _take_in_turn(self, message: Any) -> None:
        speak_for(self)
        try:
            await self.dispatch(message)
        except StopConsumer:
            await self.clean_up()

    async def dispatch(self, message: Any) -> None:
        """Run the handler of one message. An exception in it is logged, and does not end the connection.

        (Channels' own version also visits a thread before every message to close old database connections.)
        """
        async with self.turn:
            await self.handle(message)

    async def handle(self, message: Any) -> None:
        """`dispatch`, for a caller that has the turn already."""
        handler = getattr(self, get_handler_name(message), None)
        if handler is None:
            logger.error("no handler for message", extra={"type": message["type"]})
            return
        await _run(handler(message), message["type"])


async def _run(work: Awaitable[None], kind: str) -> None:
    try:
        await work
    except (StopConsumer, OSError):
        raise
    except Exception as error:
        _report(kind, error)


def _report(kind: str, error: Exception) -> None:
    logger.error("handler failed", exc_info=error, extra={"type": kind})
    metrics.ERRORS.labels(ErrorCode.INTERNAL).inc()
