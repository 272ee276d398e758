"""What a backbone says to the socket server itself."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from tests.e2e.harness import Client, Stack, unique

WAYS = ("add", "publish")


async def settled(stack: Stack) -> None:
    """Everything added so far was taken by the bridge."""
    thread = unique("th")
    async with stack.client("hub", role="admin", groups=[]) as client:
        await client.call("join:thread", {"thread_id": thread})
        stack.add("chat:ended", {"thread_id": thread})
        await client.expect("chat:ended", thread_id=thread)


async def assert_hears(stack: Stack, thread: str, client: Client) -> None:
    message = unique("m")
    stack.add("thread:message", {"thread_id": thread, "message_id": message})
    await client.expect("thread:message", message_id=message)


async def assert_deaf(stack: Stack, thread: str, client: Client) -> None:
    stack.add("thread:message", {"thread_id": thread, "message_id": unique("m")})
    await settled(stack)
    await client.nothing("thread:message", within=0.1)


# --- Threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [False, True], ids=["string", "number"])
async def test_grant_lets_a_customer_join_a_thread(stack: Stack, number: bool):
    thread, user = (str(int(unique(), 16)) for _ in range(2))
    async with stack.client("portal", user) as customer:
        assert (await customer.refused("join:thread", {"thread_id": thread}))["code"] == "forbidden"
        kind = int if number else str
        stack.add("thread:grant", {"thread_id": kind(thread), "user_id": kind(user)})
        await settled(stack)
        await customer.call("join:thread", {"thread_id": thread})
        await assert_hears(stack, thread, customer)
    async with stack.client("portal") as other:
        assert (await other.refused("join:thread", {"thread_id": thread}))["code"] == "forbidden"


async def test_revoke_takes_live_connections_out_and_says_so(stack: Stack):
    thread, user = unique("th"), unique("u")
    async with (
        stack.client("portal", user, threads=[thread]) as tab,
        stack.client("portal", user, threads=[thread]) as other_tab,
        stack.client("portal", threads=[thread]) as other_user,
        stack.client("hub", user) as namesake,
    ):
        for client in (tab, other_tab, other_user, namesake):
            await client.call("join:thread", {"thread_id": thread})
        stack.add("thread:revoke", {"thread_id": thread, "user_id": user})
        for client in (tab, other_tab):
            frame = await client.expect("room:left")
            assert frame["data"] == {"room": f"thread:{thread}", "reason": "forbidden"}
        await assert_deaf(stack, thread, tab)
        for client in (other_user, namesake):
            await client.expect("thread:message")
            await client.nothing("room:left", within=0.1)
        for event in ("typing:start", "cursor:move"):
            error = await tab.refused(event, {"thread_id": thread, "position": 1})
            assert error["code"] == "not_in_room"


# --- Users -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_disconnected_user_is_closed_in_that_namespace_only(stack: Stack, way: str):
    user = unique("u")
    async with (
        stack.client("hub", user) as first,
        stack.client("hub", user) as second,
        stack.client("portal", user) as customer,
        stack.client("hub") as other,
    ):
        getattr(stack, way)("user:disconnect", {"user_id": user, "namespace": "hub", "reason": "go home"})
        for client in (first, second):
            assert await client.expect_close() == 4403
            if stack.server == "uvicorn":
                assert client.close_reason == "go home"
        for client in (customer, other):
            await client.call("heartbeat")
        async with stack.client("hub", user) as later:
            await settled(stack)
            await later.call("heartbeat")


async def test_disconnect_that_is_read_late_concerns_only_earlier_connections(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
):
    with Stack(tmp_path_factory.mktemp("late"), redis_url) as stack:
        stack.start_sockets()
        user = unique("u")
        async with stack.client("hub", user) as earlier:
            await asyncio.sleep(0.01)
            stack.add("user:disconnect", {"user_id": user, "namespace": "hub"})
            await asyncio.sleep(0.01)
            async with stack.client("hub", user) as later:
                await asyncio.to_thread(stack.start, "runbridge")
                assert await earlier.expect_close() == 4403
                await later.call("heartbeat")


async def test_very_long_reason_is_cut_to_what_a_close_frame_holds(stack: Stack):
    async with stack.client("hub") as client:
        data = {"user_id": client.user_id, "namespace": "hub", "reason": "ü" * 500}
        stack.add("user:disconnect", data)
        assert await client.expect_close() == 4403
        if stack.server == "uvicorn":
            assert client.close_reason == "ü" * 61


# --- Tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["hub", "portal"])
@pytest.mark.parametrize("number", [False, True], ids=["text", "number"])
async def test_revoked_token_is_closed_and_refused_from_then_on(
    stack: Stack, namespace: str, *, number: bool
):
    jti: str | int = uuid4().int if number else unique("j")
    user, exp = unique("u"), int(time.time()) + 600
    role = "attendant" if namespace == "hub" else "customer"
    token = stack.sign(user_id=user, role=role, jti=jti, exp=exp)
    other_token = stack.sign(user_id=user, role=role)
    async with (
        stack.client(namespace, token=token) as first,
        stack.client(namespace, token=token) as second,
        stack.client(namespace, token=other_token) as other,
    ):
        stack.add("token:revoke", {"jti": jti, "exp": exp})
        for client in (first, second):
            assert await client.expect_close() == 4403
        response = await stack.handshake(f"/{namespace}/", token=token)
        stack.assert_refused(response, 401, "token_invalid")
        verdict = await stack.http("GET", f"/{namespace}/", [("Authorization", f"Bearer {token}")])
        assert (verdict.status, verdict.error["code"]) == (401, "token_invalid")
        error = await other.refused("auth:refresh", {"token": token})
        assert error["code"] in {"forbidden", "invalid_payload"}
        await other.call("heartbeat")


async def test_revoke_reaches_a_token_that_was_refreshed_into(stack: Stack):
    jti, user, exp = unique("j"), unique("u"), int(time.time()) + 600
    old_jti = unique("j")
    async with stack.client("hub", token=stack.sign(user_id=user, jti=old_jti)) as client:
        await client.call("auth:refresh", {"token": stack.sign(user_id=user, jti=jti, exp=exp)})
        stack.add("token:revoke", {"jti": old_jti, "exp": exp})
        await settled(stack)
        await client.call("heartbeat")  # the old one does not matter any more
        stack.add("token:revoke", {"jti": jti, "exp": exp})
        assert await client.expect_close() == 4403


# --- Presence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_status_set_by_the_backbone_is_as_if_chosen(stack: Stack, way: str):
    group, user = unique("g"), unique("u")
    async with (
        stack.client("hub", role="admin", groups=[group]) as admin,
        stack.client("hub", user, groups=[group]) as attendant,
    ):
        await admin.expect("attendant:online", user_id=user)
        getattr(stack, way)("presence:set", {"user_id": user, "status": "away"})
        frame = await admin.expect("attendant:away", user_id=user)
        assert frame["room"] == f"presence:{group}"
        await attendant.call("heartbeat")
        await attendant.call("heartbeat")
        await admin.nothing("attendant:online")
        assert [entry["reason"] for entry in stack.transitions(user)] == ["connect", "bus"]
        getattr(stack, way)("presence:set", {"user_id": user, "status": "online"})
        await admin.expect("attendant:online", user_id=user)


async def test_control_events_are_never_seen_by_a_client(stack: Stack):
    user = unique("u")
    async with stack.client("hub", user) as attendant, stack.client("portal", user) as customer:
        await attendant.expect("presence:state")
        rooms = [f"user:{user}"]
        stack.add("thread:grant", {"thread_id": "1", "user_id": user}, rooms=rooms)
        stack.add("token:revoke", {"jti": unique("j"), "exp": int(time.time()) + 60}, rooms=rooms)
        stack.add("user:disconnect", {"user_id": unique("u"), "namespace": "hub"}, rooms=rooms)
        await settled(stack)
        await customer.nothing()
        seen = {frame["event"] for frame in attendant.frames}
        assert seen <= {"connection:ready", "presence:state", "attendant:online", "attendant:offline"}
