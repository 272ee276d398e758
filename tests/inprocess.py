"""The ASGI application in the test's own process, and clients of it: no server, but a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from channels.testing import HttpCommunicator, WebsocketCommunicator

from realtime.asgi import application
from realtime.auth.issuing import issue
from realtime.bridge.bridge import Bridge
from realtime.bridge.bus_entry import BUS
from realtime.inline.delivery import PRESENCE
from realtime.protocol.bus_message import BusMessage
from realtime.redis.client import client, key
from tests.asking import PATIENCE as PATIENCE
from tests.asking import Asking, matching
from tests.asking import eventually as eventually

QUIET = 0.15
HUB, PORTAL = "hub", "portal"


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


class Refusal:
    """The HTTP answer to a handshake that was refused."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.error = json.loads(body)["error"]

    @property
    def code(self) -> str:
        return self.error["code"]


class Connection(Asking):
    """A client: reads frames in order, and keeps those it was not asked for yet."""

    def __init__(self, path: str, **options: Any) -> None:
        self.communicator = WebsocketCommunicator(application, path, **options)
        self.communicator.scope["extensions"] = {"websocket.http.response": {}}
        self.ready: dict[str, Any] = {}
        self._unread: list[dict[str, Any]] = []
        self._ids = 0

    async def handshake(self) -> Refusal | str | None:
        """The refusal, or the sub-protocol that was chosen."""
        await self.communicator.send_input({"type": "websocket.connect"})
        answer = await self.communicator.receive_output(PATIENCE)
        if answer["type"] == "websocket.accept":
            return answer.get("subprotocol")
        assert answer["type"] == "websocket.http.response.start", answer
        body = await self.communicator.receive_output(PATIENCE)
        await self.communicator.wait(PATIENCE)
        headers = {name.decode(): value.decode() for name, value in answer["headers"]}
        return Refusal(answer["status"], headers, body["body"])

    async def raw(self, text: str) -> None:
        await self.communicator.send_to(text_data=text)

    async def ask(self, event: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send with an id and return the answer: an ack or an error."""
        self._ids += 1
        frame_id = f"call-{self._ids}"
        await self.send(event, data, id=frame_id)
        return await self.next_frame(lambda frame: frame.get("id") == frame_id)

    async def expect(self, event: str, **data: Any) -> dict[str, Any]:
        """The next unread frame of this event whose data has these values; the frames before it stay unread."""
        return await self.next_frame(matching(event, data))

    async def expect_close(self) -> tuple[int, str]:
        """Wait for the close; returns code and reason."""
        while True:
            output = await self.communicator.receive_output(PATIENCE)
            if output["type"] == "websocket.close":
                return output["code"], output["reason"]
            self._unread.append(json.loads(output["text"]))

    async def nothing(self, *events: str) -> None:
        """None of these events (none at all, if none is named) is unread, nor comes within a moment."""
        await asyncio.sleep(QUIET)
        while not self.communicator.output_queue.empty():
            output = self.communicator.output_queue.get_nowait()
            assert output["type"] == "websocket.send", output
            self._unread.append(json.loads(output["text"]))
        found = [frame for frame in self._unread if not events or frame["event"] in events]
        assert not found, found

    async def next_frame(self, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next unread frame that matches; the frames before it stay unread."""
        for frame in self._unread:
            if matches(frame):
                self._unread.remove(frame)
                return frame
        while True:
            output = await self.communicator.receive_output(PATIENCE)
            assert output["type"] == "websocket.send", output
            frame = json.loads(output["text"])
            if matches(frame):
                return frame
            self._unread.append(frame)

    async def disconnect(self, code: int = 1001) -> None:
        if not self.communicator.future.done():
            await self.communicator.disconnect(code, timeout=PATIENCE)


@contextlib.asynccontextmanager
async def connected(
    namespace: str = "hub",
    user_id: str = "7",
    role: str | None = None,
    *,
    token: str | None = None,
    **claims: Any,
) -> AsyncIterator[Connection]:
    """A client that has read its `connection:ready`."""
    role = role or ("attendant" if namespace == "hub" else "customer")
    connection = Connection(
        f"/{namespace}/", headers=bearer(token or issue(user_id=user_id, role=role, **claims))
    )
    assert await connection.handshake() is None
    connection.ready = (await connection.expect("connection:ready"))["data"]
    try:
        yield connection
    finally:
        await connection.disconnect()


async def refusal(path: str, **options: Any) -> Refusal:
    """The refusal of a handshake that must be refused."""
    answer = await Connection(path, **options).handshake()
    assert isinstance(answer, Refusal), answer
    return answer


@contextlib.asynccontextmanager
async def bridging(within: float = PATIENCE) -> AsyncIterator[Bridge]:
    """A bridge that delivers while the block runs."""
    bridge = Bridge([BUS, PRESENCE])
    running = asyncio.create_task(bridge.run())
    await asyncio.wait_for(bridge.ready.wait(), within)
    try:
        yield bridge
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def add(event: str, data: dict[str, Any], **more: Any) -> str:
    """Append to the durable stream as a backbone would; returns the entry's id."""
    message = json.dumps({"event": event, "data": data, **more})
    return (await client().xadd(key("stream"), {"message": message})).decode()


def data_of(message: BusMessage) -> dict[str, Any]:
    """The data of a bus message as clients get it."""
    return json.loads(b"{" + message.tail.removeprefix(b'",'))["data"]


async def dead_letters() -> list[dict[str, str]]:
    entries: Any = await client().xrange(key("dead"))
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


class Answer:
    """What the HTTP side answered."""

    def __init__(self, response: dict[str, Any]) -> None:
        self.status: int = response["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in response["headers"]}
        self.body: bytes = response["body"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def http(path: str, method: str = "GET", **headers: str) -> Answer:
    """A request to the socket server's HTTP side."""
    communicator = HttpCommunicator(
        application,
        method,
        path,
        headers=[(name.lower().encode(), value.encode()) for name, value in headers.items()],
    )
    answer = Answer(await communicator.get_response(timeout=PATIENCE))
    await communicator.wait(PATIENCE)
    return answer
