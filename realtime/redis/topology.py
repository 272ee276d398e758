"""Which Redis server serves what: a single server (or Sentinel's primary), or the servers of a Cluster.

No other module asks which of the two it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

from redis.crc import key_slot
from redis.exceptions import RedisClusterException, RedisError

from realtime.conf import conf
from realtime.redis.connection import make_connection
from realtime.redis.url import Address, Location, parse
from realtime.tasks.per_loop import PerLoop
from realtime.tasks.running import running_loop
from realtime.tasks.supervision import supervise

logger = logging.getLogger(__name__)

Server = Address | None
"""None: the only one there is."""

FAILURES = (RedisClusterException, AttributeError, RuntimeError, LookupError)
"""redis-py and uvloop raise them when a connection is closed under a command, and for a slot without a server."""
ASK_TIMEOUT = 1.0
"""Seconds to wait for one server before another one is asked for the slots."""
PAUSE = 0.1
"""Seconds between two such questions."""


class Topology:
    """The servers as seen by one event loop, and the commands that fit them.

    This class is a single server that has everything. Behind Sentinels that is another server after a failover, which
    is found when a connection is opened.
    """

    publish_command = "PUBLISH"
    """Followed by channel and payload: reaches all that `subscribe_command` subscribed."""
    count_command = "NUMSUB"
    """PUBSUB's subcommand that counts the subscribers of such a channel."""
    subscribe_command = b"SUBSCRIBE"
    unsubscribe_command = b"UNSUBSCRIBE"
    subscribe_most = 512
    """Channels that one `subscribe_command` takes."""
    spans_keys = True
    """Whether one command or script may use any keys together. If not, only those of one batch (`batches`)."""

    def __init__(self) -> None:
        self.on_change: set[Callable[[], None]] = set()
        """Called when another server serves something."""
        self.on_arrival: set[Callable[[], None]] = set()
        """Called when a server serves something that served nothing before: a replica that took over, perhaps."""

    def owner(self, key: str | bytes) -> Server:
        """The server of a key or channel, as far as it is known."""
        return None

    def servers(self) -> set[Server]:
        """All servers that serve something; empty until `known`."""
        return {None}

    def any_server(self) -> Server:
        """A random one of them. A plain SUBSCRIBE at it receives every plain PUBLISH, wherever that is sent."""
        return None

    async def known(self) -> None:
        """Return once the servers are known; there is no time-out."""

    def refresh(self) -> None:
        """Read the topology again, after something failed."""

    def batches(self, keys: Sequence[str]) -> list[list[int]]:
        """Which of the keys may go into one command or script, as indexes."""
        return [list(range(len(keys)))]

    def close(self) -> None:
        """Stop reading the topology."""


@lru_cache(maxsize=65536)
def slot(key: str | bytes) -> int:
    """The slot of a key or channel in a Cluster."""
    return key_slot(key.encode() if isinstance(key, str) else key)


class Cluster(Topology):
    """Each server of a Cluster has some slots, and slots move."""

    publish_command = "SPUBLISH"
    count_command = "SHARDNUMSUB"
    subscribe_command = b"SSUBSCRIBE"
    unsubscribe_command = b"SUNSUBSCRIBE"
    subscribe_most = 1  # it takes those of one slot together
    spans_keys = False

    def __init__(self, location: Location) -> None:
        super().__init__()
        self._location = location
        self._owners: list[Address] = []
        self._looking: asyncio.Task[None] | None = None
        self._is_asked = False
        self._known = asyncio.Event()

    def owner(self, key: str | bytes) -> Server:
        # Before the Cluster is known any of its servers: it redirects.
        return self._owners[slot(key)] if self._owners else self._location.nodes[0]

    def servers(self) -> set[Server]:
        return set(self._owners)

    def any_server(self) -> Server:
        return random.choice(self._owners or self._location.nodes)  # noqa: S311

    async def known(self) -> None:
        while not self._known.is_set():
            self.refresh()
            assert self._looking is not None  # noqa: S101
            await asyncio.wait([self._looking])

    def refresh(self) -> None:
        self._is_asked = True
        if self._looking is None or self._looking.done():
            work = supervise("topology", self._look_while_asked)
            self._looking = asyncio.create_task(work, name="topology")

    def batches(self, keys: Sequence[str]) -> list[list[int]]:
        slots: dict[int, list[int]] = {}
        for number, name in enumerate(keys):
            slots.setdefault(slot(name), []).append(number)
        return list(slots.values())

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    async def _look_while_asked(self) -> None:
        """Read the slots; once more if `refresh` was called meanwhile, since a change may have come after the read."""
        while self._is_asked:
            self._is_asked = False
            try:
                await self._look()
            except Exception:
                self._is_asked = True  # still
                raise
            await asyncio.sleep(PAUSE)

    async def _look(self) -> None:
        servers = list({*self._owners, *self._location.nodes})
        random.shuffle(servers)
        for server in servers:
            with contextlib.suppress(RedisError, OSError, *FAILURES):
                if owners := _owners(await self._ask(server), server):
                    self.learn(owners)
                    break

    async def _ask(self, server: Address) -> Any:
        connection = make_connection(self._location, server, ASK_TIMEOUT)
        try:
            await connection.connect()
            await connection.send_command("CLUSTER", "SLOTS")
            return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)

    def learn(self, owners: list[Address]) -> None:
        """The servers have said which of them serves each slot."""
        if owners != self._owners:
            has_arrived = bool(self._owners) and not set(owners) <= set(self._owners)
            self._owners = owners
            self._known.set()
            logger.info("cluster", extra={"servers": sorted(f"{host}:{port}" for host, port in set(owners))})
            for tell in (*self.on_change, *(self.on_arrival if has_arrived else ())):
                tell()


def _owners(ranges: Any, asked: Address) -> list[Address]:
    """CLUSTER SLOTS as one address a slot; empty while a slot is served by no server."""
    owners: list[Address | None] = [None] * 16384
    for first, last, (host, port, *_), *_ in ranges:
        # An empty host is that of the server that was asked.
        address = (host.decode() if host else asked[0], int(port))
        owners[first : last + 1] = [address] * (last - first + 1)
    return [] if None in owners else cast(list[Address], owners)


def _make(url: str) -> Topology:
    location = parse(url)
    return Cluster(location) if location.nodes else Topology()


topologies: PerLoop[Topology] = PerLoop(lambda: _make(conf().redis_url), lambda topology: topology.close())
_without_loop = lru_cache(maxsize=8)(_make)


def topology() -> Topology:
    """The running loop's topology. Without a loop it knows commands and batches, but not which server has a key."""
    try:
        running_loop()
    except RuntimeError:
        return _without_loop(conf().redis_url)
    return topologies()
