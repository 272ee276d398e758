"""From the backbone to the clients, once and in order; what is not valid is kept with the reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

from dev.embedded_redis import EmbeddedRedis
from tests.e2e.harness import Client, Process, Stack, eventually, unique

WAYS = ("add", "publish")
"""Over the durable stream, over Pub/Sub."""


def send(stack: Stack, way: str, event: str, data: dict[str, Any], **more: Any) -> None:
    getattr(stack, way)(event, data, **more)


def send_raw(stack: Stack, way: str, message: bytes | str) -> None:
    if way == "add":
        stack.redis.xadd(stack.key("stream"), {"message": message})
    else:
        stack.redis.publish(stack.key("events"), message)


async def all_messages(client: Client, expected: list[str]) -> list[dict[str, Any]]:
    """Wait for the last of them; then all came, in this order, none twice."""
    await client.expect("thread:message", message_id=expected[-1])
    await asyncio.sleep(0.2)
    frames = client.received("thread:message")
    assert [frame["data"]["message_id"] for frame in frames] == expected
    return frames


# --- Every event in its default rooms --------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_thread_events_reach_the_thread_in_both_namespaces(stack: Stack, way: str):
    thread = unique("th")
    async with (
        stack.client("hub") as attendant,
        stack.client("portal", threads=[thread]) as customer,
        stack.client("hub") as outsider,
    ):
        await attendant.call("join:thread", {"thread_id": thread})
        await customer.call("join:thread", {"thread_id": thread})
        for event, data in (
            ("thread:message", {"thread_id": thread, "message_id": "m1"}),
            ("chat:accepted", {"thread_id": thread, "attendant_id": 5}),
            ("chat:ended", {"thread_id": thread}),
        ):
            send(stack, way, event, data)
            for client in (attendant, customer):
                frame = await client.expect(event)
                assert frame["room"] == f"thread:{thread}"
                assert isinstance(frame["offset"], str)
                assert frame["data"] == {k: str(v) for k, v in data.items()}
        await outsider.nothing("thread:message", "chat:accepted", "chat:ended")


@pytest.mark.parametrize("way", WAYS)
async def test_accepted_chat_is_told_to_the_customer_in_person(stack: Stack, way: str):
    thread, user = unique("th"), unique("u")
    async with stack.client("portal", user) as customer, stack.client("hub", user) as namesake:
        send(stack, way, "chat:accepted", {"thread_id": thread, "attendant_id": "5", "user_id": user})
        assert (await customer.expect("chat:accepted"))["room"] == f"user:{user}"
        await namesake.nothing("chat:accepted")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("event", ["queue:new", "queue:taken", "queue:updated"])
async def test_queue_events_reach_the_group_they_are_about(stack: Stack, way: str, event: str):
    group = unique("g")
    async with (
        stack.client("hub", groups=["attendants"]) as attendant,
        stack.client("hub", role="admin", groups=[group]) as other_team,
        stack.client("portal", groups=["attendants", group]) as customer,
    ):
        item = unique("i")
        send(stack, way, event, {"item_id": item})
        assert (await attendant.expect(event, item_id=item))["room"] == "presence:attendants"
        send(stack, way, event, {"item_id": item, "group": group})
        frame = await other_team.expect(event, item_id=item)
        assert frame["room"] == f"presence:{group}"
        await asyncio.gather(attendant.nothing(event), other_team.nothing(event), customer.nothing(event))


async def test_queue_update_needs_no_data_at_all(stack: Stack):
    async with stack.client("hub") as attendant:
        await attendant.call("heartbeat")
        seen = len(attendant.received("queue:updated"))
        for message in ('{"event":"queue:updated"}', '{"event":"queue:updated","data":null}'):
            send_raw(stack, "add", message)
        await eventually(lambda: len(attendant.received("queue:updated")) == seen + 2)


@pytest.mark.parametrize("way", WAYS)
async def test_notification_reaches_every_tab_of_the_hubs_user(stack: Stack, way: str):
    user = unique("u")
    async with (
        stack.client("hub", user) as first,
        stack.client("hub", user) as second,
        stack.client("portal", user) as customer,
    ):
        send(stack, way, "user:notification", {"user_id": user, "title": "hi"})
        for client in (first, second):
            await client.expect("user:notification", title="hi")
        await customer.nothing("user:notification")
        send(stack, way, "user:notification", {"user_id": user, "n": 2}, namespaces=["hub", "portal"])
        for client in (first, second, customer):
            await client.expect("user:notification", n=2)


# --- Payloads --------------------------------------------------------------------------------------


async def test_whole_numbers_that_are_ids_become_strings(stack: Stack):
    async with stack.client("hub") as client:
        thread = 10**12 + int(unique(), 16) % 10**9
        await client.call("join:thread", {"thread_id": thread})
        stack.add("thread:message", {"thread_id": thread, "message_id": 2**60, "author_id": 5})
        data = (await client.expect("thread:message"))["data"]
        assert data == {"thread_id": str(thread), "message_id": str(2**60), "author_id": 5}


UNTOUCHED = (
    '"float":1e2,"small":1E-7,"zero":-0.0,"big":123456789012345678901234567890,"precise":0.1000000000000000055,'
    '"unicode":"ü🎈\\u00e9\\ud83c\\udf88","control":"\\u0000\\n\\/","null":null,"empty":{},"list":[],'
    '"nested":{"a":[1,{"b":[[],[{}]]}],"":{"event":"ack"}},"html":"</script>"'
)


@pytest.mark.parametrize("way", WAYS)
async def test_other_fields_pass_through_untouched(stack: Stack, way: str):
    thread = unique("th")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        message = f'{{"thread_id":"{thread}","message_id":"1",{UNTOUCHED}}}'
        send_raw(stack, way, f'{{"event":"thread:message","data":{message}}}')
        await client.expect("thread:message")
        text = next(text for text in client.texts if '"thread:message"' in text)
        assert UNTOUCHED in text
        assert client.received("thread:message")[0]["data"] == json.loads(message)


async def test_whitespace_and_key_order_of_a_message_do_not_matter(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        send_raw(
            stack,
            "add",
            f' {{ "unknown" : 1, "data" : {{ "message_id" : 1 , "thread_id":"{thread}" }} ,\n'
            '"event":"thread:message"} ',
        )
        assert (await client.expect("thread:message"))["data"] == {"message_id": "1", "thread_id": thread}


async def test_large_message_up_to_the_limit_is_delivered(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        message = json.dumps(
            {"event": "thread:message", "data": {"thread_id": thread, "message_id": 1, "body": ""}}
        )
        body = "x" * (256 * 1024 - len(message))
        send_raw(stack, "add", message.replace('""', f'"{body}"'))
        assert (await client.expect("thread:message"))["data"]["body"] == body


# --- Routing by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_rooms_replace_the_default_routing(stack: Stack, way: str):
    thread, user, group = unique("th"), unique("u"), unique("g")
    async with (
        stack.client("hub") as in_thread,
        stack.client("hub", user) as addressed,
        stack.client("hub", role="admin", groups=[group]) as team,
        stack.client("portal", user) as customer,
    ):
        await in_thread.call("join:thread", {"thread_id": thread})
        data = {"thread_id": thread, "message_id": unique("m")}
        send(stack, way, "thread:message", data, rooms=[f"user:{user}", f"presence:{group}"])
        assert (await addressed.expect("thread:message"))["room"] == f"user:{user}"
        assert (await team.expect("thread:message"))["room"] == f"presence:{group}"
        assert (await customer.expect("thread:message"))["room"] == f"user:{user}"
        await in_thread.nothing("thread:message")


@pytest.mark.parametrize("way", WAYS)
async def test_namespaces_narrow_the_audience(stack: Stack, way: str):
    thread = unique("th")
    async with stack.client("hub") as attendant, stack.client("portal", threads=[thread]) as customer:
        for client in (attendant, customer):
            await client.call("join:thread", {"thread_id": thread})
        data = {"thread_id": thread}
        send(stack, way, "thread:message", {**data, "message_id": "h"}, namespaces=["hub"])
        send(stack, way, "thread:message", {**data, "message_id": "p"}, namespaces=["portal"])
        await attendant.expect("thread:message", message_id="h")
        await customer.expect("thread:message", message_id="p")
        await asyncio.gather(attendant.nothing("thread:message"), customer.nothing("thread:message"))


@pytest.mark.parametrize("way", WAYS)
async def test_hub_events_never_reach_the_portal_whatever_the_message_says(stack: Stack, way: str):
    user, thread = unique("u"), unique("th")
    rooms = [f"user:{user}", f"thread:{thread}", "presence:attendants"]
    async with stack.client("portal", user, threads=[thread], groups=["attendants"]) as customer:
        async with stack.client("hub", user) as witness:
            await customer.call("join:thread", {"thread_id": thread})
            for event in ("queue:new", "queue:taken", "queue:updated"):
                for more in (
                    {"rooms": rooms},
                    {"rooms": rooms, "namespaces": ["portal"]},
                    {"rooms": rooms, "namespaces": ["hub", "portal"]},
                    {"namespaces": ["portal"]},
                ):
                    send(stack, way, event, {"item_id": "1", "group": "attendants"}, **more)
            await eventually(lambda: len(witness.received("queue:updated")) >= 2)
        await customer.nothing()


@pytest.mark.parametrize("way", WAYS)
async def test_one_connection_can_be_left_out(stack: Stack, way: str):
    thread, user = unique("th"), unique("u")
    async with stack.client("hub", user) as sender, stack.client("hub", user) as other_tab:
        for client in (sender, other_tab):
            await client.call("join:thread", {"thread_id": thread})
        data = {"thread_id": thread, "message_id": 1}
        send(stack, way, "thread:message", data, **{"except": sender.connection_id})
        await other_tab.expect("thread:message")
        await sender.nothing("thread:message")


# --- Idempotency -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [(a, b) for a in WAYS for b in WAYS], ids="-".join)
async def test_same_id_is_delivered_once_on_both_ways_and_across_them(stack: Stack, ways: tuple[str, str]):
    thread, key = unique("th"), unique("k")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        for number, way in enumerate((*ways, ways[0])):
            data = {"thread_id": thread, "message_id": f"m{number}"}
            send(stack, way, "thread:message", data, id=key)
            if not number:
                await client.expect("thread:message", message_id="m0")
        for way in set(ways):
            send(stack, way, "chat:ended", {"thread_id": thread, "way": way})
        for way in set(ways):
            await client.expect("chat:ended", way=way)
        await client.nothing("thread:message", within=0.2)


async def test_id_may_have_128_characters_of_any_kind_or_be_a_whole_number(stack: Stack):
    thread, whole = unique("th"), int(unique(), 16)
    long, odd = unique().ljust(128, "x"), unique("ünï 🎈:{}*")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        for number, same in enumerate(((long, long), (odd, odd), (whole, str(whole)))):
            for key in same:
                stack.add("thread:message", {"thread_id": thread, "message_id": number}, id=key)
        await all_messages(client, ["0", "1", "2"])


async def test_messages_without_an_id_are_never_taken_for_the_same(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        for way in WAYS * 3:
            send(stack, way, "thread:message", {"thread_id": thread, "message_id": "same"}, id=None)
        await eventually(lambda: len(client.received("thread:message")) == 6)
        await client.expect("thread:message")


# --- Order and offsets -----------------------------------------------------------------------------


async def test_every_client_sees_the_same_order_and_growing_offsets(stack: Stack):
    thread = unique("th")
    count = 500
    async with (
        stack.client("hub") as first,
        stack.client("hub") as second,
        stack.client("portal", threads=[thread]) as customer,
    ):
        clients = (first, second, customer)
        for client in clients:
            await client.call("join:thread", {"thread_id": thread})
        with stack.redis.pipeline(transaction=False) as pipe:
            for number in range(count):
                data = {"thread_id": thread, "message_id": number}
                pipe.xadd(
                    stack.key("stream"), {"message": json.dumps({"event": "thread:message", "data": data})}
                )
            pipe.execute()
        expected = [str(number) for number in range(count)]
        seen = [await all_messages(client, expected) for client in clients]
        offsets = [[frame["offset"] for frame in frames] for frames in seen]
        assert offsets[0] == offsets[1]
        for own in offsets:
            assert [int(offset) for offset in own] == sorted({int(offset) for offset in own})


async def test_both_ways_interleaved_look_the_same_to_everybody(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as first, stack.client("hub") as second:
        for client in (first, second):
            await client.call("join:thread", {"thread_id": thread})
        for number in range(100):
            send(stack, WAYS[number % 2], "thread:message", {"thread_id": thread, "message_id": number})
        for client in (first, second):
            await eventually(lambda client=client: len(client.received("thread:message")) == 100)
        assert first.received("thread:message") == second.received("thread:message")


# --- Dead letters ----------------------------------------------------------------------------------

MARK = "MARK"
INVALID: dict[str, str] = {
    "bad json": "{MARK",
    "no json at all": "MARK",
    "cut off": '{"event":"thread:message","data":{"thread_id":"MARK"',
    "trailing": '{"event":"chat:ended","data":{"thread_id":"MARK"}} x',
    "not a number": '{"event":"chat:ended","data":{"thread_id":"MARK","x":NaN}}',
    "array": '["MARK"]',
    "string": '"MARK"',
    "no event": '{"data":{"thread_id":"MARK"}}',
    "event is no string": '{"event":5,"data":{"thread_id":"MARK"}}',
    "unknown event": '{"event":"thread:massage","data":{"thread_id":"MARK"}}',
    "odd case": '{"event":"Chat:Ended","data":{"thread_id":"MARK"}}',
    "client event join": '{"event":"join:thread","data":{"thread_id":"MARK"}}',
    "client event typing": '{"event":"typing:start","data":{"thread_id":"MARK"}}',
    "client event heartbeat": '{"event":"heartbeat","data":{"x":"MARK"}}',
    "client event presence": '{"event":"presence:online","data":{"x":"MARK"}}',
    "internal attendant": '{"event":"attendant:online","data":{"user_id":"MARK","name":"","status":"online",'
    '"since":"2026-01-01T00:00:00Z"},"rooms":["presence:attendants"]}',
    "internal typing": '{"event":"thread:typing","data":{"thread_id":"MARK","user_id":"1","namespace":"hub",'
    '"name":"","typing":true},"rooms":["thread:MARK"]}',
    "internal cursor": '{"event":"thread:cursor","data":{"thread_id":"MARK","user_id":"1","namespace":"hub",'
    '"name":"","position":1}}',
    "internal ack": '{"event":"ack","data":{"x":"MARK"},"rooms":["thread:MARK"]}',
    "internal error": '{"event":"error","data":{"code":"MARK","message":"x"},"rooms":["thread:MARK"]}',
    "internal ready": '{"event":"connection:ready","data":{"x":"MARK"},"rooms":["thread:MARK"]}',
    "internal state": '{"event":"presence:state","data":{"group":"MARK"},"rooms":["presence:MARK"]}',
    "internal left": '{"event":"room:left","data":{"room":"thread:MARK","reason":"x"},"rooms":["thread:MARK"]}',
    "no data": '{"event":"chat:ended","id":"MARK"}',
    "data is null": '{"event":"chat:ended","data":null,"id":"MARK"}',
    "data is the empty array of PHP": '{"event":"queue:updated","data":[],"id":"MARK"}',
    "data is a list": '{"event":"chat:ended","data":["MARK"]}',
    "data is a string": '{"event":"chat:ended","data":"MARK"}',
    "field missing": '{"event":"thread:message","data":{"thread_id":"MARK"}}',
    "field missing in queue": '{"event":"queue:new","data":{"group":"MARK"}}',
    "field missing in notification": '{"event":"user:notification","data":{"x":"MARK"}}',
    "field missing in accepted": '{"event":"chat:accepted","data":{"thread_id":"MARK"}}',
    "field null": '{"event":"thread:message","data":{"thread_id":"MARK","message_id":null}}',
    "field is a float": '{"event":"thread:message","data":{"thread_id":"MARK","message_id":1.5}}',
    "field is a boolean": '{"event":"thread:message","data":{"thread_id":"MARK","message_id":true}}',
    "field is no id": '{"event":"chat:ended","data":{"thread_id":"a b MARK"}}',
    "field is too long": '{"event":"chat:ended","data":{"thread_id":"MARK%s"}}' % ("x" * 64),
    "field is a list": '{"event":"chat:ended","data":{"thread_id":["MARK"]}}',
    "rooms is a string": '{"event":"chat:ended","data":{"thread_id":"MARK"},"rooms":"thread:MARK"}',
    "rooms of numbers": '{"event":"chat:ended","data":{"thread_id":"MARK"},"rooms":[5]}',
    "rooms unknown kind": '{"event":"chat:ended","data":{"thread_id":"MARK"},"rooms":["control"]}',
    "rooms bad name": '{"event":"chat:ended","data":{"thread_id":"MARK"},"rooms":["thread:a b"]}',
    "rooms half good": '{"event":"chat:ended","data":{"thread_id":"MARK"},"rooms":["thread:MARK","x:1"]}',
    "namespaces is a string": '{"event":"chat:ended","data":{"thread_id":"MARK"},"namespaces":"hub"}',
    "namespaces unknown": '{"event":"chat:ended","data":{"thread_id":"MARK"},"namespaces":["admin"]}',
    "namespaces of numbers": '{"event":"chat:ended","data":{"thread_id":"MARK"},"namespaces":[1]}',
    "id is a fraction": '{"event":"chat:ended","data":{"thread_id":"MARK"},"id":1.5}',
    "id is too large": '{"event":"chat:ended","data":{"thread_id":"MARK"},"id":9223372036854775808}',
    "id is too long": '{"event":"chat:ended","data":{"thread_id":"MARK"},"id":"%s"}' % ("x" * 129),
    "except is a number": '{"event":"chat:ended","data":{"thread_id":"MARK"},"except":5}',
    "nobody is left": '{"event":"queue:new","data":{"item_id":"MARK"},"namespaces":["portal"]}',
    "control without user": '{"event":"user:disconnect","data":{"namespace":"hub","reason":"MARK"}}',
    "control bad namespace": '{"event":"user:disconnect","data":{"user_id":"1","namespace":"MARK"}}',
    "control bad status": '{"event":"presence:set","data":{"user_id":"1","status":"MARK"}}',
    "control offline": '{"event":"presence:set","data":{"user_id":"MARK","status":"offline"}}',
    "control without exp": '{"event":"token:revoke","data":{"jti":"MARK"}}',
    "control without thread": '{"event":"thread:grant","data":{"user_id":"MARK"}}',
    "deep": '{"event":"chat:ended","data":{"thread_id":"MARK","x":%s}}' % ("[" * 50_000 + "]" * 50_000),
}


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_not_valid_is_kept_with_the_reason_and_delivered_to_nobody(stack: Stack, way: str):
    mark = unique("x")
    async with (
        stack.client("hub") as attendant,
        stack.client("portal", threads=[mark]) as customer,
    ):
        for client in (attendant, customer):
            await client.call("join:thread", {"thread_id": mark})
        await attendant.expect("presence:state")
        attendant.forget_unread()
        for message in INVALID.values():
            send_raw(stack, way, message.replace(MARK, mark))
        send(stack, way, "chat:ended", {"thread_id": mark, "last": True})
        for client in (attendant, customer):
            await client.expect("chat:ended", last=True)
        kept = await eventually(
            lambda: (
                letters
                if len(letters := [letter for letter in stack.dead_letters() if mark in letter["message"]])
                >= len(INVALID)
                else None
            )
        )
        assert [letter["message"] for letter in kept] == [
            message.replace(MARK, mark)[:4096] for message in INVALID.values()
        ]
        assert all(letter["reason"] for letter in kept)
        found = [frame for frame in attendant.frames + customer.frames if mark in json.dumps(frame)]
        assert not [f for f in found if f["event"] != "ack" and not f["data"].get("last")], found


@pytest.mark.parametrize("way", WAYS)
async def test_reason_of_a_dead_letter_names_what_is_wrong(stack: Stack, way: str):
    expected = {
        "field missing": "message_id",
        "unknown event": "thread:massage",
        "client event join": "join:thread",
        "internal attendant": "attendant:online",
        "rooms bad name": "thread:a b",
        "namespaces unknown": "admin",
        "data is the empty array of PHP": "(object)[]",
    }
    for name, culprit in expected.items():
        mark = unique("x")
        send_raw(stack, way, INVALID[name].replace(MARK, mark))
        letter = await eventually(
            lambda mark=mark: next((one for one in stack.dead_letters() if mark in one["message"]), None)
        )
        assert culprit in letter["reason"]


@pytest.mark.parametrize("way", WAYS)
async def test_too_large_message_is_kept_in_part(stack: Stack, way: str):
    thread = unique("th")
    message = {"event": "thread:message", "data": {"thread_id": thread, "message_id": 1, "x": "x" * 262_144}}
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        send_raw(stack, way, json.dumps(message))
        letter = await eventually(
            lambda: next((one for one in stack.dead_letters() if thread in one["message"]), None)
        )
        assert letter["message"] == json.dumps(message)[:4096]
        assert letter["reason"]
        await client.nothing("thread:message", within=0.2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("odd", [b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"], ids=repr)
async def test_bytes_that_are_not_utf_8_are_a_dead_letter(stack: Stack, way: str, odd: bytes):
    thread = unique("th")
    raw = b'{"event":"chat:ended","data":{"thread_id":"%s","x":"%s"}}' % (thread.encode(), odd)
    send_raw(stack, way, raw)

    letter = await eventually(
        lambda: next((one for one in stack.dead_letters() if thread in one["message"]), None)
    )
    assert letter["message"] == raw.decode(errors="backslashreplace")


async def test_entry_without_the_message_field_is_a_dead_letter(stack: Stack):
    mark = unique("x")
    stack.redis.xadd(stack.key("stream"), {"massage": json.dumps({"event": "chat:ended", "x": mark})})
    letter = await eventually(
        lambda: next((one for one in stack.dead_letters() if mark in one["message"]), None)
    )
    assert "message" in letter["reason"]


async def test_dead_letters_are_capped(stack: Stack):
    with stack.redis.pipeline(transaction=False) as pipe:
        for number in range(1200):
            pipe.xadd(stack.key("stream"), {"message": f"no json {number}"})
        pipe.execute()
    await eventually(lambda: "no json 1199" in [letter["message"] for letter in stack.dead_letters()[-1:]])
    assert 1000 <= stack.redis.xlen(stack.key("dead")) <= 1100  # Redis trims in blocks of 100


async def test_invalid_message_does_not_hold_up_the_next(stack: Stack):
    thread = unique("th")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        for number in range(50):
            stack.redis.xadd(stack.key("stream"), {"message": b"\xff" if number % 2 else "{"})
            stack.add("thread:message", {"thread_id": thread, "message_id": number})
        await all_messages(client, [str(number) for number in range(50)])


# --- Bridges that come and go ----------------------------------------------------------------------


@pytest.fixture
def bridgeless(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Socket server only: bridges are started by the test."""
    stack = Stack(tmp_path_factory.mktemp("bridges"), redis_url)
    try:
        stack.start_sockets()
        yield stack
    finally:
        stack.stop()
    stack.assert_calm()


