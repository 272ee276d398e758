"""Draining: how an instance closes its connections before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

from realtime.conf import conf
from realtime.connections.registry import ConnectionRegistry
from realtime.protocol.close_codes import CloseCode

logger = logging.getLogger(__name__)

LAST_SECONDS = 2.0
"""Seconds for the closing handshakes of the last connections."""


async def drain() -> None:
    """Refuse handshakes from now on, and close all connections, in random order and spread over `DRAIN_SECONDS`.

    Closed all at once, the clients would reconnect to the other instances in the same moment.
    """
    registry, seconds = ConnectionRegistry.current(), conf().drain_seconds
    registry.is_draining = True
    leaving = list(registry.connections.values())
    random.shuffle(leaving)
    logger.info("draining", extra={"connections": len(leaving), "seconds": seconds})
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number, connection in enumerate(leaving):
        if (early := started + seconds * number / len(leaving) - loop.time()) > 0:
            await asyncio.sleep(early)
        connection.soon(connection.terminate, CloseCode.RESTARTING)
    for connection in list(registry.connections.values()):
        connection.soon(connection.terminate, CloseCode.RESTARTING)  # those whose handshake was under way
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS):
            while registry.connections:  # noqa: ASYNC110  (for two seconds, once)
                await asyncio.sleep(0.02)
    logger.info("drained", extra={"left": len(registry.connections)})
