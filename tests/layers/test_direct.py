"""Publishing directly: the same messages, once and in order, whichever of the two ways each of them takes."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
import redis
from django.test import override_settings

from realtime.layers import direct as module
from realtime.layers import history
from realtime.outbox.sending import BATCH_ROWS
from realtime.publisher import apublish
from realtime.redis import appending
from realtime.redis.bounded import now
from realtime.redis.client import client, key
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.blocks import DOCS
from tests.bridge.support import Room
from tests.inprocess import add, bridging, dead_letters, eventually

pytestmark = pytest.mark.usefixtures("process", "without_outbox", "_directly")


@pytest.fixture
async def room(_directly: None) -> Room:
    """A bridge has read all of the stream, which is one entry, and is gone."""
    room = await Room().enter()
    await read_by_a_bridge()
    return room


def say(number: int, **more: Any) -> Any:
    return apublish("thread:message", {"thread_id": 42, "message_id": number}, **more)


async def in_stream() -> int:
    return await client().xlen(key("stream"))


# --- Which way a message takes ---------------------------------------------------------------------------


async def test_message_reaches_its_room_without_the_stream(room: Room):
    async with bridging():
        await say(7)
        frame = await room.frame()
        assert (frame["event"], frame["room"], frame["data"]["message_id"]) == (
            "thread:message",
            "thread:42",
            "7",
        )
        assert int(frame["offset"]) > 0
        assert await in_stream() == 1
        await add("thread:message", {"thread_id": 42, "message_id": 8})
        after = await room.frame()
        assert after["data"]["message_id"] == "8"
        assert int(after["offset"]) > int(frame["offset"])


async def test_without_a_bridge_it_waits_in_the_stream():
    room = await Room().enter()
    await say(1)
    assert await in_stream() == 1
    async with bridging():
        assert await room.message_ids(1) == ["1"]


async def test_nothing_overtakes_what_waits_in_the_stream(room: Room):
    await say(1)
    await add("thread:message", {"thread_id": 42, "message_id": 2})
    await say(3)
    await add("thread:revoke", {"thread_id": 42, "user_id": 1})
    await say(4)
    async with bridging():
        assert await room.message_ids(4) == ["1", "2", "3", "4"]
        await eventually(has_read_all)
        before = await in_stream()
        await say(5)
        assert await room.message_ids(1) == ["5"]
        assert await in_stream() == before


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("thread:grant", {"thread_id": 42, "user_id": 7}),  # has no rooms
        ("chat:accepted", {"thread_id": 42, "attendant_id": 7, "customer_id": 8}),  # has rooms, and grants
    ],
)
async def test_what_the_bridge_has_to_handle_uses_the_stream(room: Room, event: str, data: dict[str, Any]):
    await apublish(event, data)
    assert await in_stream() == 2


async def test_backbone_with_another_catalogue_uses_the_stream(room: Room):
    await client().hset(key("cursors"), "catalogue", "another")
    await say(1)
    assert await in_stream() == 2


async def test_message_that_is_too_large_for_the_bridge_is_a_dead_letter_also_if_nothing_waits(
    room: Room, settings
):
    with override_settings(REALTIME={**settings.REALTIME, "LIMITS": {"BUS_BYTES": 0}}):
        await say(1)
        await apublish("thread:message", {"thread_id": 42, "message_id": 2, "body": "x" * 262_144})
    async with bridging():
        await eventually(dead_letters)
        assert await room.message_ids(1) == ["1"]
    assert "too_large" in str(await dead_letters())


async def test_by_default_all_messages_use_the_stream(room: Room, settings):
    with override_settings(REALTIME={**settings.REALTIME, "PUBLISH_DIRECTLY": False}):
        await say(1)
    assert await in_stream() == 2


async def test_user_who_may_not_run_scripts_uses_the_stream(room: Room, settings, redis_url: str, caplog):
    rights = "on >secret resetkeys %W~*:stream resetchannels -@all +hello +auth +ping +client|setinfo +xadd"
    await client().execute_command("ACL", "SETUSER", "narrow", *rights.split())
    url = redis_url.replace("://", "://narrow:secret@", 1)
    with override_settings(REALTIME={**settings.REALTIME, "REDIS_URL": url}):
        await asyncio.gather(say(1), say(2))
    assert await in_stream() == 3
    assert caplog.text.count("messages cannot be published directly") == 1
    await client().execute_command("ACL", "DELUSER", "narrow")


async def test_rights_of_the_documentation_are_enough(room: Room, process: str, settings, redis_url: str):
    page = (DOCS / "security.md").read_text()
    lines = re.findall(r"ACL SETUSER (backbone on .*?)$|`ACL SETUSER (backbone \(.*?)`", page, re.MULTILINE)
    assert len(lines) == 2
    for words in ("".join(line).replace("PASSWORD", "secret").split() for line in lines):
        own = [
            re.sub(r"(?<=[~&])\{?realtime(?=:)", lambda found: found[0].replace("realtime", process), word)
            for word in words
        ]
        await client().execute_command("ACL", "SETUSER", *own)
    url = redis_url.replace("://", "://backbone:secret@", 1)
    with override_settings(REALTIME={**settings.REALTIME, "REDIS_URL": url}):
        for number in range(3):
            await say(number, id=number)
            await say(number, id=number)
    assert await room.message_ids(3) == ["0", "1", "2"]
    assert await in_stream() == 1
    await client().execute_command("ACL", "DELUSER", "backbone")


PUBLISHING = (
    "on >secret resetkeys ~* resetchannels &*:live -@all +hello +auth +ping +client|setinfo +evalsha +eval +hget"
    " +hmget +hset +xadd +xlen +xrange +xrevrange +xtrim +set +del +expire +pexpire"
    " +time +publish +pubsub|numsub"
)


@pytest.mark.parametrize("missing", ["+hset", "+set", "+xtrim", "&*:live", "+publish", "+evalsha"])
async def test_right_that_is_missing_is_noticed_before_anything_is_done(
    missing: str, room: Room, settings, redis_url: str, caplog
):
    words = [word for word in PUBLISHING.split() if word != missing]
    await client().execute_command("ACL", "SETUSER", "partial", "reset", *words)
    url = redis_url.replace("://", "://partial:secret@", 1)
    with override_settings(REALTIME={**settings.REALTIME, "REDIS_URL": url}):
        await say(1, id="a")
        await say(2, id="b")
    assert await in_stream() == 3
    assert caplog.text.count("messages cannot be published directly") == 1
    async with bridging():
        assert await room.message_ids(2) == ["1", "2"]
    await client().execute_command("ACL", "DELUSER", "partial")


@pytest.mark.parametrize("before", ["a message that waits", "a message to another namespace"])
async def test_right_that_is_missing_is_noticed_also_if_another_message_was_sent_before(
    before: str, settings, redis_url: str
):
    await Room().enter(namespace="portal")
    await read_by_a_bridge()
    words = PUBLISHING.replace("&*:live", "&*{hub.*:live").split()
    await client().execute_command("ACL", "SETUSER", "partial", "reset", *words)
    url = redis_url.replace("://", "://partial:secret@", 1)
    own = {**settings.REALTIME, "REDIS_URL": url}
    with override_settings(REALTIME=own), redis.Redis.from_url(redis_url) as its:
        if before == "a message that waits":
            its.xadd(key("stream"), {"message": "something"})
            await say(1, namespaces=["portal"])
        else:
            await say(1, namespaces=["hub"])
        ((newest, _),) = its.xrevrange(key("stream"), count=1)
        its.hset(key("cursors"), key("stream"), newest)  # as if the bridge had delivered it
        waiting = its.xlen(key("stream"))
        await say(2, namespaces=["portal"])
        assert its.xlen(key("stream")) == waiting + 1
        assert not its.exists(f"{history.base('portal.thread.42')}:log")
        its.acl_deluser("partial")


async def test_room_of_several_that_redis_cannot_append_to_does_not_repeat_the_message_in_the_others(
    room: Room,
):
    await Room().enter(namespace="portal")
    await client().delete(f"{history.base('portal.thread.42')}:room")
    await client().set(f"{history.base('portal.thread.42')}:room", "something else")
    await say(1, id="a")
    await say(2, namespaces=["hub"])
    async with bridging():
        assert await room.message_ids(2) == ["1", "2"]


@pytest.mark.parametrize("entered", [[], ["hub.thread.42"]])
async def test_replica_takes_nothing(settings, entered: list[str]):
    known = dict.fromkeys(("size", "ttl", "bytes", "room", "marker"), 9)
    with EmbeddedRedis() as old, old.client() as its:
        its.hset(key("cursors"), mapping={**known, "catalogue": module.fingerprint()})
        for group in entered:
            its.hset(f"{history.base(group)}:room", "position", "1700000000000000")
        its.replicaof("127.0.0.1", "1")
        own = {**settings.REALTIME, "REDIS_URL": old.url}
        with override_settings(REALTIME=own), pytest.raises(redis.exceptions.ReadOnlyError):
            await say(1)


# --- Once, and with the histories as the servers have them -----------------------------------------------


async def test_message_that_is_sent_again_is_delivered_once_by_either_way(room: Room):
    await say(1, id="a")  # directly
    await say(1, id="a")
    await add("thread:message", {"thread_id": 42, "message_id": 1}, id="a")
    await say(2, id="b")  # in the stream, behind the one before
    await say(2, id="b")
    async with bridging():
        await eventually(has_read_all)
        await say(2, id="b")  # directly
        await say(3)
        assert await room.message_ids(3) == ["1", "2", "3"]


async def test_rooms_and_the_excluded_connection_are_those_of_the_message():
    excluded, other = await Room("c1").enter("user:9"), await Room("c2").enter("user:9")
    portal = await Room("c3").enter("user:9", "portal")
    await read_by_a_bridge()
    await say(1, rooms=["user:9"], namespaces=["hub"], exclude="c1")
    await say(2, rooms=["user:9"])
    assert await other.message_ids(2) == ["1", "2"]
    assert await excluded.message_ids(1) == ["2"]
    assert await portal.message_ids(1) == ["2"]


async def test_history_is_kept_as_the_bridge_is_told(room: Room, settings):
    own = {**settings.REALTIME, "HISTORY_SIZE": 3}
    with override_settings(REALTIME=own):
        await read_by_a_bridge()
    for number in range(9):
        await say(number)
    assert len(await room.message_ids(9)) == 9
    assert await client().xlen(f"{history.base('hub.thread.42')}:log") == 3


async def test_redis_that_forgot_the_script_learns_it_again(room: Room):
    await say(1)
    await client().script_flush()
    await say(2)
    assert await room.message_ids(2) == ["1", "2"]
    assert await in_stream() == 1


async def test_room_that_redis_cannot_append_to_makes_a_dead_letter_and_no_exception(room: Room):
    await Room().enter("thread:13")
    await client().set(f"{history.base('hub.thread.13')}:log", "something else")
    await apublish("thread:message", {"thread_id": 13, "message_id": 1})
    await say(2)
    async with bridging():
        assert await room.message_ids(1) == ["2"]
        await eventually(dead_letters)
    assert "WRONGTYPE" in str(await dead_letters())


@pytest.mark.parametrize("thread", [42, 43], ids=["entered", "that no connection has entered"])
async def test_full_redis_is_an_error_and_nothing_is_half_done_whatever_the_room(room: Room, thread: int):
    used = (await client().info("memory"))["used_memory"]
    await client().config_set("maxmemory", used - 100_000)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            await apublish("thread:message", {"thread_id": thread, "message_id": 1})
    finally:
        await client().config_set("maxmemory", 0)
    await say(2)
    assert await room.message_ids(1) == ["2"]


async def test_several_messages_go_together_and_in_order(room: Room):
    numbers = range(BATCH_ROWS)
    messages = [
        json.dumps({"event": "thread:message", "data": {"thread_id": 42, "message_id": n}, "id": n}).encode()
        for n in numbers
    ]
    await asyncio.to_thread(send, messages)
    assert await room.message_ids(len(numbers)) == [str(number) for number in numbers]
    await add("chat:ended", {"thread_id": 1})
    await asyncio.to_thread(send, [message.replace(b'"id": ', b'"id": -1') for message in messages])
    assert await in_stream() == 2 + len(numbers)
    async with bridging():
        assert await room.message_ids(len(numbers)) == [str(number) for number in numbers]


def send(messages: list[bytes]) -> None:
    found = module.direct(messages)
    assert found is not None
    appending.append(messages, now() + 5, found)


async def has_read_all() -> bool:
    cursor: Any = await client().hget(key("cursors"), key("stream"))
    newest: Any = await client().xrevrange(key("stream"), count=1)
    return bool(newest) and cursor == newest[0][0]


async def read_by_a_bridge() -> None:
    """A bridge has read all of the stream, and is gone."""
    async with bridging():
        await add("chat:ended", {"thread_id": 1})
        await eventually(has_read_all)
