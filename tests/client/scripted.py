"""A server that follows a script, and what reads a client of it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from realtime.client import Client, Event
from tests.e2e.harness import PATIENCE, eventually

ROOM = "thread:42"
Answer = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]] | None


@dataclass
class Refusal:
    """A handshake that ends with an HTTP status."""

    status: int
    headers: dict[str, str] | list[tuple[str, str]] = field(default_factory=dict)
    body: str = '{"error": {"code": "some_code", "message": "some words"}}'


@dataclass
class Visit:
    """A connection, seen from the server."""

    websocket: ServerConnection
    sent: list[dict[str, Any]] = field(default_factory=list)
    """What the client sent."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends a `hang`."""

    @property
    def path(self) -> str:
        assert self.websocket.request is not None
        return self.websocket.request.path

    @property
    def token(self) -> str:
        assert self.websocket.request is not None
        return self.websocket.request.headers["Authorization"].removeprefix("Bearer ")

    def events(self, name: str) -> list[dict[str, Any]]:
        return [frame.get("data", {}) for frame in self.sent if frame["event"] == name]

    async def answer(self, event: str, data: dict[str, Any]) -> None:
        """Acknowledge the last frame of that event, which its script did not answer."""
        frame = await eventually(lambda: [frame for frame in self.sent if frame["event"] == event])
        await self.say("ack", data, id=frame[-1]["id"])

    async def say(self, event: str, data: dict[str, Any], **more: Any) -> None:
        await self.websocket.send(json.dumps({"event": event, "data": data, **more}))

    async def message(self, offset: str, room: str = ROOM) -> None:
        """A message in a room, named as its offset."""
        await self.say("thread:message", {"message_id": offset}, room=room, offset=offset)

    async def fail(self, code: int, reason: str = "") -> None:
        await self.websocket.close(code, reason)

    def drop(self) -> None:
        self.websocket.transport.abort()

    async def hang(self) -> None:
        going = asyncio.create_task(self.go.wait())
        gone = asyncio.create_task(self.websocket.wait_closed())
        await asyncio.wait([going, gone], return_when=asyncio.FIRST_COMPLETED)
        going.cancel()


def resumed(data: dict[str, Any]) -> dict[str, Any]:
    return {"rooms": {r: {"recovered": True, "offset": o, "missed": 0} for r, o in data["rooms"].items()}}


def usual_answer(event: str, data: dict[str, Any]) -> dict[str, Any]:
    """As the real server answers."""
    match event:
        case "join":
            return {"room": data["room"], "offset": "200"}
        case "join:thread":
            return {"room": f"thread:{data['thread_id']}", "offset": "200"}
        case "resume":
            return resumed(data)
    return {}


