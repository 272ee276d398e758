"""Everything in the test's process, without Redis: consumers, bridge and publisher, on fakeredis."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from fakeredis import TcpFakeServer

from realtime.inline.delivery import deliver
from realtime.redis import client
from realtime.server.lifespan import leave
from realtime.testing.background import BackgroundLoop
from realtime.testing.clients import Clients
from realtime.testing.connection import TIMEOUT
from realtime.testing.overriding import overridden
from realtime.testing.transports import InProcess

_running = threading.Lock()


class InMemory:
    """The system in this process."""

    def __init__(self, client: Clients, redis_url: str) -> None:
        self.client = client
        """Connects clients: see `realtime.testing.clients.Clients`."""
        self.redis_url = redis_url
        """Of the simulated Redis, for code that looks into it."""


@contextlib.contextmanager
def in_memory(**overrides: Any) -> Iterator[InMemory]:
    """Run socket server, bridge and publisher in this process while the block runs, without a Redis.

        with in_memory() as sockets:
            ana = sockets.client.sync(user=7, role="attendant")
            ana.call("join:thread", {"thread_id": 42})
            publish("thread:message", {"thread_id": 42, "message_id": 1})
            ana.expect("thread:message", message_id=1)

    Consumers run under channels' `WebsocketCommunicator`, in an event loop of their own. Your own communicators in the
    test's loop, on `realtime.routing.websocket`, are part of the same system.

    Args:
        overrides: Entries of `REALTIME` for the block.

    Raises:
        RuntimeError: It is running already: a process has one set of settings, and so one such system at a time.
    """
    with contextlib.ExitStack() as stack:
        if not _running.acquire(blocking=False):
            raise RuntimeError("in_memory() is running already in this process: use what it has returned")
        stack.callback(_running.release)
        url = stack.enter_context(_fake_redis())
        changed = {**getattr(settings, "REALTIME", {}), **overrides, "REDIS_URL": url}
        layers = {"default": {"BACKEND": "realtime.layers.RoomChannelLayer"}}
        stack.enter_context(overridden({"REALTIME": changed, "CHANNEL_LAYERS": layers}))
        loop = stack.enter_context(BackgroundLoop())
        bridge = loop.run(_start())
        stack.callback(lambda: loop.run(_stop(bridge)))
        clients = Clients(loop, InProcess.open)
        stack.callback(clients.close)
        yield InMemory(clients, url)


@contextlib.contextmanager
def _fake_redis() -> Iterator[str]:
    """A simulated Redis on a port of its own; yields its address."""
    server = TcpFakeServer(("127.0.0.1", 0))
    server.daemon_threads = True
    serving = threading.Thread(
        target=server.serve_forever,
        kwargs={"poll_interval": 0.01},
        name="realtime.testing",
        daemon=True,
    )
    serving.start()
    try:
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


async def _start() -> asyncio.Task[None]:
    ready = asyncio.Event()
    bridge = asyncio.create_task(deliver(ready.set), name="bridge")
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([bridge, waiting], timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    if bridge.done():
        bridge.result()
    return bridge


async def _stop(bridge: asyncio.Task[None]) -> None:
    bridge.cancel()
    await asyncio.gather(bridge, return_exceptions=True)
    await leave()
    await client.close()
