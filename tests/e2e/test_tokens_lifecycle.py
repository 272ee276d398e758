"""What happens to a connection while its token ages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.e2e.harness import Stack, unique


def in_seconds(seconds: float) -> int:
    return int(time.time() + seconds)


async def test_token_is_announced_to_end_and_then_ends_the_connection(stack: Stack):
    exp = in_seconds(8)
    staff = stack.sign(user_id=unique("u"), exp=exp)
    customer = stack.sign(user_id=unique("u"), role="customer", exp=exp)
    async with stack.client("hub", token=staff) as hub, stack.client("portal", token=customer) as portal:
        for client in (hub, portal):
            frame = await client.expect("auth:expiring")
            assert datetime.fromisoformat(frame["data"]["expires_at"]).timestamp() == exp
        assert time.time() < exp
        for client in (hub, portal):
            assert await client.expect_close() == 4401
            assert time.time() >= exp
            assert len(client.received("auth:expiring")) == 1
    for namespace, token in (("hub", staff), ("portal", customer)):
        stack.assert_refused(await stack.handshake(f"/{namespace}/", token=token), 401, "token_expired")


async def test_client_is_told_sixty_seconds_before_the_end(stack: Stack):
    async with (
        stack.client("hub", token=stack.sign(user_id=unique("u"), exp=in_seconds(63))) as soon,
        stack.client("hub", token=stack.sign(user_id=unique("u"), exp=in_seconds(75))) as later,
    ):
        await soon.expect("auth:expiring")
        await later.nothing("auth:expiring", within=0.1)


async def test_refresh_in_time_keeps_the_connection(stack: Stack):
    user, exp = unique("u"), in_seconds(8)
    async with stack.client("hub", token=stack.sign(user_id=user, exp=exp)) as client:
        await client.expect("auth:expiring")
        new_exp = in_seconds(900)
        ack = await client.call("auth:refresh", {"token": stack.sign(user_id=user, exp=new_exp)})
        assert datetime.fromisoformat(ack["expires_at"]).timestamp() == new_exp
        assert datetime.fromisoformat(ack["expires_at"]).utcoffset() is not None
        await asyncio.sleep(max(0.0, exp + 1.5 - time.time()))
        await client.call("heartbeat")
        assert len(client.received("auth:expiring")) == 1


async def test_new_claims_replace_the_threads(stack: Stack):
    user, old, both, new = unique("u"), unique("th"), unique("th"), unique("th")

    def token(*threads: str) -> str:
        return stack.sign(user_id=user, role="customer", threads=list(threads))

    async with stack.client("portal", token=token(old, both)) as client:
        for thread in (old, both):
            await client.call("join:thread", {"thread_id": thread})
        assert (await client.refused("join:thread", {"thread_id": new}))["code"] == "forbidden"
        await client.call("auth:refresh", {"token": token(both, new)})
        left = await client.expect("room:left")
        assert left["data"] == {"room": f"thread:{old}", "reason": "forbidden"}
        await client.call("join:thread", {"thread_id": new})
        for thread in (old, both, new):
            stack.add("thread:message", {"thread_id": thread, "message_id": 1})
        await client.expect("thread:message", thread_id=new)
        await client.expect("thread:message", thread_id=both)
        await client.nothing("thread:message", "room:left", within=0.1)


async def test_new_name_is_used_from_then_on(stack: Stack):
    user, thread = unique("u"), unique("th")
    async with (
        stack.client("hub", token=stack.sign(user_id=user, name="Ana")) as client,
        stack.client("hub") as other,
    ):
        for one in (client, other):
            await one.call("join:thread", {"thread_id": thread})
        await client.call("auth:refresh", {"token": stack.sign(user_id=user, name="Ana B.")})
        await client.call("typing:start", {"thread_id": thread})
        assert (await other.expect("thread:typing"))["data"]["name"] == "Ana B."


@pytest.fixture(scope="module")
def lenient(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A token stays good for two seconds after it expired."""
    with Stack(tmp_path_factory.mktemp("lenient"), redis_url, JWT_LEEWAY="2") as stack:
        yield stack.start_all()


async def test_leeway_is_added_to_the_end(lenient: Stack):
    exp = in_seconds(4)
    async with lenient.client("hub", token=lenient.sign(user_id=unique("u"), exp=exp)) as client:
        assert await client.expect_close() == 4401
        assert time.time() >= exp + 2
