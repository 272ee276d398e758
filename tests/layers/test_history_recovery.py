"""What a history still has of what followed a position."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from realtime.layers import history
from realtime.layers.history import after, ends
from realtime.protocol.publication import Unrecoverable
from realtime.redis.client import client
from tests.inprocess import eventually
from tests.layers.support import (
    EVERYTHING,
    HERE,
    entry,
    limited,
    logged,
    microseconds,
    names,
    names_of,
    one,
    put,
    several,
)

pytestmark = pytest.mark.usefixtures("process")


# --- Recovery ----------------------------------------------------------------------------------------


async def test_after_a_position_in_the_log_comes_everything_that_followed():
    positions = await several(5)
    for index, position in enumerate(positions):
        found = await after(HERE, position, EVERYTHING)
        assert (found.end, found.missed) == (positions[-1], 4 - index)
        assert [publication.position for publication in found.publications] == positions[index + 1 :]


async def test_after_the_end_that_was_told_before_the_first_publication_comes_everything():
    end = (await ends([HERE]))[HERE]
    await several(3)
    found = await after(HERE, end, EVERYTHING)
    assert (found.missed, names_of(found.publications)) == (3, ["1", "2", "3"])


async def test_position_right_before_the_logs_first_entry_is_recoverable_and_the_one_before_it_is_not(
    settings,
):
    limited(settings, HISTORY_SIZE=3)
    positions = await several(6)
    found = await after(HERE, positions[2], EVERYTHING)
    assert (found.missed, names_of(found.publications)) == (3, ["4", "5", "6"])
    with pytest.raises(Unrecoverable) as lost:
        await after(HERE, positions[1], EVERYTHING)
    assert lost.value.end == positions[-1]


async def test_unknown_position_recovers_nothing():
    first, second, third = await several(3)
    for unknown in (1, first + 1 if second > first + 1 else second + 1, third + 1, third + 10**9):
        with pytest.raises(Unrecoverable) as lost:
            await after(HERE, unknown, EVERYTHING)
        assert lost.value.end == third


async def test_unknown_room_recovers_nothing():
    with pytest.raises(Unrecoverable):
        await after(HERE, await microseconds(), EVERYTHING)


async def test_room_quiet_for_longer_than_its_log_lives_recovers_with_nothing_missed():
    last_but_one, end = await several(2)
    await client().delete(f"{history.base(HERE)}:log")
    assert (await after(HERE, end, EVERYTHING)).missed == 0
    with pytest.raises(Unrecoverable):
        await after(HERE, last_but_one, EVERYTHING)
    await one("3")
    found = await after(HERE, end, EVERYTHING)
    assert (found.missed, names_of(found.publications)) == (1, ["3"])


@pytest.mark.parametrize("most", [0, 1, 3, 7, 100])
async def test_slices_hold_no_more_than_was_asked_for_and_say_the_whole_number(most: int):
    first, *_ = await several(10)
    found = await after(HERE, first, most)
    assert found.missed == 9
    assert names_of(found.publications) == [str(number) for number in range(2, 11)][:most]


async def test_slices_put_together_are_the_whole():
    position, *_ = await several(20)
    read: list[str] = []
    while (found := await after(HERE, position, 6)).publications:
        read += names_of(found.publications)
        position = found.publications[-1].position
    assert read == [str(number) for number in range(2, 21)]


# --- Trimming ----------------------------------------------------------------------------------------


async def test_log_keeps_so_many_entries_of_calls_of_any_size(settings):
    limited(settings, HISTORY_SIZE=4)
    await several(3)
    assert await names() == ["1", "2", "3"]
    await put(*(entry(str(number)) for number in range(4, 7)))
    assert await names() == ["3", "4", "5", "6"]
    await several(2, start=7)
    assert await names() == ["5", "6", "7", "8"]


async def test_log_without_history_keeps_nothing_and_still_counts_positions(settings):
    limited(settings, HISTORY_SIZE=0)
    first, second = await several(2)
    assert await names() == []
    assert (await after(HERE, second, EVERYTHING)).missed == 0
    with pytest.raises(Unrecoverable):
        await after(HERE, first, EVERYTHING)


async def test_log_keeps_so_many_bytes(settings):
    limited(settings, HISTORY_BYTES=10_000)
    for number in range(1, 51):
        await one(str(number), body=b"x" * 1000)
        kept = await logged()
        assert sum(len(publication.frame) for publication in kept) <= 10_000
        assert kept[-1].frame.startswith(b"%d" % number)
    assert len(kept) >= 7


async def test_log_of_few_large_ones_among_many_small_ones_keeps_no_more_bytes(settings):
    limited(settings, HISTORY_BYTES=10_000, HISTORY_SIZE=20)
    for number in range(1, 201):
        await one(str(number), body=b"x" * (4000 if number % 7 == 0 else 10))
        assert sum(len(publication.frame) for publication in await logged()) <= 10_000


async def test_newest_entry_is_kept_even_if_it_is_larger_than_the_whole_log_may_be(settings):
    limited(settings, HISTORY_BYTES=1000)
    await one("1")
    await one("2", body=b"x" * 5000)
    assert [name[:1] for name in await names()] == ["2"]
    await one("3")
    assert await names() == ["3"]


async def test_small_entries_do_not_add_up_for_ever(settings):
    limited(settings, HISTORY_BYTES=2000, HISTORY_SIZE=5)
    await several(300, body=b"x" * 10)
    assert await names() == [f"{number}xxxxxxxxxx" for number in range(296, 301)]


async def test_log_forgets_what_is_too_old(settings):
    limited(settings, HISTORY_TTL=0.3)
    first = await one("1")
    while await microseconds() < first + 400_000:
        await asyncio.sleep(0.02)
    second = await one("2")
    assert await names() == ["2"]
    assert (await after(HERE, first, EVERYTHING)).missed == 1
    assert 0 < await client().pttl(f"{history.base(HERE)}:log") <= 300
    while await client().exists(f"{history.base(HERE)}:log"):
        await asyncio.sleep(0.02)
    assert (await after(HERE, second, EVERYTHING)).missed == 0


async def test_busy_log_forgets_what_is_too_old(settings):
    limited(settings, HISTORY_TTL=1.0)
    await several(1)
    numbers = count(2)

    async def is_forgotten() -> bool:
        await several(1, start=next(numbers))
        return "1" not in await names()

    await eventually(is_forgotten)
