"""Coming back into a room while its messages are under way: the acknowledgement, what was missed, then what is new."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.e2e.harness import eventually, unique
from tests.faults.crowd import Member, Product, running
from tests.faults.network import Network
from tests.faults.proxy import Proxy, to_socket

MEMBERS = 800
REJOINING = 90


def came_after(member: Member, frame_id: int, room: str) -> list[int]:
    """The offsets of what came of a room after the answer to a frame."""
    mark = b'"id":"%d"' % frame_id, b'"id":%d' % frame_id
    start = next(
        number
        for number, text in enumerate(member.texts)
        if text.startswith(b'{"event":"ack"') and any(each in text for each in mark)
    )
    return [int(frame["offset"]) for frame in member.of_room(room, start) if "offset" in frame]


def resumed_from(event: str, data: dict[str, Any], room: str) -> int:
    """From which offset on everything comes, as the acknowledgement says."""
    return int(data["offset"] if event == "join:thread" else data["rooms"][room]["offset"])


async def test_member_who_rejoins_during_a_fan_out_gets_each_message_once_and_in_order(tmp_path: Path):
    async with running(tmp_path) as product:
        thread = unique("th")
        room = f"thread:{thread}"
        members = await product.crowd(
            MEMBERS, product.stack.token(role="admin", groups=["none"]), "hub", joins=[thread]
        )
        product.say(thread, "first")
        for member in members:
            first = await member.event("thread:message", "first")
        since = first["offset"]
        rejoining = members[-REJOINING:]
        asked: list[tuple[Member, str, int]] = []

        def rejoin(_: bytes) -> None:
            """The message has reached the first members; the last ones leave and come back."""
            members[0].on_text = None
            for number, member in enumerate(rejoining):
                if number % 3 == 0:
                    asked.append((member, "resume", member.ask("resume", {"rooms": {room: since}})))
                    continue
                member.ask("leave:thread", {"thread_id": thread})
                more = {"since": since} if number % 3 == 1 else {}
                frame_id = member.ask("join:thread", {"thread_id": thread, **more})
                asked.append((member, "join:thread", frame_id))

        wrong = []
        for number in range(8):
            asked.clear()
            members[0].on_text = rejoin
            product.say(thread, *[f"m{number}-{each}" for each in range(3)])
            await eventually(lambda: len(asked) == REJOINING)
            answers = [await member.answer(frame_id) for member, _, frame_id in asked]
            product.say(thread, f"last{number}")
            offsets = []
            for member in members:
                last = await member.event("thread:message", f'"last{number}"')
            offsets = [int(frame["offset"]) for frame in members[1].of_room(room)]
            for (member, event, frame_id), answer in zip(asked, answers, strict=True):
                start = resumed_from(event, answer["data"], room)
                expected = [offset for offset in offsets if offset > start]
                got = came_after(member, frame_id, room)
                if got != expected:
                    wrong.append((event, [offsets.index(each) for each in got], len(expected)))
            since = last["offset"]
        assert not wrong, f"{len(wrong)} of {8 * REJOINING}, the first: {wrong[:3]}"


async def keep_saying(product: Product, thread: str, over: asyncio.Event) -> None:
    number = 0
    while not over.is_set():
        product.say(thread, f"m{number}")
        number += 1
        await asyncio.sleep(0.005)


async def test_nothing_of_a_room_that_cannot_be_recovered_comes_before_the_acknowledgement(tmp_path: Path):
    """The other rooms of the same `resume` take their time: Redis is far away, and much is said meanwhile."""
    with Product(tmp_path) as product:
        async with Proxy(to_socket(product.server.socket)) as network:
            far = {"REDIS_URL": f"redis://127.0.0.1:{network.port}/0"}
            await asyncio.to_thread(product.start, sockets=far)
            busy, *quiet = threads = [unique("th") for _ in range(12)]
            for thread in quiet:
                product.say(thread, "one", "two")
            await product.delivered(product.say(quiet[0], "three"))
            token = product.stack.token(role="admin")
            witness = await product.member(token, "hub")
            for thread in threads:
                await witness.call("join:thread", {"thread_id": thread})
            over = asyncio.Event()
            saying = asyncio.create_task(keep_saying(product, busy, over))
            product.tasks.append(saying)
            await witness.event("thread:message", '"m10"')
            network.delay = 0.01
            member = await product.member(token, "hub")
            rooms = {f"thread:{thread}": "1" for thread in threads}
            resumed = await member.call("resume", {"rooms": rooms})
            end = int(resumed["rooms"][f"thread:{busy}"]["offset"])
            assert resumed["rooms"][f"thread:{busy}"]["recovered"] is False
            await eventually(lambda: len(member.of_room(f"thread:{busy}")) > 20)
            over.set()
            await saying
            product.say(busy, "last")
            await member.event("thread:message", '"last"')
            await witness.event("thread:message", '"last"')
            acknowledged = next(
                n for n, text in enumerate(member.texts) if text.startswith(b'{"event":"ack"')
            )
            room = f"thread:{busy}"
            early = len(member.of_room(room)) - len(member.of_room(room, acknowledged))
            assert not early, f"{early} messages came before the acknowledgement"
            offsets = [int(frame["offset"]) for frame in witness.of_room(room)]
            got = [int(frame["offset"]) for frame in member.of_room(room)]
            assert got == [offset for offset in offsets if offset > end]


async def test_members_of_a_quiet_room_are_told_that_redis_lost_what_was_not_delivered_yet(tmp_path: Path):
    async with running(tmp_path) as product:
        thread = unique("th")
        room = f"thread:{thread}"
        members = [
            await product.member(product.customer(thread)),
            await product.member(product.stack.token(role="admin"), "hub"),
        ]
        for member in members:
            await member.call("join:thread", {"thread_id": thread})
        product.say(thread, "one")
        for member in members:
            await member.event("thread:message", '"one"')
        with product.stack.redis.pipeline(transaction=True) as pipeline:
            pipeline.xadd(
                product.stack.key("stream"), {"message": "a bridge would read it after this command"}
            )
            pipeline.flushall()
            pipeline.execute()
        for member in members:
            gap = await member.event("room:gap", room)
            assert gap["data"]["room"] == room
        product.say(thread, "three")
        for member in members:
            await member.event("thread:message", '"three"')


async def test_pongs_are_heard_behind_frames_that_wait_for_a_slow_replay(tmp_path: Path):
    """A client that reads slowly, but reads, and answers every ping, has not vanished."""
    with Product(tmp_path, REALTIME_LIMIT_UNSENT_BYTES="0") as product:
        product.start_with_fast_keepalive()
        thread = unique("th")
        witness = await product.member(product.stack.token(role="admin"), "hub")
        await witness.call("join:thread", {"thread_id": thread})
        product.say(thread, "first")
        since = (await witness.event("thread:message", '"first"'))["offset"]
        product.say(thread, *[f"m{number}" for number in range(150)], size=60_000)
        await witness.event("thread:message", '"m149"')
        member = await product.member(product.stack.token(role="admin"), "hub", narrow=True)
        await member.call("join:thread", {"thread_id": thread, "since": since})
        member.stop_reading()
        answers = [member.ask("heartbeat") for _ in range(12)]
        for _ in range(80):  # longer than a silent client has
            member.pong()
            await asyncio.sleep(0.1)
            member.read_on()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            member.stop_reading()
            assert not member.is_over, "taken for a client that has vanished"
        assert "m149" not in member.messages(f"thread:{thread}"), "the replay was not slow"
        member.read_on()
        await member.event("thread:message", '"m149"')
        for answer in answers:
            await member.answer(answer)


async def test_who_rejoins_while_redis_goes_away_is_answered(tmp_path: Path):
    """The instance is behind the room's end, and what it has not got can't be read any more."""
    with Product(tmp_path) as product:
        async with Network(to_socket(product.server.socket)) as network:
            through = {"REDIS_URL": f"redis://127.0.0.1:{network.port}/0"}
            await asyncio.to_thread(product.start, sockets=through)
            thread = unique("th")
            token = product.stack.token(role="admin")
            other, member = [await product.member(token, "hub") for _ in range(2)]
            for each in (other, member):
                await each.call("join:thread", {"thread_id": thread})
            product.say(thread, "one")
            for each in (other, member):
                await each.event("thread:message", '"one"')
            # So that Redis knows the script that reads, and one answer is all there is.
            await other.call("join:thread", {"thread_id": thread, "since": "1"})
            network.keeps_subscriptions_waiting = True
            await product.delivered(product.say(thread, "two"))
            network.ends_with_an_answer = True
            answer = await member.answer(member.ask("join:thread", {"thread_id": thread, "since": "1"}))
            if answer["event"] == "error":
                assert answer["data"]["code"] == "unavailable"
            else:
                assert answer["data"]["recovered"] is False
            await member.call("heartbeat")
