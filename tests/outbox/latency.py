"""`python -m tests.outbox.latency`: from a backbone's COMMIT to the client, with the outbox and without it in turn.

Redis, PostgreSQL (Debian's package), a bridge, a socket server, a backbone and a client run on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import django

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.outbox.reading import sqlite_url
from tests.postgresql import Cluster

ROUNDS = 3
MESSAGES = 200
"""A round."""
WITH, WITHOUT = "tests.outbox.settings", "tests.outbox.without"
BACKBONE = f"""
import django
django.setup()
import json, time
from django.contrib.auth.models import Group
from django.db import transaction
from realtime.publisher import publish
times = []
for number in range({MESSAGES}):
    with transaction.atomic():
        Group.objects.create(name=f"{{time.time_ns()}}")
        publish("thread:message", {{"thread_id": "t", "message_id": number}})
        start = time.perf_counter()
    times.append((start, time.perf_counter()))
    time.sleep(0.01)
print(json.dumps(times))
"""
Run = Callable[..., str]


def quantiles(seconds: list[float]) -> str:
    """The median and the 99th percentile, in milliseconds."""
    return f"p50 {statistics.median(seconds) * 1e3:5.2f}  p99 {statistics.quantiles(seconds, n=100)[98] * 1e3:5.2f}"


async def _measure(database: str, run: Run, received: Callable[[int], Awaitable[list[float]]]) -> None:
    client: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    request: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    for _ in range(ROUNDS):
        for settings in (WITHOUT, WITH):
            output = await asyncio.to_thread(run, settings, "-c", BACKBONE)
            times: list[tuple[float, float]] = json.loads(output)
            arrivals = await received(MESSAGES)
            client[settings] += [at - start for (start, _), at in zip(times, arrivals, strict=True)]
            request[settings] += [end - start for start, end in times]
    for settings, name in ((WITHOUT, "without"), (WITH, "with")):
        print(  # noqa: T201
            f"{database:<10} {name:<8} client {quantiles(client[settings])}  request {quantiles(request[settings])} ms"
        )


async def _system(name: str, database_url: str, folder: Path) -> None:
    from tests.e2e.harness import ROOT, Stack

    with EmbeddedRedis() as redis, Stack(folder, redis.url, DATABASE_URL=database_url) as stack:

        def run(settings: str, *arguments: str) -> str:
            env = {**stack.env, "DJANGO_SETTINGS_MODULE": settings}
            command = [sys.executable, *arguments]
            return subprocess.run(
                command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True
            ).stdout

        stack.start_all()
        run(WITH, "manage.py", "migrate", "--verbosity", "0")
        async with stack.client() as client:
            await client.call("join:thread", {"thread_id": "t"})
            arrivals: list[float] = []

            async def received(count: int) -> list[float]:
                while len(arrivals) < count:
                    await asyncio.sleep(0.01)
                found, arrivals[:] = arrivals[:], []
                return found

            async def listen() -> None:
                while True:
                    await client.expect("thread:message")
                    arrivals.append(time.perf_counter())

            listening = asyncio.create_task(listen())
            await _measure(name, run, received)
            listening.cancel()


def main() -> int:
    """Measure on SQLite and on PostgreSQL. Returns the exit status."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        databases = {"SQLite": opened.enter_context(sqlite_url())}
        databases["PostgreSQL"] = opened.enter_context(Cluster()).url()
        for name, url in databases.items():
            (folder / name).mkdir()
            asyncio.run(_system(name, url, folder / name))
    print(f"Load at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
