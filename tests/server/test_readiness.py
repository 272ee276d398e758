"""What an instance tells over HTTP: whether it is ready, and its metrics."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest

from realtime.connections.registry import ConnectionRegistry
from realtime.redis import schema_version
from realtime.server.readiness import reasons_not_ready
from tests.inprocess import PATIENCE, http

pytestmark = pytest.mark.usefixtures("process")


# --- Health, over HTTP -------------------------------------------------------------------------------


async def test_process_that_can_deliver_is_ready():
    answer = await http("/readyz")
    assert (answer.status, answer.json) == (200, {"status": "ready", "reasons": []})


async def test_process_without_redis_is_not_ready_but_alive(settings):
    dead = "redis://127.0.0.1:1/0"
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": dead}
    answer = await http("/readyz")
    assert answer.status == 503
    assert answer.json["reasons"] == [
        "redis does not answer",
        "a probe did not come back through the subscription",
    ]
    assert (await http("/healthz")).status == 200


async def test_process_that_hears_nothing_is_not_ready(monkeypatch):
    monkeypatch.setattr(ConnectionRegistry.current(), "probe", AsyncMock(side_effect=TimeoutError))
    answer = await http("/readyz")
    assert answer.status == 503
    assert answer.json["reasons"] == ["a probe did not come back through the subscription"]


async def test_mistake_in_the_probe_is_not_hidden(monkeypatch):
    monkeypatch.setattr(ConnectionRegistry.current(), "probe", AsyncMock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        await reasons_not_ready()


async def test_readiness_does_not_wait_for_redis_for_long(monkeypatch):
    async def hang(*args: Any, **kwargs: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(schema_version, "claim", hang)
    async with asyncio.timeout(PATIENCE):
        assert (await http("/readyz")).status == 503


# --- Metrics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "s3cret"}, 401)],
)
async def test_metrics_want_their_token_when_there_is_one(settings, given: dict[str, str], status: int):
    settings.REALTIME = {**settings.REALTIME, "METRICS_TOKEN": "s3cret"}
    answer = await http("/metrics", **given)
    assert (answer.status, answer.headers["www-authenticate"]) == (status, "Bearer")
    assert (await http("/metrics", Authorization="Bearer s3cret")).status == 200


async def test_metrics_token_may_have_characters_beyond_ascii(settings):
    settings.REALTIME = {**settings.REALTIME, "METRICS_TOKEN": "señal"}
    assert (await http("/metrics", Authorization="Bearer señal")).status == 200
    assert (await http("/metrics", Authorization="Bearer senal")).status == 401
