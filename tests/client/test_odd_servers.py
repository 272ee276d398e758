"""Servers that do not keep to the protocol, or announce what cannot be: the client says so, waits, and goes on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from realtime.client import CallFailed
from tests.client.scripted import Bucket, ScriptedServer, joined, reading, resumes
from tests.e2e.harness import PATIENCE, eventually


@pytest.mark.parametrize(
    "ready",
    [
        *({}, {"connection_id": "c1"}, {"rooms": {}}, {"connection_id": "c1", "rooms": 7}),
        *({"connection_id": "c1", "rooms": None}, {"connection_id": "c1", "rooms": ["user:7"]}),
    ],
)
async def test_first_frame_that_lacks_something_is_a_lost_connection(
    server: ScriptedServer, ready: dict[str, Any]
):
    server.script.append("hang")
    async with reading(server) as reader:
        await (await server.visit(1)).say("connection:ready", ready)
        assert "not of this protocol" in (await reader.heard("connection:lost")).data["reason"]
        await server.visit(2)
        await reader.client.call("heartbeat")


@pytest.mark.parametrize(
    "frame",
    [
        {"event": "room:left", "data": {}},
        {"event": "room:left", "data": {"room": ["thread:42"]}},
        {"event": "thread:message", "room": ["thread:42"], "offset": "1", "data": {}},
    ],
)
async def test_frame_that_makes_no_sense_is_a_lost_connection(server: ScriptedServer, frame: dict[str, Any]):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        await visit.websocket.send(json.dumps(frame))
        assert "not of this protocol" in (await reader.heard("connection:lost")).data["reason"]
        await reader.heard("connection:ready", 2)


@pytest.mark.parametrize("answer", [{"room": "thread:42"}, {"offset": None, "code": None}])
async def test_answer_to_a_join_that_makes_no_sense_is_no_end(server: ScriptedServer, answer: dict[str, Any]):
    server.answers["join:thread"] = answer
    async with reading(server) as reader:
        reader.client.join("42")
        await eventually(lambda: reader.named("connection:lost", "room:left"))
        assert not reader.task.done()


@pytest.mark.parametrize("interval", [0, "30", 1e300], ids=repr)
async def test_heartbeat_interval_that_is_none_means_no_heartbeats(server: ScriptedServer, interval: Any):
    server.heartbeat_interval = interval
    async with reading(server) as reader:
        visit = await server.visit(1)
        await reader.client.connected()
        await asyncio.sleep(0.2)
        await reader.client.call("presence:online")
        assert visit.events("heartbeat") == []


async def test_heartbeat_interval_of_nearly_nothing_is_no_flood(server: ScriptedServer):
    server.heartbeat_interval = 1e-9
    async with reading(server) as reader:
        visit = await server.visit(1)
        await eventually(lambda: visit.events("heartbeat"))
        await reader.client.call("presence:online")
        assert len(visit.events("heartbeat")) < 20


async def test_time_to_wait_that_is_none_is_a_short_one(server: ScriptedServer):
    refusal = {"code": "unavailable", "message": "try again", "retry_after": "soon"}
    answers = iter([refusal, {"room": "thread:42", "offset": "200"}])
    server.answers["join:thread"] = lambda data: next(answers)
    async with reading(server) as reader:
        await joined(server, reader)
        assert reader.named("room:left", "connection:lost") == []


# --- Pacing ------------------------------------------------------------------------------------------


async def test_call_that_gives_up_while_it_waits_for_its_turn_is_never_sent(server: ScriptedServer):
    server.limits, server.bucket = {"rate": 2, "burst": 1}, Bucket(rate=2, burst=2)
    async with reading(server, ack_timeout=0.05) as reader:
        visit = await server.visit(1)
        await reader.client.connected()
        await reader.client.send("presence:online")
        cancelled = asyncio.create_task(reader.client.call("ticket:note", {"text": "cancelled"}))
        with pytest.raises(CallFailed, match="timeout"):
            await reader.client.call("ticket:note", {"text": "given up"})
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await reader.client.send("ticket:note", {"text": "sent"})
        assert await eventually(lambda: visit.events("ticket:note")) == [{"text": "sent"}]


async def test_client_that_waits_for_its_turn_ends_at_once(server: ScriptedServer):
    server.limits = {"rate": 0.001, "burst": 1}
    async with reading(server) as reader:
        await reader.client.connected()
        waiting = [asyncio.create_task(reader.client.send("presence:online")) for _ in range(3)]
        calling = asyncio.create_task(reader.client.call("presence:online"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(PATIENCE):
            await reader.client.__aexit__(None, None, None)
            await asyncio.gather(*waiting, return_exceptions=True)
            with pytest.raises(CallFailed, match="closed"):
                await calling
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("client")]


async def test_rooms_whose_resume_is_larger_than_a_frame_are_resumed_in_several(server: ScriptedServer):
    server.limits = {"frame_bytes": 400}
    async with reading(server) as reader:
        for number in range(30):
            reader.client.join(f"a-thread-with-a-long-name-{number}")
        await reader.heard("room:joined", 30)
        (await server.visit(1)).drop()
        await reader.heard("connection:ready", 2)
        back = await server.visit(2)
        await eventually(lambda: len(reader.client.rooms) == 31)
        asked = [room for each in back.events("resume") for room in each["rooms"]]
        assert len(asked) == len(set(asked)) == 31
        await back.message("201", "thread:a-thread-with-a-long-name-29")
        await reader.heard("thread:message")
        assert reader.named("room:left", "room:gap", "error") == []
        back.drop()
        assert len(await resumes(await server.visit(3))) < 31
