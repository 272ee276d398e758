"""A running product: three socket servers, two bridges, people who come back after every loss, and a backbone that
writes. The frames that each client received are compared with what was written, client by client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any, Self
from uuid import uuid4

import redis
from django.conf import settings
from django.test import override_settings

from realtime.layers.direct import direct
from realtime.redis import cluster
from realtime.redis.url import parse
from tests.e2e.harness import PATIENCE, Process, Stack, eventually, free_port, unique
from tests.faults.person import Person

GRACE = 3.0
LEASE = 1.0
PEOPLE = 6
THREADS = 3
RATE = 60.0
"""Messages a second, over all threads."""


@dataclass
class Account:
    """What was written against what was seen."""

    expected: int = 0
    lost: int = 0
    doubled: int = 0
    misordered: int = 0
    unsaid: int = 0
    """Doubled, or lost although other clients have it, while that client got no `room:gap`.

    What Redis took and lost before any client had it is known to the backbone alone.
    """
    gaps: int = 0
    endings: Counter[str] = field(default_factory=Counter)

    @property
    def is_perfect(self) -> bool:
        return not (self.lost or self.doubled or self.misordered or self.gaps)


class World:
    """All of it. `directory` keeps the logs; `server` has the `url` of its Redis."""

    def __init__(self, directory: Path, server: Any, *, threads: int = THREADS, **env: str) -> None:
        self.server = server
        self.stack = Stack(
            directory,
            server.url,
            REALTIME_GRACE_PERIOD=str(GRACE),
            REALTIME_NODE_LEASE=str(LEASE),
            REALTIME_AWAY_AFTER="120",
            REALTIME_PRESENCE_TTL="240",
            **{"REALTIME_DRAIN_SECONDS": "1", **env},
        )
        self.ports = (self.stack.port, free_port(), free_port())
        self.group = unique("g")
        self.threads = [unique("th") for _ in range(threads)]
        self.written: dict[str, list[str]] = {thread: [] for thread in self.threads}
        self.people: list[Person] = []
        self.sockets: list[Process] = []
        self.bridges: list[Process] = []
        self._lives: list[asyncio.Task[None]] = []
        self.patience = PATIENCE

    def start(self, ports: Sequence[int] = (), **sockets_env: str) -> None:
        """The processes."""
        self.bridges = [self.stack.start("runbridge") for _ in range(2)]
        self.sockets = [self.stack.start_sockets(port, **sockets_env) for port in ports or self.ports]

    async def gather(self, ports: Sequence[int] = (), count: int = PEOPLE, each: int = 0) -> None:
        """Every client connects, to the servers in turn. Each is in `each` threads (0: in all)."""
        ports = ports or self.ports
        for number in range(count):
            turned = [*ports[number % len(ports) :], *ports[: number % len(ports)]]
            threads = random.sample(self.threads, each) if each else self.threads
            person = Person(self.stack, turned, self.group, threads)
            self.people.append(person)
            self._lives.append(asyncio.create_task(person.stay()))
            await asyncio.sleep(0.005)  # thousands at once would be too much for this process
        await self.all_are_present()

    async def all_are_present(self) -> None:
        await eventually(lambda: all(person.present for person in self.people), self.patience)

    @contextlib.asynccontextmanager
    async def traffic(self, before: float = 0.7, after: float = 1.0) -> AsyncIterator[None]:
        """The backbone writes while the block runs, and a while before and after it."""
        over = asyncio.Event()
        writing = asyncio.create_task(self._write(over))
        await asyncio.sleep(before)
        try:
            yield
            await asyncio.sleep(after)
        finally:
            over.set()
            await asyncio.wait_for(writing, self.patience)

    async def all_hear(self) -> float:
        """Seconds until every client has got a message that was written from now on."""
        began = time.monotonic()
        marks = {thread: len(written) for thread, written in self.written.items()}
        await eventually(
            lambda: all(
                any(int(number) > marks[thread] for number in person.seen[thread][-50:])
                for person in self.people
                for thread in person.threads
            ),
            self.patience,
        )
        return time.monotonic() - began

    async def _write(self, over: asyncio.Event) -> None:
        client = self._backbone()
        try:
            for number in itertools.count():
                if over.is_set():
                    return
                await self._say(client, self.threads[number % len(self.threads)])
                await asyncio.sleep(1 / RATE)
        finally:
            await client.aclose()

    def _backbone(self) -> redis.asyncio.Redis:
        location = parse(self.stack.env["REDIS_URL"])
        if location.nodes:
            return cluster.client(location, socket_timeout=60)
        pool = redis.asyncio.ConnectionPool(socket_timeout=60, **location.arguments())
        return redis.asyncio.Redis.from_pool(pool)

    async def _say(self, client: redis.asyncio.Redis, thread: str) -> None:
        """Write one message; as a backbone's outbox does, the same one again until Redis has taken it."""
        message_id = str(len(self.written[thread]))
        message = {
            "event": "thread:message",
            "id": uuid4().hex,
            "data": {"thread_id": thread, "message_id": message_id, "written_at": time.monotonic()},
        }
        self.written[thread].append(message_id)
        while True:
            try:
                await client.execute_command(*self._command(json.dumps(message).encode()))
                return
            except (redis.RedisError, OSError):
                await asyncio.sleep(0.05)

    def _command(self, message: bytes) -> Sequence[Any]:
        """One of the two ways that a backbone has."""
        own = {
            "PREFIX": self.stack.prefix,
            "REDIS_URL": self.stack.env["REDIS_URL"],
            "PUBLISH_DIRECTLY": True,
        }
        with override_settings(REALTIME={**settings.REALTIME, **own}):
            found = direct([message]) if random.random() < 0.5 else None
        return found.commands()[1] if found else ("XADD", self.stack.key("stream"), "*", "message", message)

    async def settle(self) -> Account:
        """Publish one more message in each thread, wait until every member has it, and count."""
        await self.all_are_present()
        client = self._backbone()
        try:
            for thread in self.threads:
                await self._say(client, thread)
        finally:
            await client.aclose()
        await eventually(
            lambda: all(
                self.written[thread][-1] in person.seen[thread][-3:]
                for person in self.people
                for thread in person.threads
            ),
            self.patience,
        )
        await asyncio.sleep(0.3)  # for what would come twice
        return self.account()

    def account(self) -> Account:
        account = Account()
        delivered: defaultdict[str, set[str]] = defaultdict(set)
        for person in self.people:
            for thread in person.threads:
                delivered[thread].update(person.seen[thread])
        for person in self.people:
            account.endings += person.endings
            for thread in person.threads:
                written, seen = Counter(self.written[thread]), Counter(person.seen[thread])
                lost, doubled = (written - seen).total(), (seen - written).total()
                missed = delivered[thread] - seen.keys()
                numbers = [int(number) for number in person.seen[thread]]
                account.expected += written.total()
                account.lost += lost
                account.doubled += doubled
                account.misordered += sum(a > b for a, b in itertools.pairwise(numbers))
                account.gaps += len(person.told[thread])
                account.unsaid += len(missed) + doubled if not person.told[thread] else 0
        return account

    def flaps(self) -> list[dict[str, Any]]:
        """Transitions of people who are here that say they are not."""
        user_ids = {person.user_id for person in self.people}
        entries = (entry for _, entry in self.stack.redis.xrange(self.stack.key("presence")))
        transitions = [json.loads(entry["transition"]) for entry in entries]
        return [
            entry
            for entry in transitions
            if entry["user_id"] in user_ids
            and (entry["to"] != "online" or entry["from"] not in {"offline", "online"})
        ]

    async def members(self) -> set[str]:
        """Who is present, as an admin who connects now sees it."""
        async with self.stack.client("hub", role="admin", groups=[self.group], port=self.ports[-1]) as admin:
            state = await admin.expect("presence:state")
            return {member["user_id"] for member in state["data"]["members"]}

    async def nothing_happened(
        self, record_property: Callable[[str, str], None], during: str = "account"
    ) -> Account:
        """Every client has every message once and in order, and none was seen to leave."""
        account = await self._settled(record_property, during)
        assert account.is_perfect, (during, account)
        return account

    async def nothing_was_hidden(
        self, record_property: Callable[[str, str], None], during: str = "account"
    ) -> Account:
        """Every loss was reported, and no user was seen to leave."""
        account = await self._settled(record_property, during)
        assert account.unsaid == 0, (during, account)
        return account

    async def _settled(self, record_property: Callable[[str, str], None], during: str) -> Account:
        account = await self.settle()
        record_property(during, str(account))
        assert self.flaps() == [], during
        return account

    def forget(self) -> None:
        """Begin anew with the same people, of whom each has all that was written."""
        for notes in (self.written, *(each for person in self.people for each in (person.seen, person.told))):
            for each in notes.values():
                each.clear()

    async def presence_is_true(self) -> None:
        """Exactly the users who are here are listed."""
        user_ids = {person.user_id for person in self.people}

        async def is_true() -> bool:
            return await self.members() == user_ids

        await eventually(is_true, self.patience)

    async def part(self) -> None:
        """All users leave; after the grace period none is listed any more."""
        for person in self.people:
            await person.leave()
        await asyncio.gather(*self._lives)
        await eventually(self._is_empty, self.patience)

    async def _is_empty(self) -> bool:
        return not await self.members()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, failure: type[BaseException] | None, *_: object) -> None:
        await self.stop()
        if failure is None:
            self.stack.assert_calm()

    async def stop(self) -> None:
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        await asyncio.to_thread(self._stop_processes)

    def _stop_processes(self) -> None:
        for process in reversed(self.stack.processes):
            process.stop(SIGKILL)
        self.stack.redis.close()
