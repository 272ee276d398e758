"""Kinds of rooms that a product declares (tests/ops): joined, recovered, granted and revoked like threads."""

from __future__ import annotations

import asyncio
import unicodedata

import pytest

from tests.e2e.harness import Stack, eventually, unique
from tests.e2e.product import change, client, numbers

# --- Rooms -------------------------------------------------------------------------------------------


async def test_room_of_an_own_kind_is_joined_published_to_and_left(product: Stack):
    board = unique("b")
    async with client(product) as ana, client(product, "lab", f"board:{board}") as ben:
        ack = await ana.call("join", {"room": f"board:{board}"})
        assert ack.keys() == {"room", "offset"}
        assert ack["room"] == f"board:{board}"
        change(product, board, 1)
        for each in (ana, ben):
            frame = await each.expect("board:changed", number=1)
            assert (frame["room"], int(frame["offset"]) > 0) == (f"board:{board}", True)
        assert await ana.call("leave", {"room": f"board:{board}"}) == {"room": f"board:{board}"}
        assert await ana.call("leave", {"room": f"board:{board}"}) == {"room": f"board:{board}"}
        change(product, board, 2)
        await ben.expect("board:changed", number=2)
        await ana.nothing("board:changed")


async def test_message_names_the_rooms_and_namespaces_it_goes_to(product: Stack):
    board, other = unique("b"), unique("b")
    async with (
        client(product, "ops", f"board:{other}") as ana,
        client(product, "lab", f"board:{other}") as ben,
    ):
        product.add("board:changed", {"board_id": board, "number": 1}, rooms=[f"board:{other}"])
        for each in (ana, ben):
            assert (await each.expect("board:changed"))["room"] == f"board:{other}"
        data = {"board_id": board, "number": 2}
        product.publish("board:changed", data, rooms=[f"board:{other}"], namespaces=["lab"])
        await ben.expect("board:changed", number=2)
        await ana.nothing("board:changed")
        before = len(product.dead_letters())
        product.add("thread:message", {"thread_id": "1", "message_id": "1"}, rooms=[f"board:{other}"])
        product.add("board:changed", {"board_id": board}, rooms=["shelf:1"])
        await eventually(lambda: len(product.dead_letters()) == before + 2)
        reasons = [letter["reason"] for letter in product.dead_letters()[before:]]
        assert [reason.partition(":")[0] for reason in reasons] == ["no_audience", "invalid_message"]


@pytest.mark.parametrize(
    ("event", "data", "code", "word"),
    [
        ("join", {"room": "board:closed-1"}, "forbidden", "board:closed-1"),
        ("join", {"room": "thread:42"}, "forbidden", "thread:42"),
        ("join", {"room": "user:7"}, "forbidden", "user:7"),
        ("join", {"room": "presence:attendants"}, "forbidden", "presence"),
        ("join", {"room": "shelf:1"}, "forbidden", "shelf:1"),
        ("leave", {"room": "user:7"}, "forbidden", "user:7"),
        ("join:thread", {"thread_id": "42"}, "forbidden", "ops"),
        ("typing:start", {"thread_id": "42"}, "forbidden", "ops"),
        ("join", {"room": "board"}, "invalid_payload", "room"),
        ("join", {"room": "board:"}, "invalid_payload", "room"),
        ("join", {"room": "Board:1"}, "invalid_payload", "room"),
        ("join", {"room": f"board:{'x' * 65}"}, "invalid_payload", "room"),
        ("join", {"room": 7}, "invalid_payload", "room"),
        ("join", {}, "invalid_payload", "room"),
        ("leave", {"room": "board:a:b"}, "invalid_payload", "room"),
        ("join", {"room": "board:1", "since": ""}, "invalid_payload", "since"),
        ("board:point", {"board_id": "1", "position": 1}, "not_in_room", "board:1"),
    ],
)
async def test_room_that_cannot_be_joined_is_refused(product: Stack, event, data, code: str, word: str):
    async with client(product) as ana:
        refused = await ana.refused(event, data)
        assert (refused["code"], word in refused["message"]) == (code, True), refused


async def test_general_and_special_forms_are_the_same_room(product: Stack):
    thread = unique("th")
    async with product.client("hub") as ana, product.client("portal", threads=[thread]) as carla:
        assert (await ana.call("join", {"room": f"thread:{thread}"}))["room"] == f"thread:{thread}"
        await carla.call("join", {"room": f"thread:{thread}"})
        assert (await carla.refused("join", {"room": "thread:other"}))["code"] == "forbidden"
        await ana.call("typing:start", {"thread_id": thread})
        await carla.expect("thread:typing", typing=True)
        await ana.call("leave:thread", {"thread_id": thread})
        product.add("thread:message", {"thread_id": thread, "message_id": "1"})
        await carla.expect("thread:message")
        await ana.nothing("thread:message")


