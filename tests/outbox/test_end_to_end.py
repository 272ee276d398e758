"""From the commit of a backbone to the socket of a client, while everything in between breaks."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import PATIENCE, eventually
from tests.faults.proxy import Proxy, to_socket
from tests.outbox.reading import sqlite_url
from tests.outbox.test_relay import Backbone, backbone
from tests.postgresql import Cluster

THREADS = 5
RESTARTS = 4
"""Of the database."""
WRITER = """
import django
django.setup()
import sys, time
from django.contrib.auth.models import Group
from django.db import Error, connection, transaction
from realtime.publisher import publish
writer, thread = sys.argv[1:]
number = 0
while True:
    number += 1
    message = f"{writer}-{number}"
    try:
        with transaction.atomic():
            Group.objects.create(name=f"{thread}/{message}")
            publish("thread:message", {"thread_id": thread, "message_id": message})
    except Error:  # the database is away
        connection.close()
        time.sleep(0.1)
    else:
        print(message, flush=True)
"""
COMMITTED = """
import django
django.setup()
import json
from django.contrib.auth.models import Group
print(json.dumps(list(Group.objects.order_by("pk").values_list("name", flat=True))))
"""


@asynccontextmanager
async def reaching(server: EmbeddedRedis) -> AsyncIterator[Proxy]:
    """What backbones and relays reach Redis through."""
    async with Proxy(to_socket(Path(server.socket))) as proxy:
        yield proxy


def committed(stack: Backbone) -> dict[str, list[str]]:
    """The messages of each thread that were committed. A thread has one writer at a time, so their order is known."""
    threads: dict[str, list[str]] = {}
    for name in json.loads(stack.run("-c", COMMITTED).stdout):
        thread, _, message = name.partition("/")
        threads.setdefault(thread, []).append(message)
    return threads


def received(client: Any) -> dict[str, list[str]]:
    threads: dict[str, list[str]] = {}
    for frame in client.received("thread:message"):
        threads.setdefault(frame["data"]["thread_id"], []).append(frame["data"]["message_id"])
    return threads


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgresql)]
)
async def test_clients_get_every_committed_message_once_and_in_order(database: str, tmp_path: Path):
    """Backbones and relays are killed in turn, and Redis is unreachable for a while, twice."""
    async with AsyncExitStack() as opened:
        server = opened.enter_context(EmbeddedRedis())
        url = opened.enter_context(Cluster()).url() if database == "postgresql" else ""
        url = url or opened.enter_context(sqlite_url())
        stack = opened.enter_context(backbone(tmp_path, server.url, DATABASE_URL=url))
        await asyncio.to_thread(stack.start_all)
        proxy = await opened.enter_async_context(reaching(server))
        far = {
            "REDIS_URL": f"redis://127.0.0.1:{proxy.port}",
            "DJANGO_SETTINGS_MODULE": "tests.outbox.settings",
        }

        def start_writer(thread: int, generation: int) -> Any:
            command = ("-c", WRITER, f"w{generation}", str(thread))
            return stack.start("writer", *command, ready=f"w{generation}-1", **far)

        client = await opened.enter_async_context(stack.client())
        for thread in range(THREADS):
            await client.ask("join:thread", {"thread_id": thread})
        relays = [await asyncio.to_thread(stack.start, "runoutbox", **far) for _ in range(4)]
        writers = [await asyncio.to_thread(start_writer, thread, 0) for thread in range(THREADS)]
        for generation in range(1, 4):
            if generation > 1:
                proxy.swallow()
            victim = random.randrange(THREADS)
            writers[victim].signal(SIGKILL)
            relays[generation].signal(SIGKILL)
            writers[victim].wait()
            writers[victim] = await asyncio.to_thread(start_writer, victim, generation)
            relays[generation] = await asyncio.to_thread(stack.start, "runoutbox", **far)
            await asyncio.sleep(1)
            proxy.let_pass()
            await asyncio.sleep(1)
        for writer in writers:
            writer.signal(SIGKILL)
            writer.wait()
        due = await asyncio.to_thread(committed, stack)
        assert sum(map(len, due.values())) > 50
        await eventually(lambda: received(client) == due, within=3 * PATIENCE)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.needs_postgresql
async def test_restarts_of_the_database_lose_and_double_nothing(tmp_path: Path):
    """They fall between INSERT, COMMIT, XADD and DELETE, as they come."""
    async with AsyncExitStack() as opened:
        server = opened.enter_context(EmbeddedRedis())
        cluster = opened.enter_context(Cluster())
        options = {"PGOPTIONS": "-c synchronous_commit=on"}  # what was committed outlives the server
        stack = opened.enter_context(backbone(tmp_path, server.url, DATABASE_URL=cluster.url(), **options))
        await asyncio.to_thread(stack.start_all)
        settings = {"DJANGO_SETTINGS_MODULE": "tests.outbox.settings"}
        client = await opened.enter_async_context(stack.client())
        for thread in range(THREADS):
            await client.ask("join:thread", {"thread_id": thread})
        for _ in range(2):
            await asyncio.to_thread(stack.start, "runoutbox", **settings)
        writers = [
            await asyncio.to_thread(
                stack.start, "writer", "-c", WRITER, "w", str(thread), ready="w-1", **settings
            )
            for thread in range(THREADS)
        ]
        for _ in range(RESTARTS):
            seen = len(client.frames)
            await asyncio.to_thread(cluster.stop)
            await asyncio.to_thread(cluster.start)
            await eventually(lambda before=seen: len(client.frames) > before + 5 * THREADS)
        for writer in writers:
            assert writer.is_running, writer.output
            writer.signal(SIGKILL)
            writer.wait()
        due = await asyncio.to_thread(committed, stack)
        await eventually(lambda: received(client) == due, within=3 * PATIENCE)
