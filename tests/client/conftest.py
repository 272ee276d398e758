"""A scripted server for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import Server, serve

from tests.client.scripted import (
    ScriptedServer,
)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    running: Server
    async with serve(scripted.serve, "127.0.0.1", 0, process_request=scripted.look) as running:
        scripted.url = f"ws://127.0.0.1:{running.sockets[0].getsockname()[1]}/hub/"
        yield scripted
