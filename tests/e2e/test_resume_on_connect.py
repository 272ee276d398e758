"""Rooms entered on connect wait for the first resume (`?resume=1`): nothing overtakes what was missed."""

from __future__ import annotations

import pytest

from tests.e2e.harness import PATIENCE, Client, Stack, eventually, unique
from tests.e2e.test_recovery import assert_ack_comes_first

RESUME_SECONDS = 5.0


@pytest.fixture
async def absentee(stack: Stack) -> tuple[str, dict[str, str]]:
    """A member of the team who left: user id, and the last offsets of the automatic rooms."""
    user, group = unique("u"), unique("g")
    async with stack.client("hub", user, role="admin", groups=[group]) as client:
        rooms = client.ready["rooms"]
    assert set(rooms) == {f"user:{user}", f"presence:{group}"}
    return user, rooms


def numbers(client: Client, event: str) -> list[int]:
    return [frame["data"]["n"] for frame in client.received(event)]


async def test_automatic_rooms_keep_still_until_the_first_resume_so_that_nothing_overtakes(
    stack: Stack, absentee: tuple[str, dict[str, str]]
):
    user, rooms = absentee
    (group,) = [room.partition(":")[2] for room in rooms if room.startswith("presence:")]

    def publish(n: int) -> None:
        stack.add("user:notification", {"user_id": user, "n": n})
        stack.add("queue:new", {"item_id": str(n), "group": group, "n": n})

    publish(1)
    async with (
        stack.client("hub", user, role="admin", groups=[group]) as witness,
        stack.client("hub", user, role="admin", groups=[group], query="resume=1") as client,
    ):
        publish(2)
        await eventually(
            lambda: 2 in numbers(witness, "user:notification") and 2 in numbers(witness, "queue:new")
        )
        await client.nothing("user:notification", "queue:new", within=0.1)
        answer = (await client.call("resume", {"rooms": rooms}))["rooms"]
        assert {room: (a["recovered"], a["missed"]) for room, a in answer.items()} == dict.fromkeys(
            rooms, (True, 2)
        )
        publish(3)
        for event in ("user:notification", "queue:new"):
            await eventually(lambda event=event: len(numbers(client, event)) >= 3)
            assert numbers(client, event) == [1, 2, 3]
        for room in rooms:
            assert_ack_comes_first(client, {"rooms": answer}, room)


async def test_automatic_room_that_the_resume_does_not_name_goes_on_from_the_handshake(
    stack: Stack, absentee: tuple[str, dict[str, str]]
):
    user, _ = absentee
    stack.add("user:notification", {"user_id": user, "n": 1})
    async with stack.client("hub", user) as witness:
        stack.add("user:notification", {"user_id": user, "n": 2})
        await witness.expect("user:notification", n=2)
        async with stack.client("hub", user, query="resume=1") as client:
            stack.add("user:notification", {"user_id": user, "n": 3})
            await witness.expect("user:notification", n=3)
            await client.nothing("user:notification", within=0.1)
            await client.call("resume", {"rooms": {}})
            stack.add("user:notification", {"user_id": user, "n": 4})
            await client.expect("user:notification", n=4)
            assert numbers(client, "user:notification") == [3, 4]


async def test_automatic_rooms_keep_still_for_five_seconds_at_most(
    stack: Stack, absentee: tuple[str, dict[str, str]]
):
    user, _ = absentee
    async with (
        stack.client("hub", user) as witness,
        stack.client("hub", user, query="resume=1") as client,
    ):
        for n in range(3):
            stack.add("user:notification", {"user_id": user, "n": n})
        await witness.expect("user:notification", n=2)
        await client.nothing("user:notification", within=0.5)
        await client.expect("user:notification", n=2, within=RESUME_SECONDS + PATIENCE)
        stack.add("user:notification", {"user_id": user, "n": 3})
        await client.expect("user:notification", n=3)
        assert numbers(client, "user:notification") == [0, 1, 2, 3]
