"""Access is taken away at the very moment in which a user connects, on several servers at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator

import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.harness import PATIENCE, Stack, eventually, free_port, unique


@pytest.fixture(scope="module")
def cluster(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, list[int]]]:
    """Two socket servers and a bridge."""
    with Stack(tmp_path_factory.mktemp("races"), redis_url) as stack:
        ports = [stack.port, free_port()]
        stack.start("runbridge")
        for port in ports:
            stack.start_sockets(port)
        yield stack, ports


async def test_revoked_customer_gets_nothing_whenever_they_join(cluster: tuple[Stack, list[int]]):
    stack, ports = cluster
    chance = random.Random(7)
    for _ in range(25):
        thread, user = unique("th"), unique("c")
        async with (
            stack.client("portal", user, "customer", threads=[thread], port=chance.choice(ports)) as client,
            stack.client("hub", port=chance.choice(ports)) as attendant,
        ):
            await attendant.call("join:thread", {"thread_id": thread})
            joining = asyncio.create_task(client.send("join:thread", {"thread_id": thread}, id="join"))
            await asyncio.sleep(chance.uniform(0, 0.01))
            stack.add("thread:revoke", {"thread_id": thread, "user_id": user})
            await joining
            stack.add("thread:message", {"thread_id": thread, "message_id": "after"})
            await attendant.expect("thread:message", message_id="after")
            # What was said before this answer came before it.
            await client.call("heartbeat")
            assert client.received("thread:message") == []
            refused = await client.refused("join:thread", {"thread_id": thread})
            assert refused["code"] == "forbidden"


async def test_revoked_token_opens_nothing_that_stays(cluster: tuple[Stack, list[int]]):
    stack, ports = cluster
    chance = random.Random(8)
    for _ in range(5):
        token = stack.token(unique("u"), "attendant")
        claims = jwt.decode(token, options={"verify_signature": False})
        ends: list[int | None] = []

        async def come(token: str = token, ends: list[int | None] = ends) -> None:
            await asyncio.sleep(chance.uniform(0, 0.05))
            try:
                async with connect(
                    stack.url("hub", port=chance.choice(ports)),
                    additional_headers={"Authorization": f"Bearer {token}"},
                ) as websocket:
                    with contextlib.suppress(ConnectionClosed):
                        async for _ in websocket:
                            pass
                    ends.append(websocket.close_code)
            except InvalidStatus as refused:
                ends.append(refused.response.status_code)

        async with asyncio.timeout(PATIENCE):
            coming = [asyncio.create_task(come()) for _ in range(20)]
            await asyncio.sleep(0.025)
            stack.add("token:revoke", {"jti": claims["jti"], "exp": claims["exp"]})
            await asyncio.gather(*coming)
        assert set(ends) <= {401, 4403}


async def test_disconnected_user_keeps_only_what_was_opened_after(cluster: tuple[Stack, list[int]]):
    for seed in range(5):
        await _disconnect_amid_handshakes(*cluster, random.Random(seed))


async def _disconnect_amid_handshakes(stack: Stack, ports: list[int], chance: random.Random) -> None:
    user = unique("u")
    over = asyncio.Event()
    opened: list[tuple[float, asyncio.Task[int | None]]] = []

    async def come() -> None:
        await asyncio.sleep(chance.uniform(0, 0.1))
        with contextlib.suppress(InvalidStatus):  # disconnected while it was under way
            async with stack.client("hub", user, port=chance.choice(ports)) as client:
                opened.append((time.time(), asyncio.create_task(client.expect_close())))
                await over.wait()

    coming = [asyncio.create_task(come()) for _ in range(12)]
    await asyncio.sleep(0.05)
    before = time.time()
    entry = stack.add("user:disconnect", {"user_id": user, "namespace": "hub"})
    await eventually(lambda: _is_behind(stack, entry))
    earlier = [closing for at, closing in opened if at < before]
    await eventually(lambda: all(closing.done() for closing in earlier))
    assert {closing.result() for closing in earlier} <= {4403}
    async with stack.client("hub", user) as late:
        await late.call("heartbeat")
    over.set()
    await asyncio.gather(*coming, return_exceptions=True)
    await asyncio.gather(*(closing for _, closing in opened), return_exceptions=True)


def _is_behind(stack: Stack, entry: str) -> bool:
    """Whether the bridge has dealt with this entry."""
    cursor = stack.redis.hget(stack.key("cursors"), stack.key("stream"))
    return cursor is not None and tuple(map(int, cursor.split("-"))) >= tuple(map(int, entry.split("-")))
