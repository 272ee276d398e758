"""Who is in which room, and how one gets in and out."""

from __future__ import annotations

import asyncio

import pytest

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


async def test_threads_of_the_claim_may_be_numbers(stack: Stack):
    async with stack.client("portal", token=stack.sign(role="customer", threads=[4242, "43"])) as client:
        await client.call("join:thread", {"thread_id": "4242"})
        await client.call("join:thread", {"thread_id": 43})


async def test_claim_alone_joins_no_thread(stack: Stack):
    thread = unique("th")
    async with stack.client("portal", threads=[thread]) as client:
        await assert_out(stack, thread, client)


async def test_joining_twice_is_joining_once(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as client:
        first = await client.call("join:thread", {"thread_id": thread})
        assert await client.call("join:thread", {"thread_id": thread}) == first
        await assert_in(stack, thread, client)
        await client.nothing("thread:message")
        await client.call("leave:thread", {"thread_id": thread})
        await assert_out(stack, thread, client)


async def test_leaving_a_room_one_is_not_in_is_fine(stack: Stack):
    thread = unique("th")
    for namespace in ("hub", "portal"):
        async with stack.client(namespace) as client:
            assert await client.call("leave:thread", {"thread_id": thread}) is not None
            await client.call("leave:thread", {"thread_id": thread})


async def test_leave_and_join_again(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as client:
        for _ in range(3):
            await client.call("join:thread", {"thread_id": thread})
            await assert_in(stack, thread, client)
            await client.call("leave:thread", {"thread_id": thread})
        await assert_out(stack, thread, client)


async def test_thread_is_one_for_both_namespaces(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as attendant, stack.client("portal", threads=[thread]) as customer:
        await attendant.call("join:thread", {"thread_id": thread})
        await customer.call("join:thread", {"thread_id": thread})
        await assert_in(stack, thread, attendant, customer)


async def test_user_rooms_are_of_one_namespace(stack: Stack):
    user = unique("u")
    async with (
        stack.client("hub", user) as attendant,
        stack.client("hub", user) as second_tab,
        stack.client("portal", user) as customer,
    ):
        stack.add("user:notification", {"user_id": user, "n": 1})
        for client in (attendant, second_tab):
            frame = await client.expect("user:notification", n=1)
            assert frame["room"] == f"user:{user}"
        await customer.nothing("user:notification")
        stack.add("user:notification", {"user_id": user, "n": 2}, namespaces=["portal"])
        await customer.expect("user:notification", n=2)
        await asyncio.gather(*(client.nothing("user:notification") for client in (attendant, second_tab)))


async def test_offset_of_the_ack_is_the_rooms_end(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as first, stack.client("hub") as second:
        await first.call("join:thread", {"thread_id": thread})
        stack.add("thread:message", {"thread_id": thread, "message_id": 1})
        frame = await first.expect("thread:message")
        assert (await second.call("join:thread", {"thread_id": thread}))["offset"] == frame["offset"]


@pytest.mark.parametrize("event", ["join:thread", "resume"])
async def test_without_history_nothing_is_recovered_but_one_is_in_and_live(stack: Stack, event: str):
    thread = unique("th")
    room = f"thread:{thread}"
    async with stack.client("portal", threads=[thread]) as client:
        if event == "join:thread":
            answer = await client.call("join:thread", {"thread_id": thread, "since": "never-heard-of"})
            assert answer["room"] == room
        else:
            answer = (await client.call("resume", {"rooms": {room: "never-heard-of"}}))["rooms"][room]
        assert answer["recovered"] is False
        assert isinstance(answer["offset"], str)
        assert answer["offset"] != "never-heard-of"
        await assert_in(stack, thread, client)
        await client.nothing("thread:message")


async def test_resume_of_what_is_not_allowed_is_an_error_of_that_room_only(stack: Stack):
    mine, other, user = unique("th"), unique("th"), unique("u")
    async with stack.client("portal", user, threads=[mine]) as client:
        rooms = [
            f"thread:{mine}",
            f"thread:{other}",
            f"user:{user}",
            "user:someone",
            "presence:attendants",
            "x",
        ]
        answers = (await client.call("resume", {"rooms": dict.fromkeys(rooms, "1")}))["rooms"]
        assert set(answers) == set(rooms)
        assert "recovered" in answers[f"thread:{mine}"]
        assert "recovered" in answers[f"user:{user}"]
        for room in (f"thread:{other}", "user:someone", "presence:attendants"):
            assert answers[room] == {"error": "forbidden"}
        assert set(answers["x"]) == {"error"}
        await assert_in(stack, mine, client)
        await assert_out(stack, other, client)


async def test_resume_of_no_rooms_is_fine(stack: Stack):
    async with stack.client("hub") as client:
        assert await client.call("resume", {"rooms": {}}) == {"rooms": {}}


async def test_logging_out_of_presence_ends_the_connection_normally(stack: Stack):
    async with stack.client("hub") as client:
        await client.send("presence:offline", id=1)
        assert await client.expect_close() == 1000


async def test_admin_is_told_who_is_there_without_being_listed(stack: Stack):
    group, user = unique("g"), unique("u")
    async with stack.client("hub", user, groups=[group]) as attendant:
        state = (await attendant.expect("presence:state", group=group))["data"]
        assert [member["user_id"] for member in state["members"]] == [user]
        async with stack.client("hub", role="admin", groups=[group]) as admin:
            state = (await admin.expect("presence:state", group=group))["data"]
            assert [member["user_id"] for member in state["members"]] == [user]
            assert (state["members"][0]["status"], state["total"]) == ("online", 1)
        await attendant.nothing("attendant:offline", within=0.2)
        assert {frame["data"]["user_id"] for frame in attendant.received("attendant:online")} <= {user}
