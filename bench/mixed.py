"""Scenario i: a support product's day in a minute. Messages, typing, presence, and clients that drop and come back."""

from __future__ import annotations

import asyncio
import math
import random
import time
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

from bench.clients import Connection, Crowd
from bench.context import Context, Sizes, at_pace, gather, percentiles, stamped
from bench.publishing import Publisher
from bench.wires import Refused, Seen, User

MEMBERS = (2, 3, 3, 4, 4, 4)
"""The sizes of threads, in turn. The first member of each is an attendant."""
TEAM = 15
"""Attendants in one presence group."""
CALM = 4.0
"""Seconds before its drop in which a client starts nothing: what is on its way then may be lost, or ended for it."""
TYPES, AWAY = 0.5, 2.0
"""Seconds for which a user types, and for which an attendant is away."""
ATTEMPTS = 10
"""How often a client tries to come back."""
MARGIN = 5 * 10**9
"""Nanoseconds. Typing and presence must reach the clients that stay connected for that much longer."""


@dataclass
class Client:
    """A client over all its connections."""

    user: User
    place: int
    """Its place in the order in which clients drop."""
    connections: list[Connection] = field(default_factory=list)
    live: list[list[float]] = field(default_factory=list)
    """From when until when each connection was in all its rooms, by `time.monotonic_ns`."""

    @property
    def connection(self) -> Connection | None:
        """The present connection, if any."""
        return self.connections[-1] if self.live[-1][1] == math.inf else None

    def enter(self, connection: Connection) -> None:
        connection.attentive = False
        self.connections.append(connection)
        self.live.append([time.monotonic_ns(), math.inf])

    def drop(self) -> None:
        """Lose the connection, after everything received so far has been read."""
        self.live[-1][1] = time.monotonic_ns()
        self.connections[-1].read()
        self.connections[-1].drop()

    def stays(self, since: int) -> bool:
        """Return whether it was connected at a time and for a while after it."""
        return any(start <= since and since + MARGIN <= end for start, end in self.live)

    def seen(self) -> Seen:
        """Return what tells its position: the last it received, over whichever connection."""
        seen = [connection.seen for connection in self.connections]
        return Seen(
            seen[-1].hello,
            seen[-1].answer,
            _last(each.message for each in seen),
            _last(each.change for each in seen),
            _last(each.typing for each in seen),
        )


class Toggle:
    """Clients that in turn switch something on, each of them for some seconds."""

    def __init__(
        self, clients: Sequence[Client], states: tuple[str, str], rate: float, seconds: float
    ) -> None:
        middle = len(clients) // 2  # far from the clients that drop first
        self._clients = cycle([*clients[middle:], *clients[:middle]])
        self._states = states
        self._on: deque[Client] = deque()
        self._most = max(1, round(rate * seconds / 2))
        self.sent: dict[tuple[str, str], list[int]] = defaultdict(list)
        """When each user entered each state."""

    def next(self, turn: int, is_calm: Callable[[Client], bool]) -> tuple[Client, str] | None:
        """Return whose turn it is and the new state; None if there is no such client."""
        if turn % 2:
            return (self._on.popleft(), self._states[1]) if len(self._on) > self._most else None
        client = next(self._clients)
        if client in self._on or not is_calm(client):
            return None
        self._on.append(client)
        return client, self._states[0]


