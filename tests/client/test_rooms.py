"""Entering rooms, resuming them, and reporting gaps."""

from __future__ import annotations

import asyncio

import pytest

from realtime.client import CallFailed
from tests.client.scripted import (
    ROOM,
    ScriptedServer,
    joined,
    reading,
    resumed,
    resumes,
)
from tests.e2e.harness import eventually


async def test_rooms_one_is_in_are_those_of_this_connection(server: ScriptedServer):
    async with reading(server) as reader:
        client = reader.client
        assert client.rooms == set()
        visit = await joined(server, reader)
        assert client.rooms == {"user:7", ROOM}
        server.answers["resume"] = None
        visit.drop()
        await reader.heard("connection:ready", 2)
        assert client.rooms == set()  # on the way, but not there yet
        await (await server.visit(2)).answer("resume", resumed({"rooms": {"user:7": "100", ROOM: "200"}}))
        await eventually(lambda: client.rooms == {"user:7", ROOM})
        client.leave("42")
        assert client.rooms == {"user:7"}


async def test_gap_of_a_resume_is_said_before_what_is_new(server: ScriptedServer):
    lost = {"rooms": {ROOM: {"recovered": False, "offset": "300", "missed": 0}}}
    server.answers["resume"] = None
    async with reading(server) as reader:
        (await joined(server, reader)).drop()
        back = await server.visit(2)
        await resumes(back)
        await asyncio.gather(back.answer("resume", lost), back.message("301"))
        await reader.heard("thread:message")
        assert [(event.name, event.data) for event in reader.events[-2:]] == [
            ("room:gap", {"room": ROOM, "reason": "not recovered"}),
            ("thread:message", {"message_id": "301"}),
        ]


async def test_answer_to_a_resume_may_take_longer_than_a_call(server: ScriptedServer):
    server.answers["resume"] = None
    async with reading(server, ack_timeout=0.05) as reader:
        (await joined(server, reader)).drop()
        back = await server.visit(2)
        await resumes(back)
        server.answers["presence:away"] = None
        with pytest.raises(CallFailed, match="timeout"):
            await reader.client.call("presence:away")
        await back.answer("resume", {"rooms": {ROOM: {"recovered": False, "offset": "300", "missed": 0}}})
        await reader.heard("room:gap")


@pytest.mark.parametrize("room", ["user:7", ROOM])
async def test_room_with_a_gap_is_resumed_from_before_it_so_that_no_loss_goes_unsaid(
    server: ScriptedServer, room: str
):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        await visit.message("205", room)
        await visit.say("room:gap", {"room": room, "reason": "lost"})
        await reader.heard("room:gap")
        visit.drop()
        back = await server.visit(2)
        assert (await resumes(back))[room] == "205"


async def test_thread_left_while_it_could_not_be_resumed_may_be_joined_anew(server: ScriptedServer):
    server.answers["resume"] = {"code": "unavailable", "message": "Redis is down", "retry_after": 0.01}
    async with reading(server) as reader:
        (await joined(server, reader)).drop()
        back = await server.visit(2)
        await resumes(back)
        for call in (reader.client.leave, reader.client.join):
            call("42")
        await reader.heard("room:joined", 2)
        await back.message("301")
        await reader.heard("thread:message")
        server.answers["resume"] = resumed
        await eventually(lambda: reader.client.rooms == {"user:7", ROOM})
        assert back.events("resume")[-1]["rooms"] == {"user:7": "100"}


async def test_thread_is_entered_once_and_left_with_the_last_use_of_it(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        for call in (reader.client.join, reader.client.leave):
            call("42")
        await reader.client.call("heartbeat")
        assert (len(visit.events("join:thread")), visit.events("leave:thread")) == (1, [])
        for _ in range(2):
            reader.client.leave("42")
        await reader.client.call("heartbeat")
        assert visit.events("leave:thread") == [{"thread_id": "42"}]


async def test_rooms_whose_frames_are_larger_than_the_server_takes_are_left(server: ScriptedServer):
    server.limits = {"frame_bytes": 60, "rate": 0, "burst": 0}
    async with reading(server) as reader:
        reader.client.join("42")
        reader.client.join("43")
        await reader.heard("room:left", 2)
        refused = {(event.data["room"], event.data["reason"]) for event in reader.named("room:left")}
        assert {("thread:42", "too_large"), ("thread:43", "too_large")} <= refused
        assert reader.client.connection_id == "c1"
