"""What a socket process does when it starts and stops, as ASGI's lifespan protocol has it (daphne does not)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from realtime.connections.handshake import Receive, Send
from realtime.connections.registry import ConnectionRegistry
from realtime.server.backlog import measure_backlog
from realtime.server.vitals import watch

GOODBYE_SECONDS = 1.0


async def lifespan(scope: Any, receive: Receive, send: Send) -> None:
    """The ASGI application of the lifespan scope."""
    await receive()
    # Before anybody connects: an operator who asks for all processes shall see this one. Not waited for, and
    # without Redis left to the first connection.
    joining = asyncio.create_task(_join(), name="join")
    watching = asyncio.create_task(watch(measure_backlog), name="watch")
    await send({"type": "lifespan.startup.complete"})
    try:
        await receive()
    except asyncio.CancelledError:
        return  # a second signal: no time for a goodbye
    finally:
        joining.cancel()
        watching.cancel()
    await goodbye()
    await send({"type": "lifespan.shutdown.complete"})


async def _join() -> None:
    with contextlib.suppress(RedisError, OSError):
        await ConnectionRegistry.current().start()


async def goodbye() -> None:
    """All connections are closed: tell Redis what is still pending, and give everything back."""
    with contextlib.suppress(RedisError, TimeoutError):
        async with asyncio.timeout(GOODBYE_SECONDS):
            await ConnectionRegistry.current().close()
    await ConnectionRegistry.current().stop()  # it answers no more, so that nobody remembers it after this
    with contextlib.suppress(RedisError, TimeoutError):
        async with asyncio.timeout(GOODBYE_SECONDS):
            await ConnectionRegistry.current().leave()
    layer: Any = get_channel_layer()
    with contextlib.suppress(RedisError, OSError):
        await layer.flush()
