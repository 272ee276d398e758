"""A server in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from realtime.server.uvicorn_server import Server, bind, configuration
from tests.inprocess import PATIENCE, eventually


@pytest.fixture
def handshake_seconds() -> float:
    """How long a handshake may take: as long as a slow machine needs, unless a test waits for the end of it."""
    return PATIENCE


@pytest.fixture
def limits() -> dict[str, float]:
    """Other limits than the usual ones."""
    return {}


@pytest.fixture
async def port(
    process: str, settings, handshake_seconds: float, limits: dict[str, float]
) -> AsyncIterator[int]:
    settings.REALTIME = {
        **settings.REALTIME,
        "LIMITS": {"FRAME_BYTES": 2000, "HANDSHAKE_SECONDS": handshake_seconds, **limits},
    }
    sock = bind("127.0.0.1", 0)
    running = Server(configuration("127.0.0.1", 0))
    serving = asyncio.create_task(running.serve(sockets=[sock]))
    await eventually(lambda: running.started)
    yield sock.getsockname()[1]
    running.should_exit = True
    await asyncio.wait_for(serving, PATIENCE)
    sock.close()
