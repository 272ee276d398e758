"""Comings, goings and losses in any order, against a model: everything once and in order, or a gap is said."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from django.conf import settings as django_settings
from django.test import override_settings
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis.exceptions import RedisError

from dev.embedded_redis import EmbeddedRedis
from realtime.layers import history
from realtime.layers.listener import Listener
from realtime.layers.outlets import payloads
from realtime.layers.room_layer import RoomChannelLayer
from realtime.protocol.publication import Draft
from realtime.protocol.rooms import group_name
from realtime.redis import client as redis_module
from realtime.redis.client import client
from tests.inprocess import HUB, eventually

ROOMS = ("thread:1", "thread:2")
HISTORY = 12
"""Publications a room remembers: few, so that much is forgotten."""


@dataclass(frozen=True)
class Gap:
    """The client was told that something is missing, and that it is live from here."""

    position: int


@dataclass(frozen=True)
class Start:
    """The client was told that it has everything up to here."""

    position: int


class Connection:
    """What a consumer does with its rooms, and what its client therefore sees."""

    is_behind = False

    def __init__(self, layer: RoomChannelLayer, seen: dict[str, list[Any]]) -> None:
        self.connection_id = uuid4().hex
        self.layer = layer
        self.seen = seen
        self.rooms: dict[str, Listener] = {}

    async def open(self) -> Connection:
        self.channel = await self.layer.attach(self)
        return self

    async def close(self) -> None:
        for listener in self.rooms.values():
            self.layer.leave(listener, self.channel)
        self.layer.detach(self.channel)
        self.rooms.clear()

    async def enter(self, room: str) -> Listener:
        (listener,) = await again(lambda: self.layer.enter([group_name(HUB, room)], self, self.channel))
        self.rooms[room] = listener
        return listener

    async def join(self, room: str) -> None:
        if room not in self.rooms:
            listener = await self.enter(room)
            self.seen[room].append(Start(listener.position))
            listener.start()

    async def rejoin(self, room: str, since: int) -> bool:
        """Whether what was missed could be had. In a room it is in, as well as in one that it was in."""
        if (listener := self.rooms.get(room)) is None:
            listener = await self.enter(room)
        else:
            listener.pause()
            since = position_of(self.seen[room][-1])
        missed = await again(lambda: self.layer.missed(listener, str(since)))
        self.seen[room].append(Gap(listener.position) if missed is None else Start(since))
        listener.start()
        return missed is not None

    # The outlet:

    def write(self, frames: bytes) -> None:
        for payload in payloads(frames):
            room, _, position = payload.decode().partition("@")
            assert room in self.rooms
            self.seen[room].append(int(position))

    async def drained(self) -> None:
        await asyncio.sleep(0)

    def gap(self, room: str, reason: str) -> None:
        self.seen[room].append(Gap(self.rooms[room].position))

    def message(self, message: dict[str, Any]) -> None:
        raise AssertionError(message)


Answer = TypeVar("Answer")


async def again(work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Until Redis answers, as a bridge or a client would try."""
    for _ in range(20):
        with contextlib.suppress(RedisError, OSError):
            return await work()
        await asyncio.sleep(0.05)
    return await work()


async def asked(work: Callable[[], Awaitable[Any]]) -> None:
    """For commands to the client of the running loop."""
    await again(work)


rooms = st.sampled_from(ROOMS)
slots = st.integers(0, 3)


