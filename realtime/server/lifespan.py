"""What an instance does when it starts and stops (ASGI's lifespan protocol, which daphne does not have)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from redis.exceptions import RedisError

from realtime.connections.handshake import Receive, Send
from realtime.connections.registry import ConnectionRegistry
from realtime.layers.configured import channel_layer
from realtime.server.backlog import measure_backlog
from realtime.server.vitals import watch

LEAVE_SECONDS = 1.0
"""The longest wait for each step of leaving."""


async def lifespan(scope: Any, receive: Receive, send: Send) -> None:
    """The ASGI application of the lifespan scope."""
    await receive()
    # Before the first connection: an operator who lists the instances finds this one. It is not waited for; without
    # Redis the first connection does it.
    joining = asyncio.create_task(_join(), name="join")
    watching = asyncio.create_task(watch(measure_backlog), name="watch")
    await send({"type": "lifespan.startup.complete"})
    try:
        await receive()
    except asyncio.CancelledError:
        return  # a second signal: no time to leave
    finally:
        joining.cancel()
        watching.cancel()
    await leave()
    await send({"type": "lifespan.shutdown.complete"})


async def _join() -> None:
    with contextlib.suppress(RedisError, OSError):
        await ConnectionRegistry.current().start()


async def leave() -> None:
    """Write what is pending to Redis, and give back what this instance holds there. All connections are closed."""
    with contextlib.suppress(RedisError, TimeoutError):
        async with asyncio.timeout(LEAVE_SECONDS):
            await ConnectionRegistry.current().close()
    await (
        ConnectionRegistry.current().stop()
    )  # it answers no survey any more, so that no answer brings it back after this
    with contextlib.suppress(RedisError, TimeoutError):
        async with asyncio.timeout(LEAVE_SECONDS):
            await ConnectionRegistry.current().leave()
    with contextlib.suppress(RedisError, OSError):
        await channel_layer().flush()