class Day:
    """What happens, what was sent, and to whom it is due."""

    def __init__(
        self, context: Context, people: Crowd, clients: list[Client], tasks: asyncio.TaskGroup
    ) -> None:
        self._context, self._people, self._tasks = context, people, tasks
        self._wire, self._sizes = context.peer.wire, context.sizes
        self._clients = clients
        self._drops = 0
        self.refused = 0
        """How often a client that came back was refused, as by an overloaded server, and tried again."""
        attendants = [client for client in clients if client.user.group]
        self.typing = Toggle(clients, ("true", "false"), self._sizes.mixed_typing, TYPES)
        self.changes = Toggle(attendants, ("away", "online"), self._sizes.mixed_changes, AWAY)
        self.sent: dict[int, int] = {}
        """When each message was sent; those of before the day are missing."""

    # --- What happens ------------------------------------------------------------------------------

    def start(self, publisher: Publisher, commands: Sequence[bytes]) -> None:
        """Start all that happens; it ends after `mixed_seconds`. The commands publish the day's messages."""
        sizes = self._sizes
        beats = len(self._clients) / sizes.heartbeat_seconds

        async def publish(turn: int) -> None:
            self.sent[sizes.mixed_threads + turn] = time.monotonic_ns()
            await publisher.send([stamped(commands[turn])])
            self._context.tick(1, len(commands))

        for rate, work in (
            (sizes.mixed_messages, publish),
            (sizes.mixed_typing, self._type),
            (sizes.mixed_changes, self._change),
            (sizes.mixed_drops, self._drop),
            (beats, self._beat),
        ):
            self._tasks.create_task(at_pace(round(rate * sizes.mixed_seconds), rate, work))

    async def _type(self, turn: int) -> None:
        if found := self.typing.next(turn, self._is_calm):
            client, state = found
            self._say(self.typing, client, state, self._wire.typing(client.user, state == "true"))

    async def _change(self, turn: int) -> None:
        if found := self.changes.next(turn, self._is_calm):
            client, state = found
            self._say(self.changes, client, state, self._wire.presence(client.user, state))

    def _say(self, toggle: Toggle, client: Client, state: str, frame: bytes) -> None:
        if client.connection is not None:
            toggle.sent[client.user.id, state].append(time.monotonic_ns())
            client.connection.send(frame)

    async def _beat(self, turn: int) -> None:
        client, frame = self._clients[turn % len(self._clients)], self._wire.heartbeat()
        if frame is not None and client.connection is not None:
            client.connection.send(frame)

    async def _drop(self, turn: int) -> None:
        client = self._clients[turn % len(self._clients)]
        self._drops = turn + 1
        if client.connection is not None:
            client.drop()
            self._tasks.create_task(self._come_back(client))

    async def _come_back(self, client: Client) -> None:
        position = self._wire.position(client.user, client.seen())
        for _ in range(ATTEMPTS):
            await asyncio.sleep(self._sizes.mixed_pause)
            try:
                connection = await self._people.connect(client.user, position)
                if (frame := self._wire.recovery(client.user, position)) is not None:
                    await connection.ask(frame)
            except (Refused, OSError):  # TimeoutError is an OSError
                self.refused += 1
                continue
            client.enter(connection)
            return

    def _is_calm(self, client: Client) -> bool:
        soon = (client.place - self._drops) % len(self._clients) < CALM * self._sizes.mixed_drops
        return client.connection is not None and not soon

    # --- What has arrived --------------------------------------------------------------------------

    def check(self) -> None:
        """Count what is missing or came twice, over all connections of each client."""
        sizes, context = self._sizes, self._context
        due: dict[str, list[int]] = defaultdict(list)
        for sequence in [*range(sizes.mixed_threads), *self.sent]:
            due[_thread(sequence, sizes)].append(sequence)
        for client in self._clients:
            got = [sequence for connection in client.connections for sequence in connection.sequences]
            context.count(Counter(due[client.user.thread]), Counter(got))
            if got != sorted(got):
                context.outcome.notes.append(f"out of order at {client.user.id}")
            if client.connection is None or client.connection.closed:
                context.outcome.notes.append(f"connection of {client.user.id} was lost")
        self._check_signals()
        del context.outcome.notes[5:]

    def _check_signals(self) -> None:
        outcome = self._context.outcome
        before = outcome.missing, outcome.doubled
        due: dict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
        optional: dict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
        for client, key, at in self._owed():
            (due if client.stays(at) else optional)[client.place][key] += 1
        for client in self._clients:
            got = Counter(
                (user, state) for connection in client.connections for user, state, _ in connection.signals
            )
            self._context.count(due[client.place], got, optional[client.place])
        if (outcome.missing, outcome.doubled) != before:
            missing, doubled = outcome.missing - before[0], outcome.doubled - before[1]
            outcome.notes.append(f"of these, typing and presence: {missing} missing, {doubled} duplicated")

    def _owed(self) -> Iterator[tuple[Client, tuple[str, str], int]]:
        """Yield which client should receive which signal, and when it was sent."""
        by_id = {client.user.id: client for client in self._clients}
        threads, groups = defaultdict(list), defaultdict(list)
        for client in self._clients:
            threads[client.user.thread].append(client)
            groups[client.user.group].append(client)
        for key, times in self.typing.sent.items():
            sender = by_id[key[0]]
            others = [client for client in threads[sender.user.thread] if client is not sender]
            yield from ((client, key, at) for client in others for at in times)
        for key, times in self.changes.sent.items():
            team = groups[by_id[key[0]].user.group]
            yield from ((client, key, at) for client in team for at in times)

    def latencies(self) -> array[int]:
        """Return those of what was sent while its receiver was connected: the rest waited for it to come back."""
        found = array("q")
        signals = self.typing.sent | self.changes.sent
        for client in self._clients:
            for connection, (start, _) in zip(client.connections, client.live, strict=True):
                for sequence, latency in zip(connection.sequences, connection.latencies, strict=True):
                    if self.sent.get(sequence, 0) >= start:
                        found.append(latency)
                for user, state, at in connection.signals:
                    times = signals.get((user, state), [])
                    if (last := bisect_right(times, at)) and times[last - 1] >= start:
                        found.append(at - times[last - 1])
        return found

    @property
    def delivered(self) -> int:
        """How many messages, typing events and changes of presence all clients have received in the day."""
        before = len(self._clients)
        connections = [connection for client in self._clients for connection in client.connections]
        return sum(len(each.sequences) + len(each.signals) for each in connections) - before


