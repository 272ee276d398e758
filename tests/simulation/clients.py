"""People at browsers: they come, read more or less quickly, vanish, and come back for what they missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from realtime.connections.frame_outlet import EXTENSION, Receiver
from realtime.protocol.close_codes import By
from realtime.protocol.principal import Principal
from tests.simulation.clock import EPOCH, Clock
from tests.simulation.host import Host

if TYPE_CHECKING:
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


@dataclass
class Request:
    """A frame with an id, and what it asked for."""

    event: str
    data: dict[str, Any]


@dataclass(eq=False)
class Client:
    """One tab of one user. It keeps what it has seen of its rooms across connections, as the SDK does."""

    world: World
    random: Random
    name: str
    namespace: str
    user_id: str
    role: str
    groups: tuple[str, ...]
    threads: frozenset[str]
    """Of the token's claim."""
    wanted: set[str] = field(default_factory=set)
    """Threads that it wants to be in (sorted wherever it is iterated over)."""
    offsets: dict[str, str] = field(default_factory=dict)
    """What it has seen of each room."""
    joined: set[str] = field(default_factory=set)
    socket: Socket | None = None
    is_refused: bool = False
    """It was told to stay away."""
    pause: float = 0.0
    appetite: int = 1 << 30
    requests: dict[str, Request] = field(default_factory=dict)
    jti: str = ""
    _ids: int = 0
    _due: bool = False

    def __post_init__(self) -> None:
        self.clock: Clock = self.world.clock
        self.new_token()

    def __repr__(self) -> str:
        return self.name

    def new_token(self) -> None:
        self.jti = uuid4().hex

    @property
    def principal(self) -> Principal:
        return Principal(
            user_id=self.user_id,
            role=self.role,
            name=self.name,
            groups=self.groups,
            threads=self.threads,
            jti=self.jti,
            expires_at=EPOCH + 1e6,
        )

    # --- Connecting ------------------------------------------------------------------------------

    def connect(self) -> None:
        self._due = False
        if self.socket is not None or self.is_refused:
            return
        host = self.world.any_instance()
        if host is None:
            self.connect_later()
            return
        resumes = bool(self.offsets) and self.random.random() < 0.8
        self.joined.clear()
        self.requests.clear()
        self._resumes = resumes
        self.world.open(self, host, b"resume=1" if resumes else b"")

    def connect_later(self, least: float = 0.01) -> None:
        if not self._due and not self.is_refused:
            self._due = True
            self.clock.after(
                least + self.random.choice((0.0, 0.05, 0.5, 2.0)) * self.random.random(), self.connect
            )

    def on_closed(self, socket: Socket, code: int) -> None:
        if self.socket is not socket:
            return
        self.socket = None
        self.joined.clear()
        self.requests.clear()
        if code in {4403, 401, 403}:
            # The operator wanted this connection gone; the person logs in again, with a fresh token.
            self.new_token()
            self.connect_later(1.0)
        else:
            self.connect_later(0.5 if code == 503 else 0.01)

    def vanish(self) -> None:
        if self.socket is not None:
            socket, self.socket = self.socket, None
            socket.vanish()
            self.joined.clear()
            self.requests.clear()
            self.connect_later()

    # --- Asking ----------------------------------------------------------------------------------

    def ask(self, event: str, data: dict[str, Any]) -> None:
        if self.socket is None or self.socket.close_sent:
            return
        self._ids += 1
        id = f"{self.name}-{self._ids}"
        self.requests[id] = Request(event, data)
        self.world.note("ask", self.socket, id, event, data)
        self.world.checker.asked(self.socket, id, event, data)
        self.socket.send_from_client({"event": event, "data": data, "id": id})

    def tell(self, event: str, data: dict[str, Any]) -> None:
        if self.socket is not None:
            self.socket.send_from_client({"event": event, "data": data})

    def join(self, thread: str) -> None:
        self.wanted.add(thread)
        self.ask("join:thread", {"thread_id": thread})

    def rejoin(self, thread: str) -> None:
        if since := self.offsets.get(f"thread:{thread}"):
            self.wanted.add(thread)
            self.ask("join:thread", {"thread_id": thread, "since": since})

    def leave(self, thread: str) -> None:
        self.wanted.discard(thread)
        self.ask("leave:thread", {"thread_id": thread})

    def come_back(self, thread: str) -> None:
        """Leave and join again at once."""
        self.leave(thread)
        self.join(thread)

    def resume(self) -> None:
        rooms = {
            room: since
            for room, since in sorted(self.offsets.items())
            if not room.startswith("thread:") or room[7:] in self.wanted
        }
        if rooms:
            self.ask("resume", {"rooms": rooms})

    def _asks_for(self, thread: str) -> bool:
        """Whether it waits for an answer to a join."""
        return any(
            request.event == "join:thread" and request.data["thread_id"] == thread
            for request in self.requests.values()
        )

    def enter_wanted(self) -> None:
        """Join what it wants to be in and is not."""
        resuming = any(request.event == "resume" for request in self.requests.values())
        for thread in sorted(self.wanted):
            if f"thread:{thread}" not in self.joined and not self._asks_for(thread) and not resuming:
                since = self.offsets.get(f"thread:{thread}")
                self.ask("join:thread", {"thread_id": thread, **({"since": since} if since else {})})

    # --- Reading ---------------------------------------------------------------------------------

    def on_frame(self, socket: Socket, frame: Frame) -> None:
        if socket is not self.socket:
            return
        match frame["event"]:
            case "connection:ready":
                self._on_ready(frame["data"])
            case "ack" | "error" if "id" in frame:
                self._on_answer(frame)
            case "room:left":
                room = frame["data"]["room"]
                self.joined.discard(room)
                self.wanted.discard(room[7:])
            case "room:gap":
                pass  # the next frame says where it is
        if "offset" in frame and "room" in frame:
            self.offsets[frame["room"]] = frame["offset"]

    def _on_ready(self, data: dict[str, Any]) -> None:
        self.joined |= set(data["rooms"])
        if self._resumes:
            self.resume()
        else:
            for room, offset in data["rooms"].items():
                self.offsets[room] = offset
        self.enter_wanted()

    def _on_answer(self, frame: Frame) -> None:
        request = self.requests.pop(frame["id"], None)
        if request is None:
            return
        if frame["event"] == "error":
            self._on_error(request, frame["data"]["code"])
        elif request.event == "join:thread":
            room = frame["data"]["room"]
            self.joined.add(room)
            self.offsets[room] = frame["data"]["offset"]
        elif request.event == "leave:thread":
            self.joined.discard(f"thread:{request.data['thread_id']}")
        elif request.event == "resume":
            for room, answer in frame["data"]["rooms"].items():
                if "error" in answer:
                    self.joined.discard(room)
                    if answer["error"] == "forbidden":
                        self.wanted.discard(room[7:])
                else:
                    self.joined.add(room)
                    self.offsets[room] = answer["offset"]

    def _on_error(self, request: Request, code: str) -> None:
        if request.event == "join:thread":
            thread = request.data["thread_id"]
            self.joined.discard(f"thread:{thread}")
            if code != "forbidden":
                self.clock.after(0.3 + self.random.random(), self.enter_wanted)
            elif not self._asks_for(thread):
                self.wanted.discard(thread)
        elif request.event == "leave:thread":
            self.clock.after(0.3 + self.random.random(), self.leave, request.data["thread_id"])
        elif request.event == "resume":
            self.clock.after(0.3 + self.random.random(), self.resume)
