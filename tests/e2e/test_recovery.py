"""A client that comes back gets everything it missed, in order and once, or `recovered: false`."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.harness import SERVERS, Client, Stack, eventually, free_port, unique


def say(stack: Stack, thread: str, *ids: Any) -> None:
    """Publish messages of a thread."""
    for message_id in ids:
        stack.add("thread:message", {"thread_id": thread, "message_id": message_id})


def frames_of(client: Client, room: str) -> list[dict[str, Any]]:
    """What the client got in this room, with its place among everything it got."""
    return [frame for frame in client.frames if frame.get("room") == room and "offset" in frame]


def ids_of(client: Client, thread: str) -> list[str]:
    """The messages the client got in this thread, in order."""
    return [frame["data"]["message_id"] for frame in frames_of(client, f"thread:{thread}")]


async def got(client: Client, thread: str, *ids: Any) -> None:
    """The client gets exactly these messages, in this order."""
    expected = [str(message_id) for message_id in ids]
    with contextlib.suppress(AssertionError):
        await eventually(lambda: len(ids_of(client, thread)) >= len(expected))
    assert ids_of(client, thread) == expected


async def heard(client: Client, thread: str, message_id: Any) -> str:
    """Wait for a message; its offset."""
    return (await client.expect("thread:message", thread_id=thread, message_id=str(message_id)))["offset"]


def assert_ack_comes_first(client: Client, answer: dict[str, Any], room: str) -> None:
    acknowledged = next(n for n, frame in enumerate(client.frames) if frame["data"] == answer)
    assert all(client.frames.index(frame) > acknowledged for frame in frames_of(client, room))


async def left_off(stack: Stack, thread: str, *ids: Any, **options: Any) -> str:
    """A client was in the thread for these messages, and is gone: the last offset that it saw."""
    async with stack.client(**options) as client:
        offset = (await client.call("join:thread", {"thread_id": thread}))["offset"]
        say(stack, thread, *ids)
        for message_id in ids:
            offset = await heard(client, thread, message_id)
        client.drop()
    return offset


# --- What was missed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["join:thread", "resume"])
async def test_who_comes_back_gets_what_was_missed_after_the_ack_and_before_what_is_new(
    stack: Stack, event: str
):
    thread = unique("th")
    room = f"thread:{thread}"
    since = await left_off(stack, thread, 1, 2)
    async with stack.client("hub") as other, stack.client("hub") as client:
        await other.call("join:thread", {"thread_id": thread})
        say(stack, thread, 3, 4, 5)
        await heard(other, thread, 5)
        if event == "join:thread":
            answer = await client.call("join:thread", {"thread_id": thread, "since": since})
            assert answer == {"room": room, "offset": since, "recovered": True, "missed": 3}
        else:
            answer = await client.call("resume", {"rooms": {room: since}})
            assert answer == {"rooms": {room: {"offset": since, "recovered": True, "missed": 3}}}
        say(stack, thread, 6, 7)
        await got(client, thread, 3, 4, 5, 6, 7)
        assert_ack_comes_first(client, answer, room)
        offsets = [int(frame["offset"]) for frame in frames_of(client, room)]
        assert offsets == sorted(set(offsets))
        assert min(offsets) > int(since)
        assert [f["offset"] for f in frames_of(other, room)][-5:] == [str(offset) for offset in offsets]


@pytest.mark.parametrize("event", ["join:thread", "resume"])
async def test_what_leaves_a_connection_out_is_not_counted_as_missed_by_it(stack: Stack, event: str):
    thread = unique("th")
    room = f"thread:{thread}"
    async with stack.client("hub") as other, stack.client("hub") as client:
        since = await left_off(stack, thread, 1, 2)
        await other.call("join:thread", {"thread_id": thread})
        say(stack, thread, 3)
        for number in (4, 5):
            data = {"thread_id": thread, "message_id": str(number)}
            stack.add("thread:message", data, **{"except": client.ready["connection_id"]})
        say(stack, thread, 6)
        await heard(other, thread, 6)
        if event == "join:thread":
            answer = await client.call("join:thread", {"thread_id": thread, "since": since})
            assert answer == {"room": room, "offset": since, "recovered": True, "missed": 2}
        else:
            answer = await client.call("resume", {"rooms": {room: since}})
            assert answer == {"rooms": {room: {"offset": since, "recovered": True, "missed": 2}}}
        await got(client, thread, 3, 6)
        answer = await other.call("join:thread", {"thread_id": thread, "since": since})
        assert answer["missed"] == 4


async def test_every_room_of_a_resume_is_recovered_by_itself(stack: Stack):
    threads = [unique("th") for _ in range(4)]
    user = unique("u")
    async with stack.client("hub", user) as client:
        since = {f"user:{user}": client.ready["rooms"][f"user:{user}"]}
        for thread in threads:
            since[f"thread:{thread}"] = (await client.call("join:thread", {"thread_id": thread}))["offset"]
    for number, thread in enumerate(threads):
        say(stack, thread, *range(number))
    stack.add("user:notification", {"user_id": user, "n": 1})
    async with stack.client("hub") as other:
        await other.call("join:thread", {"thread_id": threads[-1]})
        say(stack, threads[-1], 3)
        await heard(other, threads[-1], 3)  # everything before it was delivered, too
    async with stack.client("hub", user, query="resume=1") as client:
        answer = (await client.call("resume", {"rooms": since}))["rooms"]
        assert {room: (a["recovered"], a["missed"], a["offset"]) for room, a in answer.items()} == {
            **{f"thread:{t}": (True, n, since[f"thread:{t}"]) for n, t in enumerate(threads[:-1])},
            f"thread:{threads[-1]}": (True, 4, since[f"thread:{threads[-1]}"]),
            f"user:{user}": (True, 1, since[f"user:{user}"]),
        }
        for number, thread in enumerate(threads[:-1]):
            await got(client, thread, *range(number))
        await got(client, threads[-1], 0, 1, 2, 3)
        await client.expect("user:notification", n=1)
        say(stack, threads[0], "live")
        await got(client, threads[0], "live")


async def test_nothing_is_lost_or_doubled_for_a_client_that_comes_and_goes_during_publishing_at_full_speed(
    stack: Stack,
):
    chance = random.Random(3)
    threads = [unique("th") for _ in range(3)]
    count = 400
    seen: dict[str, list[str]] = {thread: [] for thread in threads}
    since: dict[str, str] = {}
    visits = 0

    async def publish() -> None:
        for number in range(count):
            # This publishes at full speed, but waits until the client has come three times.
            await eventually(lambda number=number: visits > number // 150)
            for thread in threads:
                say(stack, thread, number)
            await asyncio.sleep(0.001)

    async with stack.client("hub") as client:
        for thread in threads:
            since[f"thread:{thread}"] = (await client.call("join:thread", {"thread_id": thread}))["offset"]
    publishing = asyncio.create_task(publish())
    while any(len(found) < count for found in seen.values()):
        last = publishing.done()
        visits += 1
        async with stack.client("hub") as client:
            if chance.random() < 0.5:
                answers = (await client.call("resume", {"rooms": since}))["rooms"]
            else:
                answers = {
                    room: await client.call(
                        "join:thread", {"thread_id": room.partition(":")[2], "since": offset}
                    )
                    for room, offset in since.items()
                }
            assert all(answer["recovered"] for answer in answers.values()), answers
            for room, answer in answers.items():
                assert answer["offset"] == since[room]
            if last:
                await eventually(
                    lambda client=client: all(
                        len(seen[thread]) + len(ids_of(client, thread)) >= count for thread in threads
                    )
                )
            else:
                await asyncio.sleep(chance.uniform(0, 0.15))
            client.drop()
            await client.expect_close()
            for thread in threads:
                seen[thread] += ids_of(client, thread)
                for frame in frames_of(client, f"thread:{thread}"):
                    since[frame["room"]] = frame["offset"]
    await publishing
    for found in seen.values():
        assert found == [str(number) for number in range(count)]


async def test_who_comes_back_to_another_process_misses_nothing(stack: Stack, second_port: int):
    thread = unique("th")
    since = await left_off(stack, thread, 1, 2)
    say(stack, thread, 3, 4)
    async with stack.client("hub", port=second_port) as client:
        await client.call("join:thread", {"thread_id": thread, "since": since})
        say(stack, thread, 5)
        await got(client, thread, 3, 4, 5)
        since = frames_of(client, f"thread:{thread}")[-1]["offset"]
    say(stack, thread, 6)
    async with stack.client("hub") as client:
        await client.call("resume", {"rooms": {f"thread:{thread}": since}})
        say(stack, thread, 7)
        await got(client, thread, 6, 7)


@pytest.fixture(scope="module")
def second_port(stack: Stack) -> Iterator[int]:
    """Where a second socket process of the same system listens."""
    port = free_port()
    process = stack.start_sockets(port)
    yield port
    process.stop()


# --- What cannot be recovered ------------------------------------------------------------------------


async def assert_not_recovered(stack: Stack, thread: str, *offsets: str) -> None:
    async with stack.client("hub") as other, stack.client("hub") as client:
        end = (await other.call("join:thread", {"thread_id": thread}))["offset"]
        for since in offsets:
            answer = await client.call("join:thread", {"thread_id": thread, "since": since})
            nothing = {"recovered": False, "offset": end, "missed": 0}
            assert answer == {"room": f"thread:{thread}", **nothing}, since
            answer = await client.call("resume", {"rooms": {f"thread:{thread}": since}})
            assert answer == {"rooms": {f"thread:{thread}": nothing}}, since
        say(stack, thread, "live")
        await got(client, thread, "live")


async def test_offset_that_was_never_given_out_recovers_nothing(stack: Stack):
    here, there = unique("th"), unique("th")
    since = int(await left_off(stack, here, 1, 2))
    elsewhere = await left_off(stack, there, 1, 2)
    ahead = [str(since + step) for step in (1, 10**6, 10**12)]
    garbage = ["garbage", "0", "-1", "1", "1e15", "0017", "9" * 18, "9" * 19, "9" * 64, "ünï", f"{since} "]
    await assert_not_recovered(stack, here, elsewhere, *ahead, *garbage)


@pytest.fixture(scope="module", params=SERVERS)
def forgetful(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A system that remembers five publications a room."""
    with Stack(tmp_path_factory.mktemp("forgetful"), redis_url, REALTIME_HISTORY_SIZE="5") as stack:
        stack.server = request.param
        yield stack.start_all()


