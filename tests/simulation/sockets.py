"""The servers' ends of WebSockets, and how quickly what is written to them is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from realtime.connections.frame_outlet import EXTENSION, Receiver
from realtime.protocol.close_codes import By
from tests.simulation.host import Host

if TYPE_CHECKING:
    from tests.simulation.clients import Client
    from tests.simulation.world import World

HIGH, LOW = 3000, 600
"""Bytes from which on a peer counts as behind, and down to which it has to read to be up again."""
BEHIND_SECONDS = 0.1
MOST_OPEN = 8
"""With so many frames of a connection not dealt with, no more are read from it (as the real protocol does)."""
UNSENT = 40_000
"""Bytes unsent beyond which a client is cut."""

Frame = dict[str, Any]


def frames_of(wire: bytes) -> list[bytes]:
    """The payloads of unmasked text frames (RFC 6455 §5.2)."""
    found, start = [], 0
    while start < len(wire):
        assert wire[start] == 0x81, wire[start]
        length, start = wire[start + 1], start + 2
        if length == 126:
            length, start = int.from_bytes(wire[start : start + 2], "big"), start + 2
        elif length == 127:
            length, start = int.from_bytes(wire[start : start + 8], "big"), start + 8
        found.append(wire[start : start + length])
        start += length
    return found


class ClientDisconnected(OSError):
    """The peer of a WebSocket is gone (uvicorn's exception of this name is an OSError as well)."""


class Socket:
    """The server's end of one WebSocket: ASGI's `receive` and `send`, and the frame writer (`frame_outlet`)."""

    numbers = 0

    def __init__(self, world: World, host: Host, client: Client, query: bytes) -> None:
        Socket.numbers += 1
        self.number = Socket.numbers
        self.world = world
        self.host = host
        self.client: Client | None = client
        self.namespace = client.namespace
        self.principal = client.principal
        self.began_at = world.redis.now
        """Redis' clock when the handshake began, or a little earlier."""
        self.connection_id = ""
        self.ready_at = float("inf")
        self.close_sent = self.disconnected = self.accepted = False
        self._behind_since: float | None = None
        self._unread: deque[tuple[int, Frame]] = deque()
        self._size = 0
        self._drained: list[asyncio.Future[None]] = []
        self._is_pumping = False
        self._inbox: deque[dict[str, Any]] = deque([{"type": "websocket.connect"}])
        self._waiting: asyncio.Future[None] | None = None
        self._receiver: Receiver | None = None
        self._open = 0
        self._tasks: set[Any] = set()
        self._ending: tuple[By, int, str] | None = None
        self._arrives_at = 0.0
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "path": f"/{self.namespace}/",
            "client": ("127.0.0.1", 1000 + self.number % 60000),
            "headers": [],
            "subprotocols": [],
            "query_string": query,
            "principal": self.principal,
            "extensions": {EXTENSION: self, "websocket.http.response": {}},
        }

    def __repr__(self) -> str:
        return f"socket {self.number} of {self.principal.user_id} at {self.host}"

    def start(self, application: Any) -> None:
        task = self.host.create_task(self._run(application))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, application: Any) -> None:
        with contextlib.suppress(ClientDisconnected):
            await application(self.scope, self.receive, self.send)
        if self._receiver is None:
            self._end(By.SERVER, 1000, "")

    # --- ASGI ------------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        while not self._inbox:
            self._waiting = self.host.create_future()
            await self._waiting
        return self._inbox.popleft()

    async def send(self, message: Any) -> None:
        match message["type"]:
            case "websocket.send":
                if self.close_sent or self.disconnected:
                    raise ClientDisconnected
                self._write([message["text"].encode()])
            case "websocket.accept":
                if self.disconnected:
                    raise ClientDisconnected
                self.accepted = True
            case "websocket.close":
                if self.disconnected:
                    raise ClientDisconnected
                self.close(message.get("code", 1000), message.get("reason") or "")
            case "websocket.http.response.start":
                self.close_sent = True
                self._end(By.SERVER, message["status"], "")

    # --- The extension `realtime.frames` -------------------------------------------------------------

    def write_frames(self, frames: bytes) -> None:
        if not self.accepted or self.close_sent or self.disconnected or self.host.is_dead:
            return
        if self._behind_since is not None and self.unsent > UNSENT:
            self.cut(4413)
        else:
            self._write(frames_of(frames))

    @property
    def unsent(self) -> int:
        if self.disconnected or self._behind_since is None:
            return 0
        return self._size if self.world.clock.now - self._behind_since >= BEHIND_SECONDS else 0

    @property
    def ending(self) -> tuple[By, int, str]:
        return self._ending or (By.LOST, 1006, "")

    async def drained(self) -> None:
        while self._behind_since is not None and not self.disconnected:
            future = self.host.create_future()
            self._drained.append(future)
            await future

    def hand_over(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._deal()

    def cut(self, code: int, reason: str = "") -> None:
        self.close(code, reason)

    def close(self, code: int, reason: str = "") -> None:
        """Write a close frame; the client answers, or does not for long."""
        if self.close_sent or self.disconnected:
            return
        self.close_sent = True
        self._ending = (By.SERVER, int(code), reason)
        self.world.checker.closing(self, int(code))
        self.world.clock.after(self.world.random.uniform(0.001, 2.0), self._end, By.SERVER, int(code), reason)

    # --- Out -------------------------------------------------------------------------------------

    def _write(self, payloads: list[bytes]) -> None:
        self.host.spend(self.world.write_seconds)
        for payload in payloads:
            frame = msgspec.json.decode(payload)
            self.world.note("write", self, frame)
            self.world.checker.written(self, frame)
            self._unread.append((len(payload), frame))
            self._size += len(payload)
        if self._size > HIGH and self._behind_since is None:
            self._behind_since = self.world.clock.now
        self._pump()

    def _pump(self) -> None:
        if not self._is_pumping and self._unread and self.client is not None:
            self._is_pumping = True
            self.world.clock.after(self.world.network.latency() + self.client.pause, self._read)

    def _read(self) -> None:
        """The client reads a little."""
        self._is_pumping = False
        left = self.client.appetite if self.client is not None else 0
        while self._unread and left > 0 and self.client is not None:
            size, frame = self._unread.popleft()
            self._size -= size
            left -= size
            self.client.on_frame(self, frame)
        if self._size <= LOW and self._behind_since is not None and not self.host.is_dead:
            self.host.call_soon(self._resume_writing)
        self._pump()

    def _resume_writing(self) -> None:
        if self._size <= HIGH or self.disconnected:
            self._behind_since = None
            for future in self._drained:
                if not future.done():
                    future.set_result(None)
            self._drained.clear()

    # --- In --------------------------------------------------------------------------------------

    def send_from_client(self, frame: Frame) -> None:
        self._arrives_at = max(self._arrives_at, self.world.clock.now + self.world.network.latency())
        self.world.clock.at(self._arrives_at, self._arrive, frame)

    def _arrive(self, frame: Frame) -> None:
        if not self.host.is_dead and not self.close_sent and not self.disconnected:
            self.host.call_soon(
                self._put, {"type": "websocket.receive", "text": msgspec.json.encode(frame).decode()}
            )

    def _put(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.receive" and self.disconnected:
            return
        self._inbox.append(message)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
        self._deal()

    def _deal(self) -> None:
        while self._receiver is not None and self._inbox and self._open < MOST_OPEN:
            self._open += 1
            task = self.host.create_task(self._deal_with(self._inbox.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deal_with(self, message: dict[str, Any]) -> None:
        assert self._receiver is not None
        try:
            if (rest := self._receiver.take(message, is_alone=self._open == 1)) is not None:
                await rest
        except ClientDisconnected:
            pass
        finally:
            self._open -= 1
            self._deal()

    # --- The end ---------------------------------------------------------------------------------

    def vanish(self, code: int = 1006) -> None:
        """The client is gone; the host notices in a while."""
        self.client = None
        self.world.clock.after(
            self.world.random.choice((0.001, 0.01, 0.5, 3.0)), self._end, By.LOST, code, ""
        )

    def _end(self, by: By, code: int, reason: str) -> None:
        """The connection is over, for the client at once, for the host when it looks."""
        client, self.client = self.client, None
        if client is not None:
            client.on_closed(self, code)
        if not self.host.is_dead and not self.disconnected:
            self.host.call_soon(self._disconnect, by, code, reason)

    def _disconnect(self, by: By, code: int, reason: str) -> None:
        if self.disconnected:
            return
        self.disconnected = True
        self._ending = self._ending or (by, code, reason)
        self.world.checker.gone(self)
        self._resume_writing()
        self._open = min(self._open, MOST_OPEN - 1)
        self._put({"type": "websocket.disconnect", "code": code, "reason": reason})

    def host_died(self) -> None:
        self.disconnected = True
        client, self.client = self.client, None
        self.world.checker.gone(self)
        if client is not None:
            client.on_closed(self, 1006)
