from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from realtime.layers import history
from realtime.layers.history import after, append, ends
from realtime.protocol.publication import Draft, Publication, Unrecoverable, parse_position, unpack
from realtime.redis.client import client, key
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import PATIENCE, eventually

HERE, THERE = "hub.thread.42", "portal.thread.42"
EVERYTHING = 10_000
pytestmark = pytest.mark.usefixtures("process")


def entry(
    name: str = "", *groups: str, source: str = "stream", id: str = "", exclude: str = "", body: bytes = b""
) -> Draft:
    """An entry that goes to `groups` (HERE, when none is named) and whose frame says `<name><body>@<position>`."""
    rooms = [(group, name.encode() + body + b"@") for group in groups or (HERE,)]
    return Draft(
        rooms=rooms,
        tail=b"!",
        source=source if name else "",
        entry=f"{name:0>20}",
        id=id,
        exclude=exclude,
    )


async def put(*entries: Draft, publish: bool = False, **options) -> list[list[int]]:
    """Append, to rooms that need not have been entered; the positions, 0 where an entry was left out."""
    appended = await append(entries, publish=publish, **options)
    return [[int(position or 0) for position in found] for found in appended[: len(entries)]]


async def refused(*entries: Draft) -> list[tuple[int, str]]:
    """Append; the number of each entry that Redis refuses, and the code of its error."""
    appended = await append(entries, publish=False)
    return [(int(number), why.split()[0].decode()) for number, why in history.refusals(appended, entries)]


async def one(name: str, *groups: str, **options) -> int:
    """Append an entry to HERE; its position there."""
    ((position, *_),) = await put(entry(name, *groups, **options))
    return position


async def several(count: int, *, start: int = 1, **options) -> list[int]:
    """Append entries one after the other, each a little later than the one before."""
    return [await one(str(number), **options) for number in range(start, start + count)]


async def logged(group: str = HERE) -> list[Publication]:
    """Everything that is in the log."""
    found: Any = await client().xrange(f"{history.base(group)}:log")
    return [unpack(fields[b"p"]) for _, fields in found]


async def names(group: str = HERE) -> list[str]:
    """What is in the log, by the names of its entries."""
    return names_of(await logged(group))


def names_of(publications: Sequence[Publication]) -> list[str]:
    return [publication.frame.partition(b"@")[0].decode() for publication in publications]


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """What is published in HERE, one after the other."""
    async with client().pubsub() as subscription:
        await subscription.subscribe(history.channel(HERE))
        await subscription.get_message(timeout=PATIENCE)

        async def next_one() -> bytes:
            message = await subscription.get_message(ignore_subscribe_messages=True, timeout=PATIENCE)
            assert message is not None
            return message["data"]

        yield next_one


async def microseconds() -> int:
    seconds, micro = await client().time()
    return int(seconds) * 1_000_000 + int(micro)


def limited(settings, **limits) -> None:
    settings.REALTIME = {**settings.REALTIME, **limits}


# --- Positions ---------------------------------------------------------------------------------------


async def test_positions_of_a_room_strictly_increase():
    found = await several(5) + [position for (position,) in await put(*(entry(str(n)) for n in range(6, 60)))]
    assert found == sorted(set(found))


async def test_position_is_not_behind_the_clock_so_that_a_redis_that_lost_its_newest_writes_hands_out_no_old_one():
    before = await microseconds()
    assert before <= await one("1") <= await microseconds()


async def test_position_is_not_reused_when_the_room_is_forgotten():
    seen = await one("1")
    await client().delete(f"{history.base(HERE)}:room")
    assert await one("2") > seen
    await client().delete(f"{history.base(HERE)}:room", f"{history.base(HERE)}:log")
    assert await one("3") > seen


@pytest.fixture
async def ahead() -> int:
    """The end of HERE, an hour ahead of the clock: Redis' clock was set back, or another server took over."""
    await ends([HERE])
    ahead = await microseconds() + 3_600_000_000
    await client().hset(f"{history.base(HERE)}:room", "position", ahead)
    return ahead


async def test_positions_increase_while_the_clock_is_behind(ahead: int):
    assert await several(3) == [ahead + 1, ahead + 2, ahead + 3]
    assert (await after(HERE, ahead + 1, EVERYTHING)).missed == 2


async def test_position_is_not_reused_when_the_room_is_forgotten_while_the_clock_is_behind(ahead: int):
    seen = await one("1")
    await client().delete(f"{history.base(HERE)}:room")
    assert await one("2") > seen
    assert await names() == ["2"]


async def test_room_forgotten_while_its_log_was_not_recovers_nothing_from_before():
    first, *_ = await several(3)
    await client().delete(f"{history.base(HERE)}:room")
    (end,) = (await ends([HERE])).values()
    assert end > first
    with pytest.raises(Unrecoverable):
        await after(HERE, first, EVERYTHING)
    later = await one("4")
    assert (await after(HERE, end, EVERYTHING)).missed == 1
    with pytest.raises(Unrecoverable) as lost:
        await after(HERE, first, EVERYTHING)
    assert lost.value.end == later