@pytest.mark.parametrize(("missed", "recovered"), [(0, True), (1, True), (5, True), (6, False), (50, False)])
async def test_recovery_is_all_or_nothing(forgetful: Stack, missed: int, recovered: bool):
    thread = unique("th")
    since = await left_off(forgetful, thread, "a", "b")
    async with forgetful.client("hub") as other, forgetful.client("hub") as client:
        await other.call("join:thread", {"thread_id": thread})
        say(forgetful, thread, *range(missed))
        await got(other, thread, *range(missed))
        if not recovered:
            await assert_not_recovered(forgetful, thread, since)
            return
        answer = await client.call("join:thread", {"thread_id": thread, "since": since})
        assert (answer["recovered"], answer["missed"]) == (True, missed)
        await got(client, thread, *range(missed))


# --- Rights ------------------------------------------------------------------------------------------


async def test_rights_are_checked_again_on_resume(stack: Stack):
    kept, revoked = unique("th"), unique("th")
    user = unique("u")
    options: Any = {"namespace": "portal", "user_id": user, "threads": [kept, revoked]}
    since = {f"thread:{thread}": await left_off(stack, thread, 1, **options) for thread in (kept, revoked)}
    stack.add("thread:revoke", {"thread_id": revoked, "user_id": user})
    say(stack, kept, 2)
    say(stack, revoked, 2)
    async with stack.client("hub") as other:
        await other.call("join:thread", {"thread_id": revoked})
        say(stack, revoked, 3)
        await heard(other, revoked, 3)
    async with stack.client(**options) as client:
        answer = (await client.call("resume", {"rooms": since}))["rooms"]
        assert answer[f"thread:{kept}"]["recovered"] is True
        assert answer[f"thread:{revoked}"] == {"error": "forbidden"}
        refused = await client.refused(
            "join:thread", {"thread_id": revoked, "since": since[f"thread:{revoked}"]}
        )
        assert refused["code"] == "forbidden"
        await got(client, kept, 2)
        say(stack, revoked, 4)
        say(stack, kept, 3)
        await got(client, kept, 2, 3)
        assert ids_of(client, revoked) == []


