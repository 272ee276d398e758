"""Each entry is in the history of each of its rooms once, whatever fails and however often it is submitted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from realtime.layers import history
from realtime.layers.history import append
from realtime.protocol.publication import Draft
from realtime.redis.client import client, key
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.layers.support import HERE, THERE, entry, limited, logged, microseconds, names, one, put

pytestmark = pytest.mark.usefixtures("process")


async def refused(*entries: Draft) -> list[tuple[int, str]]:
    """Append; the number of each entry that Redis refuses, and the code of its error."""
    appended = await append(entries, publish=False)
    return [(int(number), why.split()[0].decode()) for number, why in history.refusals(appended, entries)]


# --- Exactly once ------------------------------------------------------------------------------------


async def test_same_batch_again_does_nothing():
    batch = [entry("1"), entry("2", HERE, THERE), entry("3", id="order-7")]
    first = await put(*batch)
    assert all(all(positions) for positions in first)
    assert await put(*batch) == [[0], [0, 0], [0]]
    assert await names() == ["1", "2", "3"]
    assert await names(THERE) == ["2"]


async def test_batch_that_overlaps_another_bridges_appends_only_what_is_new():
    await put(entry("1"), entry("2"))
    appended = await put(*(entry(str(number)) for number in (1, 2, 3, 4)))
    assert [bool(position) for (position,) in appended] == [False, False, True, True]
    assert await names() == ["1", "2", "3", "4"]


async def test_entry_is_left_out_only_in_rooms_that_had_it():
    await one("1", HERE)
    ((here, there),) = await put(entry("1", HERE, THERE))
    assert (here, bool(there)) == (0, True)


async def test_sources_do_not_hide_each_others_entries():
    await one("9", source="stream")
    assert await one("1", source="presence")
    assert await one("9", source="stream") == 0


async def test_entry_without_a_source_is_appended_every_time():
    assert await one("") < await one("")


async def test_script_flushed_between_and_within_batches_changes_nothing():
    for number in range(10):
        await client().script_flush()
        await put(entry(str(2 * number)), entry(str(2 * number + 1)))
        await client().script_flush()
        await put(entry(str(2 * number)), entry(str(2 * number + 1)))
    assert await names() == [str(number) for number in range(20)]


# --- Idempotency -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sources", [("stream", "stream"), ("", "stream"), ("stream", ""), ("", "")])
async def test_id_that_was_delivered_is_a_duplicate_whichever_way_it_comes(sources: tuple[str, str]):
    first, second = sources
    assert await one("1" if first else "", source=first, id="order-7")
    assert await one("2" if second else "", source=second, id="order-7") == 0
    assert len(await logged()) == 1


async def test_what_follows_a_duplicate_is_delivered():
    await put(entry("1", id="order-7"), entry("2", id="order-7"), entry("3"))
    assert await names() == ["1", "3"]
    assert await one("2") == 0


async def test_ids_with_any_characters_are_told_apart():
    ids = ["a", "a:b", "{a}", "a b", "ä", '"', "a\n"]
    assert all([await one(str(number), id=id) for number, id in enumerate(ids, start=1)])
    assert not any([await one(str(number), id=id) for number, id in enumerate(ids, start=10)])


async def test_id_is_a_duplicate_in_whichever_rooms_it_comes_again():
    await one("1", HERE, id="order-7")
    assert await put(entry("2", HERE, THERE, id="order-7"), entry("3", THERE, id="order-7")) == [[0, 0], [0]]


async def test_id_is_remembered_for_ten_minutes():
    await one("1", id="order-7")
    marker = key("id", "order-7")
    assert 590 < await client().ttl(marker) <= 600
    await client().delete(marker)
    assert await one("2", id="order-7")


async def test_entry_that_a_room_lost_is_appended_again_behind_what_came_later():
    """A replica that took over had not got it, and something that no stream brought has come meanwhile."""
    written = (await microseconds()) // 1000
    await one(f"{written:020d}-{0:020d}")
    await put(entry(""))
    lost = f"{written:020d}-{1:020d}"
    ((position,),) = await put(entry(lost), again=lost)
    assert position


# --- The cursor --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cursors", "end"),
    [
        (["9-10", "10-1"], "10-1"),
        (["10-1", "9-10"], "10-1"),
        (["5-1", "5-0"], "5-1"),
        (["5-9", "5-10"], "5-10"),
        (["999-0", "1000-0"], "1000-0"),
        (["1000-0", "999-99999"], "1000-0"),
        (["1795000000000-3", "1795000000000-2", "1795000000000-4"], "1795000000000-4"),
        (["0", "1795000000000-3"], "1795000000000-3"),  # as an operator may write it
        (["1795000000001", "1795000000000-3", "1795000000001-1"], "1795000000001-1"),
    ],
)
async def test_cursor_of_a_bridge_that_is_behind_moves_nothing_back(cursors: list[str], end: str):
    for each in cursors:
        await append([], cursor=(key("cursors"), b"stream", each.encode()))
    assert await client().hget(key("cursors"), "stream") == end.encode()


# --- Failures half-way -------------------------------------------------------------------------------


async def test_entry_that_redis_refuses_holds_back_no_other_and_the_rest_is_not_done_again():
    broken = f"{history.base(THERE)}:log"
    await client().set(broken, "not ours")
    batch = [entry("1"), entry("2", HERE, THERE, id="order-7"), entry("3")]
    for _ in range(3):
        assert await refused(*batch) == [(1, "WRONGTYPE")]
        assert await names() == ["1", "2", "3"]
    await client().delete(broken)
    await put(*batch)
    assert await names() == ["1", "2", "3"]
    assert await names(THERE) == ["2"]


async def test_id_that_was_delivered_before_a_refusal_stays_delivered():
    await client().set(f"{history.base(THERE)}:log", "not ours")
    assert await refused(entry("1", id="order-7"), entry("2", THERE)) == [(1, "WRONGTYPE")]
    assert await put(entry("3", source="presence", id="order-7")) == [[0]]


async def test_room_that_is_broken_says_why_and_its_entry_is_not_lost_elsewhere():
    await client().hset(f"{history.base(THERE)}:room", mapping={"position": "nonsense"})
    for _ in range(2):
        assert await refused(entry("1", HERE, THERE, id="order-7")) == [(0, "ERR")]
    assert await names() == ["1"]


# --- The lease ---------------------------------------------------------------------------------------


async def test_holder_of_the_lease_appends():
    await client().set(key("lease", "bridge"), "me")
    ((position,),) = await put(entry("1"), lease=(key("lease", "bridge"), "me"))
    assert position


@pytest.mark.parametrize("holder", ["another bridge", None])
async def test_nothing_is_appended_in_the_name_of_a_lease_that_was_lost(holder: str | None):
    if holder:
        await client().set(key("lease", "bridge"), holder)
    assert await put(entry("1"), lease=(key("lease", "bridge"), "me")) == []
    assert await logged() == []


# --- Out of memory -----------------------------------------------------------------------------------


@pytest.fixture
def small_redis(settings) -> Iterator[EmbeddedRedis]:
    """A server that is soon full."""
    with EmbeddedRedis(None, "--maxmemory", "4mb") as server:
        limited(settings, REDIS_URL=server.url)
        yield server


def fill(redis: Redis) -> None:
    with contextlib.suppress(OutOfMemoryError):
        while True:
            redis.rpush("ballast", b"x" * 50_000)


async def test_batch_that_found_redis_full_is_delivered_once_when_it_is_submitted_again(
    small_redis: EmbeddedRedis,
):
    batches = [
        [
            entry(f"{10 * number + n:04}", HERE, THERE, id=f"id-{number}-{n}", body=b"x" * 200)
            for n in range(10)
        ]
        for number in range(1, 61)
    ]
    full_before, refused = {5, 20, 40}, 0
    with small_redis.client() as other:
        for number, batch in enumerate(batches):
            if number in full_before:
                fill(other)
            while True:
                try:
                    await put(*batch)
                    break
                except OutOfMemoryError:
                    refused += 1
                    if refused % 3 == 0:
                        other.delete("ballast")
    assert refused >= 3 * len(full_before)
    for group in (HERE, THERE):
        assert [name[:4] for name in await names(group)] == [f"{number:04}" for number in range(10, 610)]


async def test_batch_in_the_middle_of_which_redis_gets_full_is_delivered_once_when_it_is_submitted_again(
    small_redis: EmbeddedRedis, settings
):
    limited(settings, HISTORY_BYTES=100_000_000)
    batches = [
        [entry(f"{20 * number + n:04}", body=b"x" * 3000) for n in range(20)] for number in range(1, 91)
    ]
    refused = 0
    with small_redis.client() as other:
        for batch in batches:
            while True:
                try:
                    await put(*batch)
                    break
                except OutOfMemoryError:
                    refused += 1
                    other.xtrim(f"{history.base(HERE)}:log", maxlen=100)  # passes where nothing else does
    assert refused
    kept = [name[:4] for name in await names()]
    assert kept == [f"{number:04}" for number in range(20, 20 + 20 * len(batches))][-len(kept) :]
    assert len(kept) >= 100
