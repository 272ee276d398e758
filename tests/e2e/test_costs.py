"""What one client can make a real server do, against what it sends: Redis commands, keys, bytes."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.e2e.harness import Client, Stack, eventually, unique

pytestmark = pytest.mark.slow


def commands(stack: Stack) -> int:
    """Those that Redis has executed so far, for all systems that are running on it."""
    return sum(command["calls"] for command in stack.redis.info("commandstats").values())


def answers(client: Client, code: str) -> int:
    return sum(frame["event"] == "error" and frame["data"]["code"] == code for frame in client.frames)


async def test_thousands_of_rooms_in_each_resume_cost_as_much_as_those_that_count(uvicorn_stack: Stack):
    stack = uvicorn_stack
    rooms = {f"thread:{unique()}": "5" for _ in range(2000)}
    async with stack.client("portal") as attacker, stack.client("portal") as other:
        keys, before = len(stack.redis.keys(f"{stack.prefix}:*")), commands(stack)
        for number in range(20):
            await attacker.send("resume", {"rooms": rooms}, id=number)
        await eventually(lambda: answers(attacker, "rate_limited") + len(attacker.received("ack")) == 20)
        acks = attacker.received("ack")
        assert 2 <= len(acks) <= 5
        for ack in acks:
            codes = [room["error"] for room in ack["data"]["rooms"].values()]
            assert codes == ["forbidden"] * 200 + ["limit_exceeded"] * 1800
        assert commands(stack) - before < 5000  # before: 2,000 for each frame
        assert len(stack.redis.keys(f"{stack.prefix}:*")) <= keys + 1
        await other.call("heartbeat")


async def test_the_same_replay_again_and_again_is_bounded_by_the_rate_limit(uvicorn_stack: Stack):
    stack, thread = uvicorn_stack, unique("th")
    async with stack.client("portal", threads=[thread]) as client, stack.client("hub") as other:
        since = (await client.call("join:thread", {"thread_id": thread}))["offset"]
        for number in range(100):
            stack.add("thread:message", {"thread_id": thread, "message_id": number, "body": "x" * 2000})
        await client.expect("thread:message", message_id="99")
        size = sum(map(len, client.texts))
        frame = json.dumps({"event": "join:thread", "data": {"thread_id": thread, "since": since}})
        for _ in range(300):
            await client.raw(frame)
            await asyncio.sleep(0.02)
        await eventually(lambda: answers(client, "rate_limited") or client.close_code)
        await other.call("heartbeat")
        assert sum(map(len, client.texts)) < 120 * size  # before: 300 times


async def test_client_that_comes_back_to_all_its_rooms_does_not_wait(uvicorn_stack: Stack):
    stack, threads = uvicorn_stack, [unique("th") for _ in range(198)]
    user = unique("u")
    async with stack.client("hub", user) as client:
        offsets = dict(client.ready["rooms"])
        for thread in threads:
            offsets[f"thread:{thread}"] = (await client.call("join:thread", {"thread_id": thread}))["offset"]
    for thread in threads:
        stack.add("thread:message", {"thread_id": thread, "message_id": 1, "body": "x" * 10_000})
    async with stack.client("hub", user, query="resume=1") as client:
        await client.send("resume", {"rooms": offsets}, id="resume")
        for thread in threads[:50]:
            await client.send("typing:start", {"thread_id": thread}, id=thread)
        for thread in threads:
            await client.expect("thread:message", thread_id=thread)
        await client.call("heartbeat")
        assert not client.received("error")
        (resumed,) = [frame for frame in client.received("ack") if frame["id"] == "resume"]
        assert {room["recovered"] for room in resumed["data"]["rooms"].values()} == {True}
