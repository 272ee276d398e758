"""Bridges inside socket servers: they deliver, take over from each other, and leave with their process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import Client, Process, Stack, eventually, free_port, unique
from tests.e2e.test_exactly_once import Conversation, leader

INSIDE = {"REALTIME_EMBEDDED_BRIDGE": "1"}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Stack]:
    """A Redis of its own, and no process yet."""
    with EmbeddedRedis() as server, Stack(tmp_path, server.url) as stack:
        yield stack


def start(stack: Stack, port: int | None = None, **env: str) -> Process:
    return stack.start_sockets(port, **INSIDE, **env)


def messages(client: Client, room: str) -> list[str]:
    return [
        frame["data"]["message_id"] for frame in client.received("thread:message") if frame["room"] == room
    ]


def leads(stack: Stack) -> bool:
    return stack.redis.exists(stack.key("lease:bridge")) == 1


async def test_one_process_serves_delivers_and_sweeps(system: Stack):
    server = start(system, REALTIME_NODE_LEASE="1", REALTIME_GRACE_PERIOD="1")
    user = unique("u")
    async with system.client("hub") as watching:
        async with system.client("hub", user) as client:
            await client.call("join:thread", {"thread_id": "42"})
            await watching.expect("attendant:online", user_id=user)
            system.add("thread:message", {"thread_id": "42", "message_id": "1"})
            system.publish("thread:message", {"thread_id": "42", "message_id": "2"})
            for number in ("1", "2"):
                await client.expect("thread:message", message_id=number)
        await watching.expect("attendant:offline", user_id=user)
    assert (await system.http("GET", "/readyz")).status == 200
    assert b"realtime_bridge_leading 1.0" in (await system.http("GET", "/metrics")).body
    assert server.stop() == 0
    assert not leads(system)


async def test_project_chooses_it_in_its_settings_and_the_environment_has_the_last_word(system: Stack):
    (system.directory / "team_settings.py").write_text(
        "from realtime.settings.sockets import *\nREALTIME = {**REALTIME, 'EMBEDDED_BRIDGE': True}\n"
    )
    env: dict[str, str] = {
        "DJANGO_SETTINGS_MODULE": "team_settings",
        "PYTHONPATH": f"{system.directory}:{system.folder}",
    }
    chosen = system.start_sockets(None, **env)
    await eventually(lambda: leads(system))
    assert chosen.stop() == 0
    system.start_sockets(free_port(), **env, REALTIME_EMBEDDED_BRIDGE="0")
    assert not leads(system)


@pytest.mark.slow
async def test_workers_have_a_bridge_each_of_which_one_leads(system: Stack):
    server = system.start(
        "runsockets", str(system.folder / "manage.py"), "runsockets", "--workers", "2",
        SOCKETS_PORT=str(system.port), **INSIDE,
    )  # fmt: skip
    async with Conversation.of(system, seed=1) as conversation:
        await conversation.keep_talking(200)
        await conversation.assert_all_got_everything_once_and_in_order()
    body = (await system.http("GET", "/metrics")).body.decode()
    assert re.search(r"^realtime_bridge_leading 1\.0$", body, re.MULTILINE)
    assert server.stop() == 0
    assert not leads(system)


async def test_leader_that_is_killed_is_followed_by_another_process(system: Stack):
    """Its own clients come back to another server, and lack nothing; those of the other server notice nothing."""
    first = free_port()
    servers = [start(system, first), start(system)]
    thread = unique("th")
    room = f"thread:{thread}"
    async with Conversation.of(system, seed=2) as conversation:
        for number in range(100):
            system.add("thread:message", {"thread_id": thread, "message_id": str(number)})
        async with system.client("hub", port=first) as client:
            await client.call("join:thread", {"thread_id": thread})
            talking = asyncio.create_task(conversation.keep_talking(600))
            for number in range(100, 150):
                system.add("thread:message", {"thread_id": thread, "message_id": str(number)})
            await eventually(lambda: len(messages(client, room)) > 10)
            assert leader(servers) is servers[0]
            servers[0].stop(SIGKILL)
            await client.expect_close()
        for number in range(150, 200):
            system.add("thread:message", {"thread_id": thread, "message_id": str(number)})
        offset = client.received("thread:message")[-1]["offset"]
        async with system.client("hub", query="resume=1") as back:
            answer = await back.call("resume", {"rooms": {room: offset}})
            assert answer["rooms"][room]["recovered"] is True
            await eventually(lambda: messages(back, room)[-1:] == ["199"])
            got = [int(number) for number in (*messages(client, room), *messages(back, room))]
            assert got == list(range(got[0], 200))
        await talking
        await conversation.assert_all_got_everything_once_and_in_order()
    assert leader(servers) is servers[1]


@pytest.mark.slow
async def test_leaders_that_are_killed_again_and_again_lose_and_repeat_nothing(system: Stack):
    start(system)
    bridges = [start(system, free_port()) for _ in range(2)]
    async with Conversation.of(system, seed=3) as conversation:
        talking = asyncio.create_task(conversation.keep_talking(1500))
        while not talking.done():
            bridges.pop(0).stop(SIGKILL)
            bridges.append(await asyncio.to_thread(start, system, free_port()))
        await talking
        await conversation.assert_all_got_everything_once_and_in_order()


@pytest.mark.slow
async def test_leader_delivers_while_it_drains_and_a_standalone_bridge_follows(system: Stack):
    draining = start(system, free_port(), REALTIME_DRAIN_SECONDS="2")
    await eventually(lambda: leads(system))
    system.start_sockets()
    system.start("runbridge")
    async with Conversation.of(system, seed=4) as conversation:
        talking = asyncio.create_task(conversation.keep_talking(800))
        await eventually(lambda: len(conversation.clients[0].received("thread:message")) > 10)
        draining.signal(SIGTERM)
        await talking
        assert await asyncio.to_thread(draining.wait) == 0
        await conversation.keep_talking(100)
        await conversation.assert_all_got_everything_once_and_in_order()
    assert '"standing by"' in draining.output