# --- Resuming what is live ---------------------------------------------------------------------------


async def test_resuming_a_live_room_is_leaving_and_joining_it(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as client:
        begin = (await client.call("join:thread", {"thread_id": thread}))["offset"]
        say(stack, thread, 1, 2, 3)
        second = [await heard(client, thread, number) for number in (1, 2, 3)][1]
        answer = await client.call("join:thread", {"thread_id": thread, "since": second})
        assert (answer["recovered"], answer["missed"]) == (True, 1)
        await got(client, thread, 1, 2, 3, 3)
        answer = (await client.call("resume", {"rooms": {f"thread:{thread}": begin}}))["rooms"][
            f"thread:{thread}"
        ]
        assert (answer["recovered"], answer["missed"]) == (True, 3)
        say(stack, thread, 4)
        await got(client, thread, 1, 2, 3, 3, 1, 2, 3, 4)


async def test_resuming_a_live_room_again_and_again_while_others_publish_loses_and_doubles_nothing(
    stack: Stack,
):
    thread = unique("th")
    room = f"thread:{thread}"
    async with stack.client("hub") as client:
        since = (await client.call("join:thread", {"thread_id": thread}))["offset"]
        seen: list[str] = []
        for end in range(10, 310, 10):
            say(stack, thread, *range(end - 10, end))
            before = len(client.frames)
            answer = (await client.call("resume", {"rooms": {room: since}}))["rooms"][room]
            assert answer["recovered"] is True
            frames = await after_the_ack(client, room, before, end - len(seen))
            seen += [frame["data"]["message_id"] for frame in frames]
            since = frames[-1]["offset"]
        assert seen == [str(number) for number in range(300)]


async def after_the_ack(client: Client, room: str, before: int, count: int) -> list[dict[str, Any]]:
    """So many frames of the room after the first ack beyond `before`; those before it are of the old membership."""
    acknowledged = next(n for n, frame in enumerate(client.frames) if n >= before and frame["event"] == "ack")

    def found() -> list[dict[str, Any]]:
        return [frame for frame in client.frames[acknowledged:] if frame.get("room") == room]

    await eventually(lambda: len(found()) >= count)
    return found()