class Conversation:
    """A thread, who listens to it, and everything that was added."""

    def __init__(self, stack: Stack, client: Client, thread: str) -> None:
        self.stack, self.client, self.thread = stack, client, thread
        self.added: list[str] = []

    def add(self, count: int) -> None:
        for _ in range(count):
            self.added.append(f"m{len(self.added)}")
            self.stack.add("thread:message", {"thread_id": self.thread, "message_id": self.added[-1]})

    async def go_on(self, seconds: float, meanwhile: Callable[[], Awaitable[Any]]) -> None:
        """Add a message every few milliseconds while something happens, and so long after."""
        happening = asyncio.ensure_future(meanwhile())
        deadline = asyncio.get_running_loop().time() + seconds
        while not happening.done() or asyncio.get_running_loop().time() < deadline:
            self.add(1)
            await asyncio.sleep(0.004)
        await happening

    async def assert_complete(self) -> None:
        await all_messages(self.client, self.added)


async def start_bridge(stack: Stack) -> Process:
    return await asyncio.to_thread(stack.start, "runbridge")


async def stop(process: Process, how: Any = SIGTERM) -> int:
    return await asyncio.to_thread(process.stop, how)


async def test_nothing_on_the_stream_is_lost_or_doubled_while_bridges_come_and_go(bridgeless: Stack):
    thread = unique("th")
    async with bridgeless.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        conversation = Conversation(bridgeless, client, thread)

        conversation.add(200)  # before the first bridge ever
        bridge = await start_bridge(bridgeless)
        await conversation.assert_complete()

        assert await stop(bridge) == 0
        conversation.add(100)  # while there is none
        bridge = await start_bridge(bridgeless)
        await conversation.assert_complete()

        for how in (SIGTERM, SIGKILL):  # in the middle of the stream

            async def restart(bridge: Process = bridge, how: Any = how) -> Process:
                await asyncio.sleep(0.2)
                await stop(bridge, how)
                return await start_bridge(bridgeless)

            restarting = asyncio.ensure_future(restart())
            await conversation.go_on(0.5, lambda restarting=restarting: restarting)
            bridge = await restarting
            await conversation.assert_complete()

        second = await start_bridge(bridgeless)  # two at once
        conversation.add(100)
        await conversation.assert_complete()
        await conversation.go_on(0.3, lambda: stop(bridge, SIGKILL))  # and the one that delivers dies
        await conversation.assert_complete()
        await stop(second)
    assert client.close_code == 1000


