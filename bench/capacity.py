"""`python -m bench.capacity [--cluster]`: measures the cost of publications and rooms in Redis (docs/capacity.md).

It measures CPU time as the kernel accounts it, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import django

from bench import machine
from realtime.layers import history
from realtime.protocol.publication import Draft
from realtime.redis.sharded_pubsub import Subscriptions
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.servers import Cluster

HEAD = b'{"event":"thread:message","room":"thread:42","offset":"'
TAIL = b'","data":{"thread_id":"42","body":"%b"}}' % (b"x" * 90)
"""The frame before and after its offset: some 170 bytes, as in the benchmark."""
PUBLICATIONS = 20_000
ROOMS = 50_000
KINDS = ((1, 1, 1), (1, 1, 11), (1, 100, 1), (1, 100, 11), (100, 1, 1), (100, 100, 1), (2000, 100, 1))
"""Rooms, publications per batch, instances that listen."""


class Capacity:
    """Publishes as a bridge does, to its own Redis servers."""

    def __init__(self, servers: Sequence[EmbeddedRedis]) -> None:
        self._servers = servers
        self._pids = [server.process.pid for server in servers if server.process is not None]
        self._entries = 0

    async def publishing(self, rooms: int, batch: int, listeners: int, runs: int) -> tuple[float, float]:
        """Return microseconds of CPU per publication: of all servers, and of this process, which also listens."""
        groups = [f"hub.thread.{uuid4().hex[:8]}" for _ in range(rooms)]
        listening = [await self._enter(groups) for _ in range(listeners)]
        found = []
        for _ in range(runs):
            before, here = machine.cpu_seconds(self._pids), time.process_time()
            for start in range(0, PUBLICATIONS, batch):
                entries = [self._entry(groups[number % rooms]) for number in range(start, start + batch)]
                await history.append(entries)
            found.append((machine.cpu_seconds(self._pids) - before, time.process_time() - here))
        for each in listening:
            each.close()
        redis, ours = (statistics.median(costs) / PUBLICATIONS * 1e6 for costs in zip(*found, strict=True))
        return redis, ours

    async def entering(self) -> tuple[float, float]:
        """Return the cost of entering a room: microseconds of CPU and bytes, of all servers."""
        groups = [f"hub.user.{uuid4().hex[:8]}" for _ in range(ROOMS)]
        cpu, memory = machine.cpu_seconds(self._pids), self._memory()
        listening = await self._enter(groups)
        entered = machine.cpu_seconds(self._pids) - cpu, self._memory() - memory
        listening.close()
        return entered[0] / ROOMS * 1e6, entered[1] / ROOMS

    async def keeping(self) -> float:
        """Return the bytes of a publication in the histories of many rooms."""
        groups = [f"hub.thread.{uuid4().hex[:8]}" for _ in range(2000)]
        listening = await self._enter(groups)
        before = self._memory()
        for start in range(0, PUBLICATIONS, 100):
            entries = [self._entry(groups[number % 2000]) for number in range(start, start + 100)]
            await history.append(entries)
        kept = (self._memory() - before) / PUBLICATIONS
        listening.close()
        return kept

    async def _enter(self, groups: Sequence[str]) -> Subscriptions:
        listening = Subscriptions(*[lambda values: None] * 3)
        for start in range(0, len(groups), 500):
            part = groups[start : start + 500]
            await listening.subscribe([history.channel(group) for group in part])
            await history.ends(part)
        return listening

    def _entry(self, group: str) -> Draft:
        self._entries += 1
        return Draft(rooms=[(group, HEAD)], tail=TAIL, source="stream", entry=f"{self._entries:020d}")

    def _memory(self) -> int:
        total = 0
        for server in self._servers:
            with server.client() as client:
                total += client.info("memory")["used_memory"]
        return total


async def measure(servers: Sequence[EmbeddedRedis], runs: int) -> None:
    """Print the tables of docs/capacity.md."""
    capacity = Capacity(servers)
    sys.stdout.write(
        "| rooms | a batch | listening | µs of Redis | µs of the bridge, at most |\n|--:|--:|--:|--:|--:|\n"
    )
    for rooms, batch, listeners in KINDS:
        redis, ours = await capacity.publishing(rooms, batch, listeners, runs)
        sys.stdout.write(f"| {rooms:,} | {batch} | {listeners} | {redis:.1f} | {ours:.1f} |\n")
        sys.stdout.flush()
    cpu, memory = await capacity.entering()
    sys.stdout.write(f"\nEntering a room: {cpu:.1f} µs and {memory:.0f} bytes of Redis.\n")
    sys.stdout.write(f"Keeping a publication: {await capacity.keeping():.0f} bytes of Redis.\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cluster", action="store_true", help="three servers in a Cluster instead of one")
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: Sequence[EmbeddedRedis]
        if options.cluster:
            cluster = stack.enter_context(Cluster(directory, replicas=False))
            os.environ["REDIS_URL"], servers = cluster.url, cluster.primaries
        else:
            servers = [server := stack.enter_context(EmbeddedRedis(directory))]
            os.environ["REDIS_URL"] = server.url
        django.setup()
        asyncio.run(measure(servers, options.runs))


if __name__ == "__main__":
    main()