class Bucket:
    """The rate limit of the server."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst, self.refused = rate, burst, 0
        self._free, self._at = float(burst), time.monotonic()

    def takes(self) -> bool:
        now = time.monotonic()
        self._free = min(self.burst, self._free + (now - self._at) * self.rate)
        self._at = now
        if self._free < 1:
            self.refused += 1
            return False
        self._free -= 1
        return True


class ScriptedServer:
    """Follows its script; without one it accepts, and acknowledges everything."""

    def __init__(self) -> None:
        self.script: deque[Refusal | str] = deque()
        """What happens to the next handshakes: a refusal, `drop`, `hang` (accepted, and then nothing), `accept`."""
        self.heartbeat_interval = 30.0
        self.user_id: str | None = None
        self.limits: dict[str, Any] | None = None
        """What `connection:ready` says of them, if it does."""
        self.bucket: Bucket | None = None
        self.rooms = {"user:7": "100"}
        self.answers: dict[str, Answer] = {}
        """Other than usual, by event; None: no answer; with a `code` in it: an error."""
        self.visits: list[Visit] = []
        self.handshakes = 0
        self.url = ""

    async def look(self, websocket: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        match self.script[0] if self.script else "accept":
            case Refusal(status, headers, body):
                self.script.popleft()
                response = websocket.respond(HTTPStatus(status), body)
                response.headers.update(headers)
                return response
            case "drop":
                self.script.popleft()
                websocket.transport.abort()
        return None

    async def serve(self, websocket: ServerConnection) -> None:
        visit = Visit(websocket)
        self.visits.append(visit)
        try:
            if self.script and self.script.popleft() == "hang":
                await visit.hang()
            found = {"user_id": self.user_id, "limits": self.limits, "rooms": self.rooms}
            ready = {name: value for name, value in found.items() if value is not None}
            ready |= {"connection_id": f"c{len(self.visits)}", "heartbeat_interval": self.heartbeat_interval}
            await visit.say("connection:ready", ready)
            async for text in websocket:
                await self._take(visit, json.loads(text))
        except ConnectionClosed:
            pass

    async def _take(self, visit: Visit, frame: dict[str, Any]) -> None:
        if self.bucket is not None and not self.bucket.takes():
            return
        visit.sent.append(frame)
        event, data = frame["event"], frame["data"]
        answer = self.answers[event] if event in self.answers else usual_answer(event, data)
        if callable(answer):
            answer = answer(data)
        if answer is not None and "id" in frame:
            await visit.say("error" if "code" in answer else "ack", answer, id=frame["id"])

    async def visit(self, number: int) -> Visit:
        """Wait for the connection of that number, the first being 1, and until the client has its first frame."""
        await eventually(lambda: len(self.visits) >= number)
        return self.visits[number - 1]


class Flood:
    """Sends more than is taken at once: `send` gets the number of each."""

    size = 400

    def __init__(self, send: Callable[[int], Awaitable[None]]) -> None:
        self._sent = 0
        self.task = asyncio.create_task(self._send(send))

    async def _send(self, send: Callable[[int], Awaitable[None]]) -> None:
        for number in range(self.size):
            await send(number)
            self._sent += 1

    async def is_stuck(self) -> bool:
        """Nothing has been sent for a moment."""
        before = self._sent
        await asyncio.sleep(0.2)
        return 0 < before == self._sent < self.size


class Reader:
    """Reads a client to its end, and keeps its events."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events: list[Event] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.client:
            self.events.append(event)

    def named(self, *names: str) -> list[Event]:
        return [event for event in self.events if event.name in names]

    async def heard(self, name: str, count: int = 1) -> Event:
        """Wait for the event of that name and number, the first being 1."""
        await eventually(lambda: len(self.named(name)) >= count)
        return self.named(name)[count - 1]

    async def end(self) -> None:
        """Wait for its end; raises what that was."""
        await asyncio.wait_for(asyncio.shield(self.task), PATIENCE)


@asynccontextmanager
async def reading(
    server: ScriptedServer, get_token: Any = lambda: "x", **options: Any
) -> AsyncIterator[Reader]:
    """A reader of a client of the server."""
    options = {"reconnection_delay": 0.01, "reconnection_delay_max": 0.02, **options}
    async with Client(server.url, get_token, **options) as client:
        reader = Reader(client)
        try:
            yield reader
        finally:
            reader.task.cancel()
            await asyncio.gather(reader.task, return_exceptions=True)


def token(mark: str = "x", expires_in: float = 3600, user_id: str = "7") -> str:
    """A text that looks like a JWT."""
    payload = json.dumps({"exp": time.time() + expires_in, "user_id": user_id})
    claims = base64.urlsafe_b64encode(payload.encode()).decode()
    return f"{mark}.{claims.rstrip('=')}.sig"


class Tokens:
    """A `get_token` that counts; each token has its number in front.

    `script` has an exception to raise, or an event to wait for, by the number of the call.
    """

    def __init__(self, script: Mapping[int, Exception | asyncio.Event] | None = None) -> None:
        self.asked = 0
        self._script = script or {}

    async def __call__(self) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        match self._script.get(self.asked):
            case Exception() as error:
                raise error
            case asyncio.Event() as event:
                await event.wait()
        return token(str(self.asked))


async def joined(server: ScriptedServer, reader: Reader) -> Visit:
    """The client is in thread 42, in its first connection."""
    reader.client.join("42")
    await reader.heard("room:joined")
    return await server.visit(1)


async def resumes(visit: Visit) -> dict[str, str]:
    """The offsets from which the client resumes."""
    return (await eventually(lambda: visit.events("resume")))[0]["rooms"]
