"""Who is in which room, and how one gets in and out."""

from __future__ import annotations

import asyncio

from tests.e2e.harness import Client, Stack, unique


async def assert_in(stack: Stack, thread: str, *clients: Client) -> None:
    """A message to the thread reaches each of them once."""
    message = unique("m")
    stack.add("thread:message", {"thread_id": thread, "message_id": message})
    for client in clients:
        await client.expect("thread:message", message_id=message)


async def assert_out(stack: Stack, thread: str, *clients: Client) -> None:
    """It reaches none of them."""
    message = unique("m")
    async with stack.client("hub") as witness:
        await witness.call("join:thread", {"thread_id": thread})
        stack.add("thread:message", {"thread_id": thread, "message_id": message})
        await witness.expect("thread:message", message_id=message)
    await asyncio.gather(*(client.nothing("thread:message") for client in clients))


async def test_the_team_joins_any_thread(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as attendant, stack.client("hub", role="admin") as admin:
        for client in (attendant, admin):
            ack = await client.call("join:thread", {"thread_id": thread})
            assert ack["room"] == f"thread:{thread}"
            assert isinstance(ack["offset"], str)
            assert 0 < len(ack["offset"]) <= 64
        await assert_in(stack, thread, attendant, admin)


async def test_customer_joins_own_threads_only(stack: Stack):
    mine, other = unique("th"), unique("th")
    async with stack.client("portal", threads=[mine]) as client:
        await client.call("join:thread", {"thread_id": mine})
        assert (await client.refused("join:thread", {"thread_id": other}))["code"] == "forbidden"
        await assert_in(stack, mine, client)
        await assert_out(stack, other, client)
