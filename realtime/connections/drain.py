"""Leaving without being missed: how a socket process ends."""

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
"""For the closing handshakes of the last ones."""


async def drain() -> None:
    """Let nobody in any more, and close everybody, in random order and spread over `DRAIN_SECONDS`.

    At once would send all clients to the other instances in the same moment.
    """
    node, seconds = ConnectionRegistry.current(), conf().drain_seconds
    node.is_draining = True
    leaving = list(node.connections.values())
    random.shuffle(leaving)
    logger.info("draining", extra={"connections": len(leaving), "seconds": seconds})
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number, connection in enumerate(leaving):
        if (early := started + seconds * number / len(leaving) - loop.time()) > 0:
            await asyncio.sleep(early)
        connection.soon(connection.end, CloseCode.RESTARTING)
    for connection in list(node.connections.values()):
        connection.soon(connection.end, CloseCode.RESTARTING)  # whose handshake was under way
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS):
            while node.connections:  # noqa: ASYNC110  (for two seconds, once)
                await asyncio.sleep(0.02)
    logger.info("drained", extra={"left": len(node.connections)})