class Recovery(RuleBasedStateMachine):
    """Two processes, four clients, two rooms, one Redis."""

    server: EmbeddedRedis

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.published: dict[str, list[int]] = defaultdict(list)
        """The truth: every position of every room, in order."""
        self.forgetful = False
        """Something was lost or forgotten: that a gap is said may be right."""
        self.connections: dict[int, Connection] = {}
        self.seen: list[dict[str, list[Any]]] = [defaultdict(list) for _ in range(4)]
        """By client and room: what was seen, over all of the client's connections."""
        self.entries = 0

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    @initialize(history=st.sampled_from([5, 1000]))
    def begin(self, history: int) -> None:
        self.forgetful = history < 1000
        self.override = override_settings(
            REALTIME={
                **django_settings.REALTIME,
                "REDIS_URL": self.server.url,
                "PREFIX": f"m{uuid4().hex[:12]}",
                "HISTORY_SIZE": history,
            }
        )
        self.override.enable()
        self.layers = [RoomChannelLayer() for _ in range(2)]

    # --- What clients do -------------------------------------------------------------------------

    async def connection(self, slot: int) -> Connection:
        if slot not in self.connections:
            connection = Connection(self.layers[slot % 2], self.seen[slot])
            self.connections[slot] = await connection.open()
        return self.connections[slot]

    async def come(self, slot: int, room: str) -> None:
        """Join, or come back with the last offset seen."""
        connection = await self.connection(slot)
        if seen := self.seen[slot][room]:
            recovered = await connection.rejoin(room, position_of(seen[-1]))
            assert recovered or self.forgetful
        else:
            await connection.join(room)

    @rule(slot=slots, room=rooms)
    def client_comes(self, slot: int, room: str) -> None:
        self.run(self.come(slot, room))

    @rule(slot=slots)
    def client_drops(self, slot: int) -> None:
        if connection := self.connections.pop(slot, None):
            self.run(connection.close())

    @rule(slot=slots)
    def client_moves_to_the_other_process(self, slot: int) -> None:
        if connection := self.connections.pop(slot, None):
            rooms = sorted(connection.rooms)
            self.run(connection.close())
            other = self.layers[1 - self.layers.index(connection.layer)]
            self.connections[slot] = self.run(Connection(other, self.seen[slot]).open())
            for room in rooms:
                self.run(self.come(slot, room))

    # --- What is published -----------------------------------------------------------------------

    async def publish(self, room: str, count: int, *, silent: bool = False, twice: bool = False) -> None:
        batch = []
        for _ in range(count):
            self.entries += 1
            group = group_name(HUB, room)
            batch.append(
                Draft(
                    rooms=[(group, f"{room}@".encode())],
                    tail=b"",
                    source="stream",
                    entry=f"{self.entries:020d}",
                )
            )
        appended = await again(lambda: history.append(batch, publish=not silent))
        # Nothing is kept of a room that nobody has entered yet.
        self.published[room] += [int(position) for (position,) in appended if position != b"0"]
        if twice:
            again_appended = await again(lambda: history.append(batch))
            for (position,), (repeated,) in zip(appended, again_appended, strict=True):
                if position != b"0":
                    assert repeated == b"", "it was appended twice"
                elif repeated != b"0":  # the room has been entered meanwhile
                    self.published[room].append(int(repeated))

    @rule(room=rooms, count=st.integers(1, 8), twice=st.booleans())
    def bridge_publishes(self, room: str, count: int, twice: bool) -> None:
        self.run(self.publish(room, count, twice=twice))

    @rule(room=rooms, lost=st.integers(1, 8))
    def publications_do_not_arrive_and_the_next_does(self, room: str, lost: int) -> None:
        self.run(self.publish(room, lost, silent=True))
        self.run(self.publish(room, 1))

    @rule(
        count=st.integers(5, 30),
        comers=st.lists(st.tuples(slots, rooms), max_size=4, unique_by=lambda comer: comer[0]),
        cuts=st.integers(0, 2),
    )
    def everything_happens_at_once(self, count: int, comers: list[tuple[int, str]], cuts: int) -> None:
        async def talk(room: str) -> None:
            for _ in range(count):
                await self.publish(room, 1)

        async def cut() -> None:
            for _ in range(cuts):
                await asyncio.sleep(0.002)
                await client().client_kill_filter(_type="pubsub")

        async def everything() -> None:
            await asyncio.gather(*map(talk, ROOMS), cut(), *(self.come(slot, room) for slot, room in comers))

        self.run(everything())

    # --- What goes wrong -------------------------------------------------------------------------

    @rule()
    def subscriptions_are_cut(self) -> None:
        self.run(asked(lambda: client().client_kill_filter(_type="pubsub")))

    @rule()
    def scripts_are_flushed(self) -> None:
        self.run(asked(lambda: client().script_flush()))

    @rule(room=rooms, kept=st.integers(0, 3))
    def log_is_trimmed(self, room: str, kept: int) -> None:
        self.forgetful = True
        self.run(
            asked(
                lambda: client().xtrim(
                    f"{history.base(group_name(HUB, room))}:log", maxlen=kept, approximate=False
                )
            )
        )

    @rule(room=rooms)
    def room_is_forgotten(self, room: str) -> None:
        self.forgetful = True
        self.run(asked(lambda: client().delete(f"{history.base(group_name(HUB, room))}:room")))

    @rule()
    def redis_forgets_everything(self) -> None:
        self.forgetful = True
        self.run(asked(lambda: client().flushall()))

    @rule()
    def redis_is_restarted_empty(self) -> None:
        self.forgetful = True
        self.server.stop(SIGKILL)
        self.server.start()

    # --- What must hold --------------------------------------------------------------------------

    @rule()
    def everything_has_arrived(self) -> None:
        """Whoever is in a room gets to its end, or is told of a gap there."""
        for slot, connection in self.connections.items():
            for room in connection.rooms:
                seen, published = self.seen[slot][room], self.published[room]
                self.run(arrived(seen, published[-1] if published else 0))
        for slot in range(4):
            for room in ROOMS:
                self.assert_complete(self.seen[slot][room], self.published[room])

    def assert_complete(self, seen: list[Any], published: list[int]) -> None:
        assert published == sorted(set(published))
        position = 0
        for each in seen:
            if isinstance(each, int):
                assert each == next_of(published, position), (seen, published)
            else:
                assert position_of(each) >= position, (seen, published)
                assert isinstance(each, Start) or self.forgetful, "nothing was lost"
            position = position_of(each)

    def teardown(self) -> None:
        try:
            if hasattr(self, "layers"):
                self.everything_has_arrived()
        finally:
            self.run(self.close())
            self.loop.close()
            if hasattr(self, "override"):
                self.override.disable()

    async def close(self) -> None:
        for layer in getattr(self, "layers", []):
            await layer.flush()
        await redis_module.close()


def position_of(seen: int | Gap | Start) -> int:
    return seen if isinstance(seen, int) else seen.position


def next_of(published: list[int], position: int) -> int:
    return published[bisect_right(published, position)]


async def arrived(seen: list[Any], end: int) -> None:
    await eventually(lambda: position_of(seen[-1]) >= end)


@pytest.mark.parametrize("examples", [20, pytest.param(70, marks=pytest.mark.slow)])
def test_every_client_sees_everything_once_and_in_order_or_is_told_of_a_gap(examples: int):
    with EmbeddedRedis() as server:

        class OnServer(Recovery):
            pass

        OnServer.server = server
        run_state_machine_as_test(
            OnServer,
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],  # what depends on the moment cannot be made smaller
                suppress_health_check=list(HealthCheck),
            ),
        )
