"""Rooms larger than a slice of the fan-out: a message is under way to their members while something else happens.

Every member gets all messages of the room once and in order, or is told that it may have missed some.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.harness import eventually, unique
from tests.faults.crowd import Member, Product, Trigger, running

MEMBERS = 800


def is_whole(seen: Sequence[str], written: Sequence[str]) -> bool:
    """Whether everything is there, once and in order; a "gap" stands for any number of messages."""
    expected = list(written)
    missing_is_fine = False
    for each in seen:
        if each == "gap":
            missing_is_fine = True
            continue
        if each not in expected:
            return False  # came before, or out of order
        skipped = expected.index(each)
        if skipped and not missing_is_fine:
            return False
        del expected[: skipped + 1]
        missing_is_fine = False
    return not expected or missing_is_fine


async def all_are_whole(
    product: Product, members: Sequence[Member], threads: Sequence[str], written: Sequence[str]
) -> None:
    """Write one more message, wait until all have it, and compare."""
    for thread in threads:
        product.say(thread, f"last-{thread}")
        for member in members:
            await member.event("thread:message", f"last-{thread}")
    for thread in threads:
        seen = [member.messages(f"thread:{thread}") for member in members]
        lossy = [each for each in seen if not is_whole(each, [*written, f"last-{thread}"])]
        assert not lossy, f"{len(lossy)} of {len(members)} members of {thread}, the first saw {lossy[0]}"


async def test_subscription_cut_during_a_fan_out_costs_no_member_a_message_untold(product: Product):
    with product.visited():
        threads = [unique("a"), unique("b")]
        members = await product.crowd(MEMBERS, product.customer(*threads), joins=threads)
        side = await product.member(product.stack.token(role="admin"), "hub")
        trigger = Trigger(product.server.socket)
        written: list[str] = []
        cuts: list[int] = []

        def cut(text: bytes) -> None:
            if len(cuts) < rounds:
                cuts.append(rounds)
                trigger.cut_subscriptions()
                # A write to the dead connection: the instance learns of its end during the fan-out.
                side.send("join:thread", {"thread_id": unique("other")})

        def is_subscribed() -> bool:
            return len(product.stack.redis.pubsub_channels("*")) >= channels

        channels = len(product.stack.redis.pubsub_channels("*"))
        rounds = 0
        for member in members[:50]:
            member.on_text = cut
        for rounds in range(1, 9):
            burst = [f"m{rounds}-{number}" for number in range(5)]
            product.say_in_turn(threads, burst)
            written += burst
            await eventually(lambda n=rounds: len(cuts) == n)
            await eventually(is_subscribed)
        trigger.close()
        await all_are_whole(product, members, threads, written)


async def test_long_fan_out_is_no_reason_to_give_up_the_subscription(tmp_path: Path):
    """Hundreds of messages alternate between two large rooms: handing them on takes longer than a lease."""
    async with running(tmp_path, REALTIME_NODE_LEASE="1.5") as product:
        threads = [unique("a"), unique("b")]
        members = await product.crowd(MEMBERS, product.customer(*threads), joins=threads)
        written = [f"m{number}" for number in range(150)]
        product.say_in_turn(threads, written)
        await all_are_whole(product, members, threads, written)
        assert "redis does not answer" not in product.stack.logs
        assert "subscription lost" not in product.stack.logs


async def test_small_room_does_not_wait_for_a_large_one(product: Product):
    """A message for the large room is right before one for the small room, again and again."""
    with product.visited():
        large, small = unique("l"), unique("s")
        members = await product.crowd(MEMBERS, product.customer(large), joins=[large])
        listener = await product.member(product.customer(small))
        await listener.call("join:thread", {"thread_id": small})
        for member in members:  # so that this process has nothing to do but to look
            member.stop_reading()
        overtaken: list[str] = []

        def look(text: bytes) -> None:
            message_id = json.loads(text)["data"]["message_id"]
            if not all(member.is_waiting(message_id) for member in members[-20:]):
                overtaken.append(message_id)

        listener.on_text = look
        for number in range(20):
            product.say_in_turn([large, small], [f"m{number}"], size=1000)
            await listener.event("thread:message", f'"m{number}"')
            await eventually(lambda n=number: all(m.is_waiting(f"m{n}") for m in members))
        assert overtaken, "each time, all members of the large room came first"
