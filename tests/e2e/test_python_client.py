"""The Python client against the real server: it loses no message, and reports what it cannot recover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from signal import SIGKILL

import pytest

from realtime.client import CallFailed, Client, Denied
from tests.client import scripted
from tests.e2e.harness import PATIENCE, Stack, eventually, unique


class Reader(scripted.Reader):
    """Reads a client to its end, and its messages."""

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
                await reader.client.connected()
                reader.client.reconnect()  # drops the connection
            await asyncio.sleep(0.005)
        await eventually(lambda: reader.messages[-1:] == ["299"])
        assert reader.messages == [str(number) for number in range(300)]
        assert reader.named("room:gap") == []
        assert len(reader.named("connection:ready")) == 6


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


async def test_who_is_not_wanted_is_told_and_does_not_come_again(uvicorn_stack: Stack):
    user = unique("u")
    async with reading(uvicorn_stack, user) as reader:
        await reader.client.connected()
        uvicorn_stack.add("user:disconnect", {"user_id": user, "namespace": "hub"})
        with pytest.raises(Denied) as denied:
            await asyncio.wait_for(asyncio.shield(reader.task), PATIENCE)
        assert denied.value.code == 4403


async def test_refusal_has_its_reason_by_every_server(stack: Stack):
    token = stack.token(role="customer")
    async with Client(stack.url("hub"), lambda: token) as client:
        events = aiter(client)
        assert (await anext(events)).data["code"] == "forbidden_role"
        with pytest.raises(Denied, match="403 forbidden_role: "):
            await anext(events)


async def test_server_that_is_killed_and_comes_back_is_found_again(redis_url: str, tmp_path):
    with Stack(tmp_path, redis_url) as stack:
        stack.start("runbridge")
        server = stack.start_sockets()
        async with reading(stack) as reader:
            reader.client.join("42")
            await eventually(lambda: "thread:42" in reader.client.rooms)
            server.stop(SIGKILL)
            stack.add("thread:message", {"thread_id": "42", "message_id": "missed"})
            await asyncio.to_thread(stack.start_sockets)
            await eventually(lambda: reader.messages == ["missed"])


async def test_hundred_events_that_waited_beside_sixty_joins_lose_none(stack: Stack):
    first = unique("th")
    async with reading(stack) as reader:
        for number in range(60):
            reader.client.join(f"{first}-{number}")
        for _ in range(100):
            await reader.client.send("presence:online")
        assert reader.named("connection:ready") == []
        await reader.heard("room:joined", 60)
        await reader.client.call("heartbeat")
        assert reader.named("error", "room:left", "connection:lost") == []


async def test_thread_is_entered_by_its_number(stack: Stack):
    async with reading(stack) as reader:
        reader.client.join(4_200_017)
        await eventually(lambda: "thread:4200017" in reader.client.rooms)
        stack.add("thread:message", {"thread_id": 4_200_017, "message_id": "1"})
        await eventually(lambda: reader.messages == ["1"])
        await reader.client.call("typing:start", {"thread_id": 4_200_017})


async def test_frame_that_the_server_would_close_for_is_refused_before_it_is_sent(uvicorn_stack: Stack):
    async with reading(uvicorn_stack) as reader:
        await reader.client.connected()
        before = reader.client.connection_id
        with pytest.raises(CallFailed, match="takes at most 65536") as failed:
            await reader.client.call("cursor:move", {"thread_id": "42", "position": "x" * 70_000})
        assert failed.value.code == "too_large"
        await reader.client.call("heartbeat")
        assert reader.client.connection_id == before
