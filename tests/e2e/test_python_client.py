"""The Python client against the real server: what it sees through losses, and what it is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from signal import SIGKILL
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from realtime.client import CallFailed, Client, Denied, Event
from tests.e2e.harness import PATIENCE, Stack, eventually, unique


class Reader:
    """Reads a client to its end."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events: list[Event] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.client:
            self.events.append(event)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    @property
    def messages(self) -> list[str]:
        return [event.data["message_id"] for event in self.named("thread:message")]


@asynccontextmanager
async def reading(
    stack: Stack, user: str | None = None, role: str = "attendant", **options: object
) -> AsyncIterator[Reader]:
    namespace = "hub" if role == "attendant" else "portal"
    token = stack.token(user or unique("u"), role)
    options = {"reconnection_delay": 0.1, "reconnection_delay_max": 0.3, **options}
    async with Client(stack.url(namespace), lambda: token, **options) as client:  # type: ignore[arg-type]
        reader = Reader(client)
        try:
            yield reader
        finally:
            reader.task.cancel()
            await asyncio.gather(reader.task, return_exceptions=True)


async def test_messages_come_once_and_in_order_however_often_the_connection_is_lost(stack: Stack):
    thread = unique("th")
    async with reading(stack) as reader:
        reader.client.join(thread)
        await eventually(lambda: f"thread:{thread}" in reader.client.rooms)
        for number in range(300):
            stack.add("thread:message", {"thread_id": thread, "message_id": str(number)})
            if number % 60 == 30:
                reader.client.reconnect()  # drops the connection
            await asyncio.sleep(0.005)
        await eventually(lambda: reader.messages[-1:] == ["299"])
        assert reader.messages == [str(number) for number in range(300)]
        assert reader.named("room:gap") == []
        assert len(reader.named("connection:ready")) > 3


async def test_room_that_cannot_be_recovered_is_said_to_have_a_gap(uvicorn_stack: Stack):
    thread = unique("th")

    async def connect_as_from_long_ago(*arguments: Any, **options: Any) -> ClientConnection:
        websocket = await connect(*arguments, **options)
        send = websocket.send

        async def send_old_offset(text: str) -> None:
            await send(re.sub(rf'"thread:{thread}": "\d+"', f'"thread:{thread}": "1"', text))

        websocket.send = send_old_offset  # type: ignore[assignment]
        return websocket

    async with reading(uvicorn_stack, connect=connect_as_from_long_ago) as reader:
        reader.client.join(thread)
        await eventually(lambda: f"thread:{thread}" in reader.client.rooms)
        reader.client.reconnect()
        await eventually(lambda: reader.named("room:gap"))
        assert reader.named("room:gap")[0].data["room"] == f"thread:{thread}"
        uvicorn_stack.add("thread:message", {"thread_id": thread, "message_id": "live"})
        await eventually(lambda: reader.messages == ["live"])


async def test_loop_that_is_slow_gets_everything_all_the_same(uvicorn_stack: Stack):
    threads = [unique("th") for _ in range(20)]
    user = unique("u")
    token = uvicorn_stack.token(user)

    def publish() -> None:
        for number in range(100):
            for thread in threads:
                data = {"thread_id": thread, "message_id": str(number), "body": "x" * 8000}
                uvicorn_stack.add("thread:message", data)

    async with Client(
        uvicorn_stack.url("hub"), lambda: token, max_unread=100, reconnection_delay=0.1
    ) as client:
        for thread in threads:
            client.join(thread)
        await eventually(lambda: {f"thread:{thread}" for thread in threads} <= client.rooms)
        name = str(client.connection_id)
        await asyncio.to_thread(publish)
        await eventually(
            lambda: any(name in line and "4413" in line for line in uvicorn_stack.logs.splitlines())
        )
        reader = Reader(client)
        await eventually(lambda: len(reader.messages) >= 100 * len(threads))
        seen: dict[str, list[str]] = {thread: [] for thread in threads}
        for event in reader.named("thread:message"):
            seen[event.data["thread_id"]].append(event.data["message_id"])
        assert seen == {thread: [str(number) for number in range(100)] for thread in threads}
        assert reader.named("connection:lost")
        assert reader.named("room:gap") == []


async def test_calls_are_answered_or_fail(uvicorn_stack: Stack):
    async with reading(uvicorn_stack) as reader:
        with pytest.raises(CallFailed, match="closed"):
            await reader.client.call("heartbeat")
        await reader.client.connected()
        assert await reader.client.call("heartbeat") == {}
        with pytest.raises(CallFailed) as failed:
            await reader.client.call("typing:start", {"thread_id": "42"})
        assert failed.value.code == "not_in_room"


async def test_thread_that_is_not_allowed_is_said_to_be_left(uvicorn_stack: Stack):
    async with reading(uvicorn_stack, role="customer") as reader:
        reader.client.join("not-mine")
        await eventually(lambda: reader.named("room:left"))
        assert reader.named("room:left")[0].data == {"room": "thread:not-mine", "reason": "forbidden"}


async def test_who_is_not_wanted_is_told_and_does_not_come_again(uvicorn_stack: Stack):
    user = unique("u")
    async with reading(uvicorn_stack, user) as reader:
        await reader.client.connected()
        uvicorn_stack.add("user:disconnect", {"user_id": user, "namespace": "hub"})
        with pytest.raises(Denied) as denied:
            await asyncio.wait_for(asyncio.shield(reader.task), PATIENCE)
        assert denied.value.code == 4403


async def test_refused_handshake_is_tried_once_with_a_fresh_token(uvicorn_stack: Stack):
    asked: list[str] = []

    async def get_token() -> str:
        asked.append(uvicorn_stack.token() if len(asked) == 1 else "nonsense")
        return asked[-1]

    async with Client(uvicorn_stack.url("hub"), get_token, reconnection_delay=0.05) as client:
        await asyncio.wait_for(client.connected(), PATIENCE)
        assert len(asked) == 2
    async with Client(uvicorn_stack.url("hub"), lambda: "nonsense", reconnection_delay=0.05) as client:
        with pytest.raises(Denied, match="401"):
            async for _ in client:
                pass


async def test_server_that_is_killed_and_comes_back_is_found_again(redis_url: str, tmp_path):
    stack = Stack(tmp_path, redis_url)
    try:
        stack.start("runbridge")
        server = stack.start_sockets()
        async with reading(stack) as reader:
            reader.client.join("42")
            await eventually(lambda: "thread:42" in reader.client.rooms)
            server.stop(SIGKILL)
            stack.add("thread:message", {"thread_id": "42", "message_id": "missed"})
            await asyncio.to_thread(stack.start_sockets)
            await eventually(lambda: reader.messages == ["missed"])
    finally:
        stack.stop()