async def mixed_day(context: Context) -> None:
    """Small threads with messages, typing and presence, while 1 % of the clients a second drop and come back."""
    sizes = context.sizes
    async with context.crowd() as people, context.publisher() as publisher:
        clients = await _arrive(context, people)
        # Each client has received one message before the day, and so knows its position.
        count = sizes.mixed_threads + round(sizes.mixed_messages * sizes.mixed_seconds)
        commands = [context.packed(sequence, _thread(sequence, sizes)) for sequence in range(count)]
        await publisher.send(commands[: sizes.mixed_threads])
        await people.silence(1.0)
        people.read()
        for client in clients:
            client.connections[0].signals.clear()  # of presence, on arrival
        async with context.measured() as phase:
            async with asyncio.TaskGroup() as tasks:
                day = Day(context, people, clients, tasks)
                day.start(publisher, commands[sizes.mixed_threads :])
            await people.silence(1.0)
        people.read()
        day.check()
        context.outcome.metrics = {
            "cpu_us_per_delivery": phase.cpu / max(day.delivered, 1) * 1e6,
            "deliveries": day.delivered,
            "refused": day.refused,
            **percentiles(day.latencies()),
        }


async def _arrive(context: Context, people: Crowd) -> list[Client]:
    """Let all clients connect and join; return them in the order in which they drop."""
    users = [
        context.peer.user(index, f"t{thread}", f"g{thread // TEAM}" if not member else "")
        for index, (thread, member) in enumerate(_seats(context.sizes.mixed_threads))
    ]
    await gather(context, people, 0, users)
    order = random.Random(1).sample(people.connections, len(people.connections))  # noqa: S311  (the same each time)
    clients = [Client(connection.user, place) for place, connection in enumerate(order)]
    for client, connection in zip(clients, order, strict=True):
        client.enter(connection)
    return clients


def _seats(threads: int) -> Iterator[tuple[int, int]]:
    for thread in range(threads):
        yield from ((thread, member) for member in range(MEMBERS[thread % len(MEMBERS)]))


def _thread(sequence: int, sizes: Sizes) -> str:
    return f"t{sequence * 7 % sizes.mixed_threads}"


def _last(frames: Iterable[bytes]) -> bytes:
    return next((frame for frame in reversed([*frames]) if frame), b"")
