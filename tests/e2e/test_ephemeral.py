"""Typing and cursors, straight from one socket to the room."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.e2e.harness import Client, Stack, unique


class Thread:
    """A thread with a customer in two tabs and two attendants, all of them in the room."""

    def __init__(self, id: str, tab: Client, other_tab: Client, ana: Client, bob: Client) -> None:
        self.id = id
        self.tab, self.other_tab, self.ana, self.bob = tab, other_tab, ana, bob
        self.clients = (tab, other_tab, ana, bob)


@contextlib.asynccontextmanager
async def in_thread(stack: Stack) -> AsyncIterator[Thread]:
    """All clients, connected and in a new thread."""
    id, customer = unique("th"), unique("u")
    async with contextlib.AsyncExitStack() as clients:
        thread = Thread(
            id,
            *[
                await clients.enter_async_context(stack.client("portal", customer, name="Cy", threads=[id]))
                for _ in range(2)
            ],
            *[await clients.enter_async_context(stack.client("hub", name=name)) for name in ("Ana", "Bob")],
        )
        for client in thread.clients:
            await client.call("join:thread", {"thread_id": id})
        yield thread


@pytest.fixture
async def thread(stack: Stack) -> AsyncIterator[Thread]:
    async with in_thread(stack) as thread:
        yield thread


async def test_typing_reaches_every_other_client_in_both_namespaces(thread: Thread):
    for typist, namespace, name in ((thread.tab, "portal", "Cy"), (thread.ana, "hub", "Ana")):
        for event, typing in (("typing:start", True), ("typing:stop", False)):
            await typist.call(event, {"thread_id": thread.id})
            for client in thread.clients:
                if client is not typist:
                    frame = await client.expect("thread:typing", typing=typing)
                    assert frame["data"] == {
                        "thread_id": thread.id,
                        "user_id": typist.user_id,
                        "namespace": namespace,
                        "name": name,
                        "typing": typing,
                    }
        await typist.nothing("thread:typing", within=0.1)


async def test_cursor_that_receivers_cannot_read_is_refused_and_reaches_none(thread: Thread):
    await thread.ana.raw(
        f'{{"event": "cursor:move", "id": "c", "data": {{"thread_id": "{thread.id}", "position": 1e400}}}}'
    )
    error = await thread.ana.expect("error")
    assert (error["id"], error["data"]["code"]) == ("c", "invalid_payload")
    assert error["data"]["message"].startswith("position: ")
    await thread.tab.nothing("thread:cursor", within=0.1)


async def test_half_an_emoji_in_name_token_and_cursor_is_a_replacement_character_to_all(stack: Stack):
    thread = unique("th")
    token = stack.sign(user_id=unique("u"), name="Ana \ud83d", jti=unique("j") + "\ude00", groups=[thread])
    async with stack.client("hub", groups=[thread]) as bob, stack.client("hub", token=token) as ana:
        assert (await bob.expect("attendant:online", user_id=ana.user_id))["data"]["name"] == "Ana \ufffd"
        for client in (ana, bob):
            await client.call("join:thread", {"thread_id": thread})
        await ana.call("typing:start", {"thread_id": thread})
        assert (await bob.expect("thread:typing"))["data"]["name"] == "Ana \ufffd"
        await ana.raw(
            f'{{"event": "cursor:move", "data": {{"thread_id": "{thread}", "position": "\\udc00\\ud83d\\ude00"}}}}'
        )
        assert (await bob.expect("thread:cursor"))["data"]["position"] == "\ufffd\U0001f600"
        stack.add("thread:message", {"thread_id": thread, "message_id": 1, "body": "half \ud83d"})
        assert (await bob.expect("thread:message"))["data"]["body"] == "half \ufffd"
    stack.assert_calm()


async def test_cursor_reaches_every_other_client_with_any_position(thread: Thread):
    position = {"x": 1.5, "y": None, "ü": ["🎈", [2, {}]]}
    await thread.ana.call("cursor:move", {"thread_id": thread.id, "position": position})
    for client in (thread.tab, thread.other_tab, thread.bob):
        frame = await client.expect("thread:cursor")
        assert frame["data"] == {
            "thread_id": thread.id,
            "user_id": thread.ana.user_id,
            "namespace": "hub",
            "name": "Ana",
            "position": position,
        }
    await thread.ana.nothing("thread:cursor", within=0.1)


@pytest.mark.slow
async def test_typist_who_falls_silent_is_reported_as_stopped_after_ten_seconds(uvicorn_stack: Stack):
    async with in_thread(uvicorn_stack) as thread:
        await thread.ana.call("typing:start", {"thread_id": thread.id})
        await thread.tab.expect("thread:typing", typing=True)
        started = time.monotonic()
        await thread.bob.call("typing:start", {"thread_id": thread.id})
        await asyncio.sleep(5)
        await thread.bob.call("typing:start", {"thread_id": thread.id})  # repeated: goes on
        await thread.tab.expect("thread:typing", typing=False, user_id=thread.ana.user_id)
        assert time.monotonic() - started > 9
        stopped = [frame["data"]["user_id"] for frame in thread.tab.received("thread:typing")]
        assert stopped.count(thread.ana.user_id) == 2
        assert not [
            frame
            for frame in thread.tab.received("thread:typing")
            if frame["data"]["user_id"] == thread.bob.user_id and not frame["data"]["typing"]
        ]


async def test_ephemeral_frames_have_no_offset_and_are_not_replayed(stack: Stack, thread: Thread):
    await thread.ana.call("typing:start", {"thread_id": thread.id})
    frame = await thread.tab.expect("thread:typing")
    assert "offset" not in frame
    before = await thread.bob.call("join:thread", {"thread_id": thread.id})
    async with stack.client("hub") as late:
        assert (await late.call("join:thread", {"thread_id": thread.id}))["offset"] == before["offset"]
        await late.nothing("thread:typing", within=0.2)


async def test_ephemeral_frames_never_touch_the_bus(stack: Stack, thread: Thread):
    before = stack.redis.xlen(stack.key("stream"))
    await thread.ana.call("cursor:move", {"thread_id": thread.id, "position": 1})
    await thread.tab.expect("thread:cursor")
    assert stack.redis.xlen(stack.key("stream")) == before


async def test_frame_that_waits_for_nothing_does_not_overtake_one_that_waits(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as client, stack.client("hub") as other:
        await other.call("join:thread", {"thread_id": thread})
        for number, event in enumerate(
            ("join:thread", "typing:start", "typing:stop", "leave:thread", "typing:start")
        ):
            await client.send(event, {"thread_id": thread}, id=number)
        answers = [await client.next_frame(lambda frame: "id" in frame, "an answer") for _ in range(5)]
        assert [(frame["id"], frame["event"]) for frame in answers] == [
            *((number, "ack") for number in range(4)),
            (4, "error"),
        ]
        seen = [await other.expect("thread:typing") for _ in range(2)]
        assert [frame["data"]["typing"] for frame in seen] == [True, False]
