"""Sending, calling, and what the server answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from realtime.client import CallFailed, Client, Denied
from tests.client.scripted import (
    Flood,
    Refusal,
    ScriptedServer,
    reading,
)
from tests.e2e.harness import eventually


def flood(client: Client) -> Flood:
    """The client sends more than the network takes."""
    return Flood(lambda _: client.send("cursor:move", {"position": "x" * 50_000}))


async def test_frames_are_sent_in_the_order_in_which_they_were_asked_for(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
        visit = await server.visit(1)
        reader.client.join("42")
        await reader.client.send("typing:start", {"thread_id": "42"})
        reader.client.leave("42")
        reader.client.join("42")
        await reader.client.call("heartbeat")
        events = [frame["event"] for frame in visit.sent]
        assert events == ["join:thread", "typing:start", "leave:thread", "join:thread", "heartbeat"]


async def test_call_has_the_data_of_its_acknowledgement_or_the_error(server: ScriptedServer):
    server.answers["presence:away"] = {"code": "rate_limited", "message": "too fast", "retry_after": 2.0}
    server.answers["ticket:watch"] = {"watching": True}
    async with reading(server) as reader:
        await reader.client.connected()
        assert await reader.client.call("ticket:watch") == {"watching": True}
        with pytest.raises(CallFailed, match="too fast") as failed:
            await reader.client.call("presence:away")
        assert (failed.value.code, failed.value.retry_after) == ("rate_limited", 2.0)


async def test_more_than_the_network_takes_is_waited_for(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
        visit = await server.visit(1)
        visit.websocket.transport.pause_reading()
        sending = flood(reader.client)
        await eventually(sending.is_stuck)
        visit.websocket.transport.resume_reading()
        await sending.task
        await eventually(lambda: len(visit.events("cursor:move")) == Flood.size)


async def test_no_call_waits_for_a_connection_that_broke_while_it_took_nothing(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
        visit = await server.visit(1)
        visit.websocket.transport.pause_reading()
        sending = flood(reader.client)
        await eventually(sending.is_stuck)
        visit.drop()
        await sending.task


async def test_what_is_no_frame_is_passed_over_and_not_quoted(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
):
    wrong = (
        '{"event": ["ack"]}',
        '{"event": 5}',
        '{"event": "x", "data": [1]}',
        '"ack"',
        "what is a-secret?",
    )
    async with reading(server) as reader:
        visit = await server.visit(1)
        for odd in ("{", "[]", "7", '{"data": {}}', b"\xff", *wrong):
            await visit.websocket.send(odd)
        await visit.message("1")
        await reader.heard("thread:message")
        assert reader.named("connection:lost") == []
    assert "a-secret" not in caplog.text


async def test_frame_without_data_has_none(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await server.visit(1)
        await visit.websocket.send('{"event": "queue:emptied"}')
        assert (await reader.heard("queue:emptied")).data == {}


# --- Waiting for a connection ------------------------------------------------------------------------


async def test_call_waits_for_a_connection_in_the_order_of_events(server: ScriptedServer):
    server.script.append("hang")
    async with reading(server) as reader:
        visit = await server.visit(1)
        await reader.client.send("presence:online")
        calling = asyncio.create_task(reader.client.call("presence:away"))
        typing = asyncio.create_task(reader.client.call("typing:start", {"thread_id": 42}))
        await asyncio.sleep(0)
        await reader.client.send("presence:online")
        visit.go.set()
        assert await asyncio.gather(calling, typing) == [{}, {}]
        names = [
            frame["event"] for frame in visit.sent if frame["event"].startswith(("presence:", "typing:"))
        ]
        assert names == ["presence:online", "presence:away", "typing:start", "presence:online"]


async def test_call_that_gives_up_waiting_for_a_connection_is_never_sent(server: ScriptedServer):
    server.script.append("hang")
    async with reading(server, ack_timeout=0.05, queue_size=1) as reader:
        visit = await server.visit(1)
        for _ in range(2):
            with pytest.raises(CallFailed, match="timeout"):
                await reader.client.call("presence:away")
        calling = asyncio.create_task(reader.client.call("presence:away"))
        await asyncio.sleep(0)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await reader.client.send("presence:online")
        with pytest.raises(CallFailed, match="queue_full"):
            await reader.client.call("presence:away")
        visit.go.set()
        await eventually(lambda: visit.events("presence:online"))
        assert visit.events("presence:away") == []


async def test_call_that_waits_for_a_connection_fails_when_there_will_be_none(server: ScriptedServer):
    server.script.extend([Refusal(503, {"Retry-After": "0"}), "drop", Refusal(403)])
    async with reading(server) as reader:
        calling = asyncio.create_task(reader.client.call("presence:away"))
        with pytest.raises(CallFailed, match="closed") as failed:
            await calling
        assert failed.value.code == "closed"
        with pytest.raises(Denied):
            await reader.end()
        with pytest.raises(CallFailed, match="closed"):
            await reader.client.call("presence:away")


# --- Limits ------------------------------------------------------------------------------------------


async def test_frame_larger_than_the_server_takes_is_refused_before_it_is_sent(server: ScriptedServer):
    server.limits = {"frame_bytes": 300}
    async with reading(server) as reader:
        visit = await server.visit(1)
        await reader.client.connected()
        spare = 300 - len(json.dumps({"event": "ticket:note", "data": {"text": ""}, "id": 1}))
        await reader.client.call("ticket:note", {"text": "x" * spare})
        with pytest.raises(CallFailed, match="has 301 bytes, and the server takes at most 300"):
            await reader.client.call("ticket:note", {"text": "x" * (spare + 1)})
        with pytest.raises(CallFailed, match="too_large"):
            await reader.client.send("ticket:note", {"text": "é" * 60})  # 6 bytes each, as it is sent
        assert len(visit.events("ticket:note")) == 1


async def test_event_that_waited_and_is_too_large_is_reported(server: ScriptedServer):
    server.limits = {"frame_bytes": 300}
    server.script.append("hang")
    async with reading(server) as reader:
        visit = await server.visit(1)
        await reader.client.send("ticket:note", {"text": "x" * 300})
        await reader.client.send("presence:online")
        calling = asyncio.create_task(reader.client.call("ticket:note", {"text": "x" * 300}))
        await asyncio.sleep(0)
        visit.go.set()
        with pytest.raises(CallFailed, match="too_large"):
            await calling
        assert (await reader.heard("error")).data["code"] == "too_large"
        await eventually(lambda: visit.events("presence:online"))


ODD = (0, -1, "50", None, True, float("nan"), float("inf"), 10**400, [1])


@pytest.mark.parametrize(
    "limits",
    [None, {}, [50], *(dict.fromkeys(("frame_bytes", "rate", "burst"), odd) for odd in ODD)],
    ids=str,
)
async def test_server_without_limits_gets_frames_of_any_size_as_fast_as_they_come(
    server: ScriptedServer, limits: Any
):
    server.limits = limits
    async with reading(server) as reader:
        visit = await server.visit(1)
        await reader.client.connected()
        await asyncio.gather(*(reader.client.call("presence:online", {"x": "x" * 9000}) for _ in range(150)))
        assert len(visit.events("presence:online")) == 150
