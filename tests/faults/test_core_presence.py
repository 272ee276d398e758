"""Presence when the ones that work on it end: each change is made once, and stays as its latest author meant it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from signal import SIGKILL

from tests.e2e.harness import eventually, free_port, unique
from tests.faults.crowd import Product, at_once, running

ATTENDANTS = 250
"""For each of the instances that are killed."""


async def test_presence_that_is_set_again_by_the_next_bridge_does_not_override_a_later_choice(tmp_path: Path):
    """A bridge may die between the work of an entry and its note of it; the next one does that work again."""
    async with running(tmp_path) as product:
        user_id, group = unique("u"), unique("g")
        attendant = await product.member(product.stack.token(user_id, groups=[group]), "hub")
        await attendant.event("attendant:online", user_id)
        product.stack.add("presence:set", {"user_id": user_id, "status": "away"})
        await attendant.event("attendant:away", user_id)
        await attendant.call("presence:online")
        await eventually(lambda: len(product.stack.transitions(user_id)) == 3)
        product.bridge.stop(SIGKILL)
        product.stack.redis.hset(product.stack.key("cursors"), product.stack.key("stream"), "0-0")
        product.bridge = await asyncio.to_thread(product.stack.start, "runbridge")
        await product.delivered(product.say(unique("th"), "behind"))
        statuses = [transition["to"] for transition in product.stack.transitions(user_id)]
        assert statuses == ["online", "away", "online"]


async def test_attendants_of_instances_that_were_killed_are_announced_offline_once(tmp_path: Path):
    lease = {"REALTIME_NODE_LEASE": "3", "REALTIME_GRACE_PERIOD": "2"}
    async with running(tmp_path, **lease) as product:
        ports = [free_port(), free_port()]
        doomed = [await asyncio.to_thread(product.start_instance, port) for port in ports]
        groups = [unique("g") for _ in range(10)]
        admin = await product.member(product.stack.token(role="admin", groups=groups), "hub")
        users = {unique("u"): (ports[n % 2], groups[n % 10]) for n in range(2 * ATTENDANTS)}
        await at_once(
            (lambda user_id=user_id, port=port, group=group: arrive(product, user_id, port, group))
            for user_id, (port, group) in users.items()
        )
        await eventually(lambda: announced(admin.texts, b"online") == Counter([*users]))
        for process in doomed:
            process.signal(SIGKILL)
        await eventually(lambda: set(announced(admin.texts, b"offline")) == set(users))
        product.say(unique("th"), "behind")
        await admin.call("heartbeat")
        assert announced(admin.texts, b"offline") == Counter([*users])
        entries = product.stack.redis.xrange(product.stack.key("presence"))
        transitions = [json.loads(fields["transition"]) for _, fields in entries]
        assert Counter(each["user_id"] for each in transitions if each["to"] == "offline") == Counter(
            [*users]
        )


async def arrive(product: Product, user_id: str, port: int, group: str) -> None:
    token = product.stack.token(user_id, "attendant", groups=[group])
    await product.member(token, "hub", port=port)


def announced(texts: list[bytes], status: bytes) -> Counter[str]:
    """Whom an attendant was told of, and how often."""
    head = b'{"event":"attendant:%s"' % status
    return Counter(json.loads(text)["data"]["user_id"] for text in texts if text.startswith(head))
