"""Orders that take something away: they reach clients that read slowly, and instances that were not there.

From the moment in which an instance receives the order, not one more byte of what it concerns is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import jwt
import pytest

from bench.machine import cpu_seconds
from tests.e2e.harness import free_port, unique
from tests.faults.crowd import Member, Product, running
from tests.faults.network import Network
from tests.faults.proxy import to_socket

SIZE = 60_000
COUNT = 200
ON_ITS_WAY = 1_000_000
"""More than the buffers of transport and kernels hold for a narrow member; a twelfth of the replay."""


@dataclass
class Replay:
    """A customer who reads a long replay slowly, and another tab of theirs that reads everything at once."""

    product: Product
    thread: str
    user_id: str
    token: str
    slow: Member
    quick: Member
    elsewhere: str
    """A thread that only the slow one is in."""

    @property
    def room(self) -> str:
        return f"thread:{self.thread}"


@asynccontextmanager
async def slow_replay(product: Product, **claims: Any) -> AsyncIterator[Replay]:
    with product.visited():
        thread, elsewhere, user_id = unique("th"), unique("el"), unique("u")
        quick = await product.member(product.customer(thread, elsewhere, user_id=user_id))
        await quick.call("join:thread", {"thread_id": thread})
        product.say(thread, "first")
        since = (await quick.event("thread:message", '"first"'))["offset"]
        product.say(thread, *[f"m{number}" for number in range(COUNT)], size=SIZE)
        await quick.event("thread:message", f'"m{COUNT - 1}"')
        # The token is issued here, so that one with a short lifetime does not expire before the replay begins.
        token = product.customer(thread, elsewhere, user_id=user_id, **claims)
        await quick.call("auth:refresh", {"token": token})
        slow = await product.member(token, narrow=True)
        await slow.call("join:thread", {"thread_id": elsewhere})
        answer = await slow.call("join:thread", {"thread_id": thread, "since": since})
        assert answer["missed"] == COUNT
        await slow.event("thread:message", '"m0"')  # the replay is under way
        slow.stop_reading()
        yield Replay(product, thread, user_id, token, slow, quick, elsewhere)


async def disconnect(replay: Replay) -> None:
    replay.product.stack.add("user:disconnect", {"user_id": replay.user_id, "namespace": "portal"})


async def revoke(replay: Replay) -> None:
    claims = jwt.decode(replay.token, options={"verify_signature": False})
    replay.product.stack.add("token:revoke", {"jti": claims["jti"], "exp": claims["exp"]})


async def let_expire(replay: Replay) -> None:
    """It does by itself."""


@pytest.mark.parametrize(
    ("order", "code", "claims"),
    [(disconnect, 4403, {}), (revoke, 4403, {}), (let_expire, 4401, {"ttl": 15})],
    ids=["user:disconnect", "token:revoke", "expiry"],
)
async def test_slow_replay_ends_with_the_right_to_it(
    product: Product, order: Callable[[Replay], Awaitable[None]], code: int, claims: dict[str, Any]
):
    async with slow_replay(product, **claims) as replay:
        await order(replay)
        assert await replay.quick.over() == code, "the order did not reach the instance"
        before = replay.slow.received_bytes
        replay.slow.read_on()
        await replay.slow.over()
        further = replay.slow.received_bytes - before
        assert further < ON_ITS_WAY, f"{further} further bytes"
        assert replay.slow.closed_with == code


async def test_slow_replay_of_a_thread_ends_when_it_is_revoked_and_the_connection_goes_on(product: Product):
    async with slow_replay(product) as replay:
        replay.product.stack.add("thread:revoke", {"thread_id": replay.thread, "user_id": replay.user_id})
        await replay.quick.event("room:left", replay.room)
        before = replay.slow.received_bytes
        replay.slow.read_on()
        await replay.slow.event("room:left", replay.room)
        further = replay.slow.received_bytes - before
        assert further < ON_ITS_WAY, f"{further} further bytes"
        replay.product.say(replay.thread, "secret")
        replay.product.say(replay.elsewhere, "public")
        await replay.slow.event("thread:message", '"public"')
        await replay.slow.call("heartbeat")
        assert "secret" not in replay.slow.messages(replay.room)


# --- An instance that is not there when the order comes ----------------------------------------------


@dataclass
class Concerned:
    """A member of the thread, and the order that takes the membership away."""

    order: str
    user_id: str
    token: str
    member: Member

    def data(self, thread: str) -> dict[str, Any]:
        """What the order says."""
        if self.order == "token:revoke":
            claims = jwt.decode(self.token, options={"verify_signature": False})
            return {"jti": claims["jti"], "exp": claims["exp"]}
        if self.order == "user:disconnect":
            return {"user_id": self.user_id, "namespace": "hub"}
        return {"user_id": self.user_id, "thread_id": thread}


async def enter(product: Product, thread: str, order: str) -> Concerned:
    user_id = unique("u")
    is_customer = order in {"thread:revoke", "token:revoke"}
    token = (
        product.customer(thread, user_id=user_id)
        if is_customer
        else product.stack.token(user_id, "attendant")
    )
    member = await product.member(token, "portal" if is_customer else "hub")
    await member.call("join:thread", {"thread_id": thread})
    return Concerned(order, user_id, token, member)


ORDERS = ["user:disconnect", "token:revoke", "thread:expel", "thread:revoke"]
Absence = Callable[[Product, Network, Callable[[], Awaitable[None]]], Awaitable[None]]


async def is_cut_off(product: Product, network: Network, during: Callable[[], Awaitable[None]]) -> None:
    await network.cut()
    await during()
    network.mend()


async def is_suspended(product: Product, network: Network, during: Callable[[], Awaitable[None]]) -> None:
    product.sockets.signal(SIGSTOP)
    await during()
    product.sockets.signal(SIGCONT)


@pytest.mark.parametrize("absence", [is_cut_off, is_suspended], ids=lambda absence: absence.__name__)
async def test_orders_that_an_instance_missed_precede_what_was_published_after_them(
    tmp_path: Path, absence: Absence
):
    with Product(tmp_path) as product:
        async with Network(to_socket(product.server.socket)) as network:
            through = {"REDIS_URL": f"redis://127.0.0.1:{network.port}/0"}
            await asyncio.to_thread(product.start, sockets=through)
            thread = unique("th")
            concerned = [await enter(product, thread, order) for order in ORDERS]
            other = await enter(product, thread, "none")
            product.say(thread, "before")
            for each in (*concerned, other):
                await each.member.event("thread:message", '"before"')

            async def give_the_orders() -> None:
                for each in concerned:
                    product.stack.add(each.order, each.data(thread))
                await product.delivered(product.say(thread, "after"))

            await absence(product, network, give_the_orders)
            await other.member.event("thread:message", '"after"')
            for each in concerned:
                if each.order.startswith("thread:"):
                    await each.member.event("room:left", thread)
                    await each.member.call("heartbeat")
                else:
                    assert await each.member.over() == 4403, each.order
            seen = {each.order: each.member.messages(f"thread:{thread}") for each in concerned}
            assert seen == {order: ["before"] for order in ORDERS}


@pytest.mark.parametrize("event", ["user:disconnect", "thread:expel"])
async def test_order_is_kept_for_an_instance_that_is_away_for_long(product: Product, event: str):
    """What tells an instance that comes back of the order outlives an hour without it."""
    with product.visited():
        before = set(product.stack.redis.scan_iter(f"*{product.stack.prefix}*"))
        user_id = unique("u")
        data = {"user_id": user_id, "thread_id": "1", "namespace": "hub"}
        await product.delivered(product.stack.add(event, data))
        found = set(product.stack.redis.scan_iter(f"*{product.stack.prefix}*")) - before
        lifetimes = {key: product.stack.redis.ttl(key) for key in found if user_id in key}
        assert lifetimes, found
        assert all(each == -1 or each > 3600 for each in lifetimes.values()), lifetimes


async def test_token_is_revoked_whatever_the_clock_of_the_bridge_says(tmp_path: Path):
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert libraries, "needs the Debian package faketime"
    with Product(tmp_path) as product:
        ahead = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME": "+2h",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        await asyncio.to_thread(product.start, bridge=ahead)
        token = product.customer("1", ttl=3600)
        member = await product.member(token)
        claims = jwt.decode(token, options={"verify_signature": False})
        product.stack.add("token:revoke", {"jti": claims["jti"], "exp": claims["exp"]})
        assert await member.over() == 4403
        refused = await product.stack.handshake("/portal/", token=token)
        product.stack.assert_refused(refused, 401, "token_invalid")


async def test_older_revoke_that_is_replayed_does_not_undo_a_newer_grant(tmp_path: Path):
    """A bridge may die between the work of an entry and its note of it; the next one does that work again."""
    async with running(tmp_path) as product:
        thread, user_id = unique("th"), unique("u")
        right = {"thread_id": thread, "user_id": user_id}
        cursors = product.stack.key("cursors")
        stream = product.stack.key("stream")
        product.stack.add("thread:revoke", right)
        await product.delivered(product.stack.add("thread:grant", right))
        member = await product.member(product.customer(user_id=user_id))
        witness = await product.member(product.customer(thread))
        for each in (member, witness):
            await each.call("join:thread", {"thread_id": thread})
        product.bridge.stop(SIGKILL)
        product.stack.redis.hset(cursors, stream, "0-0")
        product.bridge = await asyncio.to_thread(product.stack.start, "runbridge")
        product.say(thread, "after")
        await witness.event("thread:message", '"after"')
        await member.call("heartbeat")
        assert not [text for text in member.texts if text.startswith(b'{"event":"room:left"')]
        assert member.messages(f"thread:{thread}") == ["after"]


async def test_revoking_tokens_costs_no_look_at_every_connection(tmp_path: Path):
    """Two instances receive the same orders; one has far more connections than the other."""
    async with running(tmp_path) as product:
        port = free_port()
        small = await asyncio.to_thread(product.start_instance, port)
        await product.crowd(1500, product.customer("1"))
        canaries = []
        for where in (product.stack.port, port):
            token = product.customer("1")
            canaries.append((await product.member(token, port=where), token))
        before = [cpu_seconds([process.pid]) for process in (product.sockets, small)]
        with product.stack.redis.pipeline(transaction=True) as pipeline:
            for _ in range(2000):
                order = {"event": "token:revoke", "data": {"jti": unique("j"), "exp": 4_000_000_000}}
                pipeline.xadd(product.stack.key("stream"), {"message": json.dumps(order)})
            pipeline.execute()
        for member, token in canaries:
            claims = jwt.decode(token, options={"verify_signature": False})
            product.stack.add("token:revoke", {"jti": claims["jti"], "exp": claims["exp"]})
            assert await member.over() == 4403
        after = [cpu_seconds([process.pid]) for process in (product.sockets, small)]
        large_took, small_took = (b - a for a, b in zip(before, after, strict=True))
        assert large_took < 3 * small_took, (large_took, small_took)
