"""What a connection does one after the other, and that a mistake in it ends nothing else."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.exceptions import ConnectionError as RedisDown

from hub.consumers import HubConsumer
from realtime.asgi import application
from realtime.auth.issuing import issue
from realtime.connections.consumer import NamespaceConsumer
from realtime.connections.registry import ConnectionRegistry
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.payloads import Empty
from tests import inprocess
from tests.connections.support import consumer
from tests.inprocess import PATIENCE, Connection, bearer, connected, eventually

pytestmark = pytest.mark.usefixtures("process")


# --- Failures ----------------------------------------------------------------------------------------


async def test_peer_that_is_gone_is_no_error(monkeypatch, caplog):
    failed = asyncio.Event()

    async def cut_off(scope: Any, receive: Any, send: Any) -> None:
        async def write(message: Any) -> None:
            if message["type"] == "websocket.send" and '"ack"' in message["text"]:
                failed.set()
                raise BrokenPipeError
            await send(message)

        await application(scope, receive, write)

    monkeypatch.setattr(inprocess, "application", cut_off)
    ana = Connection("/portal/", headers=bearer(issue(user_id="7", role="customer")))
    await ana.handshake()
    await ana.send("heartbeat", id="1")
    await asyncio.wait_for(failed.wait(), PATIENCE)
    await ana.communicator.send_input({"type": "websocket.disconnect", "code": 1006})
    await asyncio.wait_for(asyncio.shield(ana.communicator.future), PATIENCE)
    assert not ConnectionRegistry.current().connections
    assert "Traceback" not in caplog.text


async def test_mistake_in_the_handler_of_a_message_ends_nothing(monkeypatch, caplog):
    async def fail(self: Any, message: Any) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(NamespaceConsumer, "room_greeting", fail, raising=False)
    async with connected("portal") as ana:
        inside = consumer()
        await inside.dispatch({"type": "room.greeting"})
        await inside.dispatch({"type": "no.such.handler"})
        await ana.call("heartbeat")
    assert "handler failed" in caplog.text
    assert "no handler for message" in caplog.text


async def test_clean_up_that_redis_refuses_is_logged_and_completed(monkeypatch, caplog):
    monkeypatch.setattr(HubConsumer, "on_gone", AsyncMock(side_effect=RedisDown("gone")))
    async with connected():
        pass
    await eventually(lambda: "clean-up incomplete" in caplog.text)
    assert not ConnectionRegistry.current().connections


async def test_application_that_is_cancelled_cleans_up_too():
    async with connected() as ana:
        ana.communicator.future.cancel()
        await asyncio.gather(ana.communicator.future, return_exceptions=True)
        assert not ConnectionRegistry.current().connections


# --- In turn -----------------------------------------------------------------------------------------


async def test_signal_waits_until_the_frame_is_answered(client_event):
    go_on = asyncio.Event()

    async def handler(connection: Any, payload: Empty) -> None:
        connection.soon(connection.terminate, CloseCode.NORMAL)
        await go_on.wait()

    client_event(handler)
    async with connected("portal") as ana:
        await ana.send("test:event", id="slow")
        await asyncio.sleep(0.05)
        go_on.set()
        await ana.expect("ack")
        assert (await ana.expect_close())[0] == CloseCode.NORMAL


@pytest.mark.parametrize(
    ("failure", "level"), [(RedisDown("gone"), "WARNING"), (ZeroDivisionError(), "ERROR")]
)
async def test_action_that_fails_is_logged_and_ends_nothing(failure: Exception, level: str, caplog):
    async def action() -> None:
        raise failure

    async with connected("portal") as ana:
        consumer().soon(action)
        await eventually(lambda: "action failed" in caplog.text)
        await ana.call("heartbeat")
    assert [entry.levelname for entry in caplog.records if entry.message == "action failed"] == [level]


async def test_action_for_a_connection_that_ended_is_left_out():
    ran = []

    async def action() -> None:
        ran.append(1)

    async with connected("portal"):
        inside = consumer()
    inside.soon(action)
    await asyncio.sleep(0.05)
    assert not ran


async def test_ending_twice_closes_once():
    async with connected("portal") as ana:
        inside = consumer()
        inside.terminate(CloseCode.REVOKED)
        inside.terminate(CloseCode.SILENT)
        assert await ana.expect_close() == (CloseCode.REVOKED, "revoked")
        assert await ana.communicator.receive_nothing()
