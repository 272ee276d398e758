"""One connection: its frames, the answers that are expected on it, and the tasks that end with it."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from .errors import CallFailed
from .event import Event
from .limits import Limits, Pace, positive

Answer = dict[str, Any] | CallFailed
Take = Callable[[Answer], None]
Connect = Callable[..., Awaitable[ClientConnection]]

CLOSE_SECONDS = 1.0
"""A server that does not answer a close frame is not waited for any longer."""

SHORTEST_BEAT = 0.1
"""Seconds between heartbeats at least, whatever the server asks for."""

logger = logging.getLogger(__name__)
quiet = logging.getLogger(f"{__name__}.websocket")
"""What `websockets` logs: at the level DEBUG it would write the token, in a header and in a frame."""
quiet.setLevel(logging.INFO)


def frame(event: str, data: Mapping[str, Any], **more: Any) -> str:
    """A frame, as JSON."""
    return json.dumps({"event": event, "data": data, **more})


class Connection:
    """A WebSocket whose frames are written in order, by one task."""

    def __init__(self, websocket: ClientConnection, scrub: Callable[[str], str]) -> None:
        self._websocket = websocket
        self._scrub = scrub
        self._outbox: asyncio.Queue[tuple[str, int | None]] = asyncio.Queue()
        """Frames, and the id of each for which an answer is expected."""
        self._expected: dict[int, Take] = {}
        """By the id of its frame, what is to be done with each answer."""
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._limits = Limits()
        self._pace: Pace | None = None
        self.is_closed = False

    @classmethod
    async def open(cls, connect: Connect, url: str, token: str, scrub: Callable[[str], str]) -> Self:
        """A connection to `url`; `scrub` takes tokens out of a text. Raises what `connect` raises."""
        websocket = await connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"},
            close_timeout=CLOSE_SECONDS,
            compression=None,
            logger=quiet,
            max_size=None,  # the server decides: a `presence:state` is as large as its group
            open_timeout=None,
        )
        connection = cls(websocket, scrub)
        connection.spawn(connection._write())
        return connection

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that ends with this connection."""
        task = asyncio.create_task(work, name="client: connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Writing ---------------------------------------------------------------------------------

    def keep_to(self, limits: Limits) -> None:
        """Write no larger frames, and not more of them in a time, than the server allows."""
        self._limits, self._pace = limits, Pace(limits)

    def put_event(self, event: str, data: Mapping[str, Any]) -> None:
        """Have an event written after those before it. Raises `CallFailed` if it is too large."""
        text = frame(event, data)
        if failure := self._too_large(event, text):
            raise failure
        self._put(text)

    def ask(self, event: str, data: Mapping[str, Any], take: Take) -> None:
        """Have a frame with an id written. `take` gets the answer before anything that comes after it."""
        frame_id = next(self._ids)
        text = frame(event, data, id=frame_id)
        if self.is_closed:
            take(_lost())
        elif failure := self._too_large(event, text):
            take(failure)
        else:
            self._expected[frame_id] = take
            self._put(text, frame_id)

    def withdraw(self, take: Take) -> None:
        """Expect no answer any more. A frame that still waits for its turn is not written."""
        self._expected = {frame_id: each for frame_id, each in self._expected.items() if each is not take}

    def _put(self, text: str, frame_id: int | None = None) -> None:
        if not self.is_closed:
            self._outbox.put_nowait((text, frame_id))

    def _too_large(self, event: str, text: str) -> CallFailed | None:
        """Why a frame, which is ASCII, cannot be sent: the server would close the connection for it (1009)."""
        most = self._limits.frame_bytes
        if not most or len(text) <= most:
            return None
        failure = (
            f"{event} was not sent: its frame has {len(text)} bytes, and the server takes at most {most}"
        )
        return CallFailed("too_large", failure)

    async def written(self) -> None:
        """Return once everything that was put is on its way, or the connection is closed."""
        await self._outbox.join()

    async def beat(self, interval: float) -> None:
        """Send heartbeats for as long as the connection lasts, `interval` seconds apart; 0: none."""
        if not interval:
            return
        interval = max(interval, SHORTEST_BEAT)
        await asyncio.sleep(interval * random.uniform(0.5, 1))  # noqa: S311  (not all clients at the same time)
        while True:
            self.put_event("heartbeat", {})
            await asyncio.sleep(interval)

    async def _write(self) -> None:
        try:
            while True:
                text, frame_id = await self._outbox.get()
                try:
                    if self._is_due(frame_id) and self._pace is not None:
                        await self._pace.turn()
                    if self._is_due(frame_id):
                        await self._websocket.send(text)
                finally:
                    self._outbox.task_done()
        except ConnectionClosed:
            pass  # `receive` raises it, too
        finally:
            self._close_outbox()

    def _is_due(self, frame_id: int | None) -> bool:
        """Whether a frame is still to be written: it has no caller who could have given up, or its caller waits."""
        return frame_id is None or frame_id in self._expected

    # --- Reading ---------------------------------------------------------------------------------

    async def receive(self) -> Event | None:
        """The next event; None for an answer, which goes to its `take`, and for what is no frame.

        Raises `ConnectionClosed`, and `LookupError`, `TypeError`, `ValueError` or `AttributeError` when an answer is
        not what its `take` knows.
        """
        text = await self._websocket.recv()
        if (received := _parsed(text)) is None:
            logger.warning("expected a frame, and the server sent something else of length %d", len(text))
            return None
        name, data = received["event"], received.get("data") or {}
        if name == "error":
            data = data | {key: self._scrub(str(data.get(key))) for key in ("code", "message")}
        if name in {"ack", "error"} and "id" in received:
            self._answer(received["id"], data if name == "ack" else _failure(data))
            return None
        return Event(name, data, received.get("room"), received.get("offset"))

    def _answer(self, frame_id: Any, answer: Answer) -> None:
        if take := self._expected.pop(frame_id, None):
            take(answer)

    # --- The end ---------------------------------------------------------------------------------

    def abort(self) -> None:
        """Drop the connection without a close frame. What is sent from here on waits for the next one."""
        self._close_outbox()
        self._websocket.transport.abort()

    async def close(self) -> None:
        """Close the connection normally, and end its tasks."""
        self._close_outbox()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        try:
            await self._websocket.close()
        finally:
            self.abort()  # a caller that was cancelled may have cut the close short
            await asyncio.gather(self._websocket.wait_closed(), *tasks, return_exceptions=True)

    def _close_outbox(self) -> None:
        """Nothing is written any more, and no answer comes."""
        self.is_closed = True
        while not self._outbox.empty():
            self._outbox.get_nowait()
            self._outbox.task_done()
        for frame_id in list(self._expected):
            self._answer(frame_id, _lost())


def _lost() -> CallFailed:
    return CallFailed("closed", "the connection was lost")


def _failure(error: Mapping[str, Any]) -> CallFailed:
    return CallFailed(error["code"], error["message"], positive(error.get("retry_after")) or None)


def _parsed(text: str | bytes) -> dict[str, Any] | None:
    """A frame of the server; None: it is none."""
    try:
        found = json.loads(text)
        is_frame = isinstance(found["event"], str) and isinstance(found.get("data") or {}, dict)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return found if is_frame else None
