"""Typing and cursors."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.exceptions import RedisError

from realtime.connections import ephemeral
from realtime.connections.consumer import NamespaceConsumer
from realtime.connections.registry import ConnectionRegistry
from realtime.tasks import serial
from tests.inprocess import connected

pytestmark = pytest.mark.usefixtures("process")


async def test_stopping_without_having_started_is_not_announced():
    async with connected("hub", "7") as ana, connected("hub", "8") as bob:
        for one in (ana, bob):
            await one.call("join:thread", {"thread_id": 42})
        await ana.call("typing:stop", {"thread_id": 42})
        await bob.nothing("thread:typing")


@pytest.mark.parametrize("how", ["disconnect", "leave", "silence"])
async def test_typist_who_goes_is_reported_as_stopped(how: str, monkeypatch):
    monkeypatch.setattr(ephemeral, "TYPING_SECONDS", 0.1 if how == "silence" else 3600.0)
    async with connected("hub", "8") as bob:
        await bob.call("join:thread", {"thread_id": 42})
        async with connected("hub", "7") as ana:
            await ana.call("join:thread", {"thread_id": 42})
            await ana.call("typing:start", {"thread_id": 42})
            await bob.expect("thread:typing", typing=True)
            if how == "leave":
                await ana.call("leave:thread", {"thread_id": 42})
            if how == "silence":
                await bob.expect("thread:typing", typing=False)
        if how != "silence":
            await bob.expect("thread:typing", typing=False)
        await bob.nothing("thread:typing")


async def test_typist_leaves_also_when_the_stop_cannot_be_announced(monkeypatch):
    async with connected("hub", "7") as ana:
        await ana.call("join:thread", {"thread_id": 42})
        await ana.call("typing:start", {"thread_id": 42})

        monkeypatch.setattr(NamespaceConsumer, "emit", AsyncMock(side_effect=RedisError("away")))
        await ana.call("leave:thread", {"thread_id": 42})
        assert (await ana.refused("typing:start", {"thread_id": 42}))["code"] == "not_in_room"


async def test_typist_who_is_expelled_is_reported_as_stopped(monkeypatch):
    monkeypatch.setattr(ephemeral, "TYPING_SECONDS", 3600.0)
    async with connected("hub", "8") as bob, connected("hub", "7") as ana:
        for one in (ana, bob):
            await one.call("join:thread", {"thread_id": 42})
        await ana.call("typing:start", {"thread_id": 42})
        await bob.expect("thread:typing", typing=True)
        [theirs] = ConnectionRegistry.current().connections_of("hub", "7")
        theirs.expel("thread:42", "expelled")
        await bob.expect("thread:typing", typing=False)


@pytest.mark.parametrize(("pause", "announced"), [(0.0, 4), (60.0, 1)])
async def test_repeated_start_keeps_the_typist_typing_and_is_not_announced_too_often(
    monkeypatch, pause: float, announced: int
):
    timers: list[asyncio.TimerHandle] = []

    def call_later(*arguments: Any) -> asyncio.TimerHandle:
        timers.append(asyncio.get_running_loop().call_later(*arguments))
        return timers[-1]

    monkeypatch.setattr(ephemeral, "TYPING_PAUSE", pause)
    async with connected("hub", "8") as bob, connected("hub", "7") as ana:
        for one in (ana, bob):
            await one.call("join:thread", {"thread_id": 42})
        monkeypatch.setattr(serial, "running_loop", lambda: SimpleNamespace(call_later=call_later))
        for _ in range(4):
            await ana.call("typing:start", {"thread_id": 42})
        assert [timer.cancelled() for timer in timers] == [True, True, True, False]
        await ana.call("typing:stop", {"thread_id": 42})
        seen = [(await bob.expect("thread:typing"))["data"]["typing"] for _ in range(announced + 1)]
        assert seen == [True] * announced + [False]


async def test_cursor_without_position_is_refused():
    async with connected() as ana:
        await ana.call("join:thread", {"thread_id": 42})
        assert (await ana.refused("cursor:move", {"thread_id": 42}))["message"] == "position: required"