async def test_namespace_says_which_events_its_clients_may_send(product: Stack):
    board = unique("b")
    async with (
        client(product, "lab", f"board:{board}") as ana,
        client(product, "ops", f"board:{board}") as ben,
    ):
        await ana.call("heartbeat")
        await ana.call("board:point", {"board_id": board, "position": [1, 2]})
        frame = await ben.expect("board:pointed")
        assert (frame["data"]["position"], frame["data"]["namespace"]) == ([1, 2], "lab")
        assert (await ana.refused("presence:away"))["code"] == "forbidden"
        await ana.nothing("board:pointed")


async def test_rooms_are_limited_together(product: Stack):
    async with client(product, "lab", *(f"board:{unique('b')}" for _ in range(11))) as ana:
        assert (await ana.refused("join", {"room": "board:more"}))["code"] == "limit_exceeded"
        answer = await ana.call("resume", {"rooms": {f"board:r{number}": "1" for number in range(14)}})
        codes = [answer["rooms"][f"board:r{number}"]["error"] for number in range(14)]
        assert set(codes) == {"limit_exceeded"}


# --- Recovery ----------------------------------------------------------------------------------------


async def test_what_was_missed_on_a_board_is_recovered_in_order(product: Stack):
    board = unique("b")
    room = f"board:{board}"
    async with client(product) as ana:
        offset = (await ana.call("join", {"room": room}))["offset"]
        change(product, board, 0)
        await ana.expect("board:changed", number=0)
    for number in range(1, 21):
        change(product, board, number)
    async with client(product, "ops", room) as witness:
        change(product, board, 21)
        await witness.expect("board:changed", number=21)
    async with client(product) as again, client(product) as resuming:
        ack = await again.call("join", {"room": room, "since": offset})
        assert ack == {"room": room, "recovered": True, "offset": offset, "missed": 22}
        answer = await resuming.call(
            "resume", {"rooms": {room: offset, "shelf:1": "1", "board:closed-1": "1"}}
        )
        assert answer["rooms"][room] == {"recovered": True, "offset": offset, "missed": 22}
        assert [answer["rooms"][name] for name in ("shelf:1", "board:closed-1")] == [
            {"error": "forbidden"}
        ] * 2
        change(product, board, 22)
        for each in (again, resuming):
            await each.expect("board:changed", number=22)
            assert numbers(each) == list(range(23))
        ack = await again.call("join", {"room": room, "since": "123"})
        assert (ack["recovered"], ack["missed"]) == (False, 0)


async def test_nothing_is_lost_or_doubled_while_clients_join_and_come_back(product: Stack):
    board, running = unique("b"), True
    room = f"board:{board}"

    async def publish() -> int:
        number = 0
        while running:
            change(product, board, number)
            number += 1
            await asyncio.sleep(0.002)
        return number

    publishing = asyncio.create_task(publish())
    found: list[int] = []
    async with client(product, "ops", room) as ana:
        await ana.expect("board:changed")
    since = next(frame for frame in ana.frames if frame["event"] == "board:changed")["offset"]
    first = numbers(ana)[0]
    for _ in range(8):
        async with client(product) as ana:
            assert (await ana.call("join", {"room": room, "since": since}))["recovered"]
            await ana.expect("board:changed")
        frames = [frame for frame in ana.frames if frame["event"] == "board:changed"]
        found += [frame["data"]["number"] for frame in frames]
        since = frames[-1]["offset"]
    running = False
    assert found == list(range(first + 1, first + 1 + len(found)))
    assert await publishing > found[-1]


# --- Rights ------------------------------------------------------------------------------------------


async def test_board_is_granted_and_revoked_like_a_thread(product: Stack):
    board, user = unique("closed"), unique("u")
    room, right = f"board:{board}", {"room": f"board:{board}", "user_id": user, "namespace": "ops"}
    async with client(product, user_id=user) as ana, client(product) as ben:
        assert (await ana.refused("join", {"room": room}))["code"] == "forbidden"
        product.add("room:grant", right)
        await eventually(lambda: product.redis.exists(product.key(f"grant:ops:{user}:{room}")))
        await ana.call("join", {"room": room})
        assert (await ben.refused("join", {"room": room}))["code"] == "forbidden"
        change(product, board, 1)
        product.add("room:revoke", right)
        for number in range(2, 30):
            change(product, board, number)
        assert (await ana.expect("room:left"))["data"] == {"room": room, "reason": "forbidden"}
        await ana.call("heartbeat")
        assert numbers(ana) == [1]  # not one byte after the order
        assert (await ana.refused("join", {"room": room}))["code"] == "forbidden"
        answer = await ana.call("resume", {"rooms": {room: "1"}})
        assert answer["rooms"][room] == {"error": "forbidden"}
        product.add("room:grant", right)
        await eventually(lambda: product.redis.get(product.key(f"grant:ops:{user}:{room}")).startswith("1"))
        await ana.call("join", {"room": room})