async def test_rooms_have_positions_of_their_own():
    ((here, there),) = await put(entry("1", HERE, THERE))
    later = await one("2", HERE)
    assert here
    assert there
    assert await ends([HERE, THERE]) == {HERE: later, THERE: there}


async def test_concurrent_entries_never_share_a_position():
    found = await asyncio.gather(*(one("1", source=f"source-{n}") for n in range(50)))
    assert len(set(found)) == 50
    assert 0 not in found


# --- Rooms that were never entered ---------------------------------------------------------------------


async def test_nothing_is_kept_of_what_no_client_could_ever_ask_for():
    assert await append([entry("1", id="order-7")]) == [[b"0"]]
    assert await client().keys(f"{history.base(HERE)}*") == []


async def test_room_that_was_entered_is_kept_though_it_is_empty():
    end = (await ends([HERE]))[HERE]
    ((position,),) = await put(entry("1"), publish=True)
    assert position > end
    assert names_of((await after(HERE, end, EVERYTHING)).publications) == ["1"]


async def test_room_that_redis_forgot_is_kept_for_clients_that_are_in_it():
    async with listening():
        assert await put(entry("1"), publish=True) != [[0]]


async def test_entry_is_delivered_in_rooms_that_were_entered_and_nowhere_else():
    await ends([THERE])
    ((here, there),) = await put(entry("1", HERE, THERE, id="order-7"), publish=True)
    assert (here, bool(there)) == (0, True)
    await ends([HERE])  # who comes later does not get it when a bridge submits it again
    assert await put(entry("1", HERE, THERE, id="order-7"), publish=True) == [[0, 0]]
    assert await names() == []


# --- Ends --------------------------------------------------------------------------------------------


async def test_end_of_an_unknown_room_is_now():
    before = await microseconds()
    assert before <= (await ends([HERE]))[HERE] <= await microseconds()


async def test_quiet_room_is_remembered_for_a_week():
    await ends([HERE])
    assert 7 * 86400 - 10 < await client().ttl(f"{history.base(HERE)}:room") <= 7 * 86400


async def test_room_is_never_forgotten_before_its_log(settings):
    limited(settings, HISTORY_TTL=30 * 86400)
    await one("1")
    await ends([HERE])
    assert await client().ttl(f"{history.base(HERE)}:room") >= await client().ttl(f"{history.base(HERE)}:log")


# --- Frames and publishing ---------------------------------------------------------------------------


async def test_what_is_published_is_what_is_in_the_log():
    excluded = ["a", "c" * 32, "another's idea of a connection id " * 5, "ünïcode", ""]
    entries = [
        entry(f"{number}", exclude=each, body="ünï".encode()) for number, each in enumerate(excluded, 1)
    ]
    async with listening() as next_one:
        await put(*entries, publish=True)
        published = [unpack(await next_one()) for _ in entries]
    assert published == await logged()
    assert [publication.exclude for publication in published] == excluded
    assert [publication.previous for publication in published[1:]] == [p.position for p in published[:-1]]


async def test_nothing_is_published_when_another_channel_layer_does_that():
    async with listening() as next_one:
        await put(entry("1"), publish=False)
        await client().publish(history.channel(HERE), b"end")
        assert await next_one() == b"end"
    assert await names() == ["1"]


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


# --- Many rooms --------------------------------------------------------------------------------------


ROOMS = [f"hub.thread.{number}" for number in range(200)]
BODY = b"x" * 100_000


def everywhere(name: str, groups: Sequence[str] = ROOMS) -> Draft:
    rooms = [(group, f"{name}@".encode()) for group in groups]
    return Draft(rooms=rooms, tail=BODY, source="stream", entry=f"{name:0>20}")


async def test_body_is_sent_once_however_many_rooms_get_it():
    await one("0")  # a server that does not have the script yet gets the command a second time, with it
    before = (await client().info("stats"))["total_net_input_bytes"]
    ((*positions,),) = await put(everywhere("1"))
    assert all(positions)
    assert (await client().info("stats"))["total_net_input_bytes"] - before < 2 * len(BODY)
    assert all([(await logged(group))[0].frame.endswith(BODY) for group in ROOMS[::50]])


async def test_what_many_rooms_cost_is_bounded():
    entries = [everywhere(name, [f"hub.thread.{n}" for n in range(1000)]) for name in ("1", "2")]
    tracemalloc.start()
    try:
        await append(entries)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


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


# --- Offsets of clients ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "1795000000000000", "9" * 18])
def test_offset_that_could_be_ours_is_a_position(text: str):
    assert parse_position(text) == int(text)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "+1", "1.5", " 1", "1 ", "1\n", "007", "1e5", "١", "9" * 19, "latest"]
)
def test_offset_that_cannot_be_ours_is_no_position(text: str):
    assert parse_position(text) is None


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