async def test_two_bridges_deliver_what_is_published_once(bridgeless: Stack):
    thread = unique("th")
    await asyncio.gather(start_bridge(bridgeless), start_bridge(bridgeless))
    async with bridgeless.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        for number in range(50):
            bridgeless.publish("thread:message", {"thread_id": thread, "message_id": number})
        for number in range(50, 100):
            bridgeless.publish(
                "thread:message", {"thread_id": thread, "message_id": number}, id=f"{thread}{number}"
            )
        await all_messages(client, [str(number) for number in range(100)])


@pytest.mark.slow
async def test_redis_that_restarts_is_survived(tmp_path_factory: pytest.TempPathFactory):
    with EmbeddedRedis() as server:
        stack = Stack(tmp_path_factory.mktemp("restart"), server.url)
        try:
            stack.start_all()
            thread = unique("th")
            async with (
                stack.client("hub") as attendant,
                stack.client("portal", threads=[thread]) as customer,
            ):
                clients = (attendant, customer)
                for client in clients:
                    await client.call("join:thread", {"thread_id": thread})
                stack.add("thread:message", {"thread_id": thread, "message_id": "before"})
                for client in clients:
                    await client.expect("thread:message", message_id="before")
                server.stop()
                error = await attendant.refused("join:thread", {"thread_id": unique("th")})
                assert error["code"] == "unavailable"
                response = await stack.handshake(token=stack.sign())
                stack.assert_refused(response, 503, "unavailable")
                assert int(response.headers["retry-after"]) > 0
                verdict = await stack.http("GET", "/hub/", [("Authorization", f"Bearer {stack.sign()}")])
                assert (verdict.status, verdict.error["code"]) == (503, "unavailable")
                assert "retry-after" in verdict.headers
                server.start()

                async def arrives() -> bool:
                    message = unique("m")
                    stack.add("thread:message", {"thread_id": thread, "message_id": message})
                    await asyncio.sleep(0.2)
                    return all(
                        any(f["data"]["message_id"] == message for f in client.received("thread:message"))
                        for client in clients
                    )

                await eventually(arrives)
                # Only what is published once the bridge has subscribed again can arrive.
                channel = stack.key("events")
                await eventually(lambda: stack.redis.pubsub_numsub(channel)[0][1] > 0)
                stack.publish("chat:ended", {"thread_id": thread})
                for client in clients:
                    await client.expect("chat:ended")
                    await client.call("leave:thread", {"thread_id": thread})
                    ids = [frame["data"]["message_id"] for frame in client.received("thread:message")]
                    assert len(ids) == len(set(ids))
                    assert client.close_code is None
                assert (await stack.handshake(token=stack.sign())).status == 101
            for process in stack.processes:
                lines = [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]
                assert any(line["level"] == "WARNING" for line in lines), process.name
        finally:
            stack.stop()
        stack.assert_calm()