async def test_user_is_expelled_from_a_board_of_one_namespace_and_may_return(product: Stack):
    board, user = unique("b"), unique("u")
    room = f"board:{board}"
    async with (
        client(product, "ops", room, user_id=user) as ana,
        client(product, "ops", room, user_id=user) as other_tab,
        client(product, "lab", room, user_id=user) as elsewhere,
    ):
        product.add("room:expel", {"room": room, "user_id": user, "namespace": "ops"})
        change(product, board, 1)
        for each in (ana, other_tab):
            assert (await each.expect("room:left"))["data"] == {"room": room, "reason": "expelled"}
        await elsewhere.expect("board:changed", number=1)
        await ana.nothing("board:changed")
        await ana.call("join", {"room": room})
        change(product, board, 2)
        await ana.expect("board:changed", number=2)
        product.add("user:disconnect", {"user_id": user, "namespace": "ops"})
        assert [await each.expect_close() for each in (ana, other_tab)] == [4403, 4403]
        assert elsewhere.close_code is None


async def test_room_whose_id_is_a_name_is_one_however_it_is_spelled(product: Stack):
    name, user = unique("São "), unique("u")
    room, decomposed = f"desk:{name}", unicodedata.normalize("NFD", f"desk:{name}")
    async with client(product, "lab", user_id=user) as ana:
        assert (await ana.call("join", {"room": decomposed}))["room"] == room
        assert (await ana.call("leave", {"room": decomposed}))["room"] == room
        offset = (await ana.call("join", {"room": room}))["offset"]
        answer = await ana.call("resume", {"rooms": {decomposed: offset}})
        assert answer["rooms"] == {room: {"recovered": True, "offset": offset, "missed": 0}}
        product.add("board:changed", {"board_id": "1"}, rooms=[decomposed])
        assert (await ana.expect("board:changed"))["room"] == room
        product.add("room:expel", {"room": decomposed, "user_id": user, "namespace": "lab"})
        assert (await ana.expect("room:left"))["data"] == {"room": room, "reason": "expelled"}


async def test_general_orders_are_those_of_threads(product: Stack):
    thread, user = unique("th"), unique("u")
    room, right = f"thread:{thread}", {"room": f"thread:{thread}", "user_id": user, "namespace": "portal"}
    async with product.client("portal", user) as carla:
        product.add("room:grant", right)
        await eventually(lambda: product.redis.exists(product.key(f"grant:{user}:{thread}")))
        await carla.call("join:thread", {"thread_id": thread})
        product.add("room:expel", right)
        assert (await carla.expect("room:left"))["data"]["reason"] == "expelled"
        assert product.redis.exists(product.key(f"expelled:portal:{user}:{thread}"))
        await carla.call("join", {"room": room})
        product.add("thread:revoke", {"thread_id": thread, "user_id": user})
        assert (await carla.expect("room:left"))["data"]["reason"] == "forbidden"
        assert (await carla.refused("join", {"room": room}))["code"] == "forbidden"


@pytest.mark.parametrize(
    ("right", "word"),
    [
        ({"namespace": "shop"}, "namespace: expected one of hub, lab, ops, portal"),
        ({"room": "user:7"}, "room: expected one that users of ops may join"),
        ({"room": "thread:7"}, "room: expected one that users of ops may join"),
        ({"room": "board:"}, "room: expected one that users of ops may join"),
        ({"room": "board 7"}, "room: expected"),
    ],
)
async def test_order_that_names_no_room_is_a_dead_letter(product: Stack, right: dict[str, str], word: str):
    before = len(product.dead_letters())
    product.add("room:revoke", {"room": "board:7", "user_id": "7", "namespace": "ops", **right})
    await eventually(lambda: len(product.dead_letters()) > before)
    assert word in product.dead_letters()[-1]["reason"]


async def test_refreshed_token_asks_for_boards_again(product: Stack):
    board, user = unique("b"), unique("u")
    room = f"board:{board}"
    async with client(product, "ops", room, user_id=user, groups=["red"]) as ana:
        # Written behind the back of the bus: the policy only says so when it is asked again.
        product.redis.set(product.key(f"grant:ops:{user}:{room}"), "0 1")
        token = product.token(user, "supervisor", groups=["blue"])
        await ana.call("auth:refresh", {"token": token})
        left = [(await ana.expect("room:left"))["data"]["room"] for _ in range(2)]
        assert set(left) == {"presence:red", room}
        await ana.expect("presence:state", group="blue")
