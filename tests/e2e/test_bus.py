"""From the backbone to the clients, once and in order; what is not valid is kept with the reason."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import Client, Stack, eventually, unique

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


async def test_both_ways_interleaved_look_the_same_to_every_client(stack: Stack):
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
    "no event": '{"data":{"thread_id":"MARK"}}',
    "unknown event": '{"event":"thread:massage","data":{"thread_id":"MARK"}}',
    "client event join": '{"event":"join:thread","data":{"thread_id":"MARK"}}',
    "internal typing": '{"event":"thread:typing","data":{"thread_id":"MARK","user_id":"1","namespace":"hub",'
    '"name":"","typing":true},"rooms":["thread:MARK"]}',
    "field missing": '{"event":"thread:message","data":{"thread_id":"MARK"}}',
    "rooms half good": '{"event":"chat:ended","data":{"thread_id":"MARK"},"rooms":["thread:MARK","x:1"]}',
    "namespaces unknown": '{"event":"chat:ended","data":{"thread_id":"MARK"},"namespaces":["admin"]}',
    "id is a fraction": '{"event":"chat:ended","data":{"thread_id":"MARK"},"id":1.5}',
    "no namespace is left": '{"event":"queue:new","data":{"item_id":"MARK"},"namespaces":["portal"]}',
    "control bad status": '{"event":"presence:set","data":{"user_id":"1","status":"MARK"}}',
    "deep": '{"event":"chat:ended","data":{"thread_id":"MARK","x":%s}}' % ("[" * 50_000 + "]" * 50_000),
}


@pytest.mark.parametrize("way", WAYS)
async def test_invalid_message_is_kept_with_the_reason_and_not_delivered(stack: Stack, way: str):
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


# --- Bridges that come and go ----------------------------------------------------------------------


@pytest.mark.slow
async def test_redis_that_restarts_is_survived(tmp_path_factory: pytest.TempPathFactory):
    with EmbeddedRedis() as server, Stack(tmp_path_factory.mktemp("restart"), server.url) as stack:
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
