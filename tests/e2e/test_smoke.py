from __future__ import annotations

import asyncio

from tests.e2e.harness import Stack, unique


async def test_message_on_the_stream_reaches_both_namespaces_in_the_thread_and_nobody_else(stack: Stack):
    thread = unique("th")
    async with (
        stack.client("hub") as attendant,
        stack.client("hub") as elsewhere,
        stack.client("portal", threads=[thread]) as customer,
    ):
        await attendant.call("join:thread", {"thread_id": thread})
        await customer.call("join:thread", {"thread_id": thread})
        stack.add("thread:message", {"thread_id": thread, "message_id": 1, "body": "hi"})
        for client in (attendant, customer):
            frame = await client.expect("thread:message")
            assert frame["room"] == f"thread:{thread}"
            assert frame["data"] == {"thread_id": thread, "message_id": "1", "body": "hi"}
        await asyncio.gather(elsewhere.nothing("thread:message"))
