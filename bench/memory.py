"""`python -m bench.memory`: measures the memory of each kind of value in Redis (docs/deployment.md, "Memory of Redis").

The project's own code writes the values into a separate Redis, and MEMORY USAGE measures them: the values with all
their elements, the keys, and the entries in Redis' own tables.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from realtime.testing.embedded_redis import EmbeddedRedis

COUNT = 2000
BODY = "x" * 120
"""Together with its ids, a frame of some 250 bytes."""
Fill = Callable[[int], Awaitable[None]]


async def weigh(fill: Fill, count: int) -> float:
    """Return the bytes of one value, measured with `count` values."""
    from realtime.redis.client import client  # noqa: PLC0415  (after the settings)

    redis = client()
    await redis.flushall()
    await fill(count)
    total = 0
    async for key in redis.scan_iter(count=1000):
        total += await redis.memory_usage(key, samples=0) or 0
    return total / count


def message(number: int) -> dict[str, Any]:
    return {"thread_id": "42", "message_id": str(number), "body": BODY}


def contents() -> dict[str, tuple[Fill, Fill | None]]:
    """Return what to measure: functions that write the value, and those that write the rest without it."""
    from presence import store  # noqa: PLC0415
    from realtime.connections.arrivals import arrivals  # noqa: PLC0415
    from realtime.connections.user_limit import UserConnection  # noqa: PLC0415
    from realtime.layers import history  # noqa: PLC0415
    from realtime.protocol.envelope import frame_head, frame_tail  # noqa: PLC0415
    from realtime.protocol.principal import Principal  # noqa: PLC0415
    from realtime.protocol.publication import Draft  # noqa: PLC0415
    from realtime.redis.client import client, key  # noqa: PLC0415

    def present(connections: int) -> Fill:
        async def fill(count: int) -> None:
            operations = [
                {
                    "does": "connect",
                    "connection": uuid4().hex,
                    "user": f"user{number}",
                    "name": "Ana Nunes",
                    "groups": ["attendants"],
                }
                for number in range(count)
                for _ in range(connections)
            ]
            caller, done = store.Caller("n" * 32, registers=True), 0
            while done < count * connections:
                _, answers = await store.apply("hub", operations[done : done + 500], caller)
                done += len(answers)
            await client().delete(store.stream())

        return fill

    async def transitions(count: int) -> None:
        await present(1)(1)
        for number in range(count):
            does = {"does": "choose", "user": "user0", "reason": "chosen"}
            await store.apply("hub", [{**does, "status": "away" if number % 2 == 0 else "online"}])

    def admitted(connections: int) -> Fill:
        async def fill(count: int) -> None:
            for number in range(count):
                user = Principal(f"user{number}", "attendant", "", (), frozenset(), uuid4().hex, 1.8e9)
                for index in range(connections):
                    place = UserConnection("hub", user.user_id, f"specific.{uuid4().hex}!{index}")
                    await arrivals().ask(user, place)

        return fill

    def rooms(messages: int, *, ids: bool = False) -> Fill:
        async def fill(count: int) -> None:
            for room in range(count):
                group = f"hub.thread.{room}"
                await history.ends([group])
                entries = [
                    Draft(
                        rooms=[(group, frame_head("thread:message", f"thread:{room}"))],
                        tail=frame_tail(message(number)),
                        id=uuid4().hex if ids else "",
                    )
                    for number in range(messages)
                ]
                for start in range(0, len(entries), 100):
                    await history.append(entries[start : start + 100], publish=False)

        return fill

    async def bus(count: int) -> None:
        for number in range(count):
            event = {"event": "thread:message", "data": message(number)}
            await client().xadd(key("stream"), {"message": json.dumps(event)})

    return {
        "a user who is present, with one connection": (present(1), None),
        "each further connection of theirs": (present(2), present(1)),
        "a change of presence on the stream (kept a day)": (transitions, None),
        "a user's entry for the connection limit, with one connection (7 days)": (admitted(1), None),
        "each further connection in that entry": (admitted(2), admitted(1)),
        "a room without messages (7 days)": (rooms(0), None),
        "a room with 10 messages (10 minutes)": (rooms(10), None),
        "a room with 100 messages": (rooms(100), None),
        "an idempotency id (10 minutes)": (rooms(1, ids=True), rooms(1)),
        "an event on the stream (10 minutes)": (bus, None),
    }


async def measure(count: int = COUNT) -> dict[str, int]:
    """Return the bytes of each."""
    found = {}
    for name, (fill, without) in contents().items():
        number = max(count // 20, 2) if "messages" in name else count
        bytes_ = await weigh(fill, number)
        if without is not None:
            bytes_ -= await weigh(without, number)
        found[name] = round(bytes_)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="number of values of which to take the mean")
    count = parser.parse_args().count
    with EmbeddedRedis() as server:
        os.environ.update(
            DJANGO_SETTINGS_MODULE="realtime.settings.sockets",
            REDIS_URL=server.url,
            DEBUG="1",
            JWT_SIGNING_KEY="only for the benchmark, 32 bytes of it",
        )
        import django  # noqa: PLC0415

        django.setup()
        sys.stdout.write("| what | bytes |\n|---|--:|\n")
        for name, bytes_ in asyncio.run(measure(count)).items():
            sys.stdout.write(f"| {name} | {bytes_:,} |\n")


if __name__ == "__main__":
    main()
