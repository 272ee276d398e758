"""What belongs to an event loop ends with it, however it ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop
from asgiref.sync import async_to_sync

from realtime.redis.client import client, execute, key, publish_sync
from realtime.redis.pipelining import pipes
from realtime.redis.sharded_pubsub import Subscriptions
from realtime.redis.topology import topology
from realtime.tasks.per_loop import PerLoop, is_short_lived_loop
from tests.inprocess import eventually


class Thing:
    """Something that is closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def made() -> list[Thing]:
    return []


@pytest.fixture
def things(made: list[Thing]) -> PerLoop[Thing]:
    def make() -> Thing:
        made.append(Thing())
        return made[-1]

    return PerLoop(make, Thing.close)


def with_asyncio(ask: Any) -> None:
    asyncio.run(ask())


def with_uvloop(ask: Any) -> None:
    uvloop.run(ask())


def with_asgiref(ask: Any) -> None:
    async_to_sync(ask)()


def with_failure(ask: Any) -> None:
    async def fail() -> None:
        await ask()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())


WAYS = [with_asyncio, with_uvloop, with_asgiref, with_failure]


@pytest.mark.parametrize("way", WAYS)
def test_value_is_one_per_loop_and_closed_with_it(
    things: PerLoop[Thing], made: list[Thing], way: Callable[[Any], None]
):
    async def ask() -> None:
        assert things() is things()
        assert made[-1].closed == 0

    for n in range(3):
        way(ask)
        assert [each.closed for each in made] == [1] * (n + 1)
    assert not len(things)


def test_value_of_a_loop_that_just_stopped_is_closed_when_another_loop_asks(
    things: PerLoop[Thing], made: list[Thing]
):
    async def ask() -> None:
        things()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(ask())
    loop.close()
    asyncio.run(ask())
    assert [each.closed for each in made] == [1, 1]
    assert not len(things)


def test_value_that_was_taken_away_is_its_takers(things: PerLoop[Thing], made: list[Thing]):
    async def ask() -> None:
        taken = things()
        assert things.pop() is taken
        assert things.pop() is None
        assert things() is not taken

    asyncio.run(ask())
    assert [each.closed for each in made] == [0, 1]


def test_threads_have_values_of_their_own(things: PerLoop[Thing], made: list[Thing]):
    async def ask() -> None:
        mine = things()
        await asyncio.sleep(0.001)
        assert things() is mine

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: asyncio.run(ask()), range(200)))
    assert [each.closed for each in made] == [1] * 200
    assert not len(things)


def test_loop_of_async_to_sync_is_short_lived_and_no_other_is():
    async def ask() -> bool:
        return is_short_lived_loop()

    assert async_to_sync(ask)()
    assert not asyncio.run(ask())


# --- Redis -------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def _no_complaints(realtime_redis: str) -> Iterator[None]:
    """Nothing is left for the garbage collector to complain of."""
    uvloop.run(asyncio.sleep(0))  # the first one of a process opens a pipe for all of them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # what earlier tests have left is not to be complained of here
        warnings.simplefilter("error")
        yield
        gc.collect()


async def use_everything() -> None:
    assert await execute("GET", key("nothing")) is None
    assert await client().get(key("nothing")) is None
    await topology().known()


@pytest.mark.usefixtures("_no_complaints")
@pytest.mark.parametrize("way", WAYS)
def test_no_connection_outlives_its_loop(way: Callable[[Any], None]):
    way(use_everything)
    gc.collect()
    before = descriptors()
    for _ in range(5):
        way(use_everything)
    gc.collect()
    assert descriptors() <= before


@pytest.mark.usefixtures("_no_complaints")
@pytest.mark.parametrize("way", WAYS)
def test_subscription_and_its_attempts_end_with_their_loop(way: Callable[[Any], None], settings):
    lost = threading.Event()
    subscribed: PerLoop[Subscriptions] = PerLoop(
        lambda: Subscriptions(lambda messages: None, lambda channels: lost.set(), lambda channels: None),
        Subscriptions.close,
    )

    async def subscribe() -> None:
        await subscribed().subscribe([b"a", b"b"])

    async def lose() -> None:
        await subscribe()
        lost.clear()
        await client().client_kill_filter(_type="pubsub")
        await eventually(lost.is_set)

    before = descriptors()
    for _ in range(5):
        way(subscribe)
        way(lose)
    gc.collect()
    assert descriptors() <= before


@pytest.mark.usefixtures("_no_complaints")
def test_threads_that_publish_share_connections():
    def publish(_: int) -> None:
        assert publish_sync(b"unheard", b"message") == 0

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(publish, range(4)))
        before = descriptors()
        list(threads.map(publish, range(400)))
        assert descriptors() <= before + 4


async def test_pipes_are_shared_within_a_loop(process: str):
    assert pipes() is pipes()
    assert await asyncio.gather(execute("GET", key("x")), execute("GET", key("y"))) == [None, None]
