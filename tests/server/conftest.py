"""A server in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.inprocess import PATIENCE
from tests.server.serving import serving


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
    async with serving() as (_, port):
        yield port
