"""A customer who attacks sees nothing of the team and nothing of other customers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.e2e.harness import Client, Stack, eventually, unique


class Scene:
    """A team, a victim with a thread, and an attacker with a token of their own."""

    def __init__(
        self, stack: Stack, attacker: Client, attendant: Client, victim: Client, thread: str
    ) -> None:
        self.stack = stack
        self.attacker = attacker
        self.attendant = attendant
        self.victim = victim
        self.thread = thread
        self.secret = unique("secret")

    async def go_on(self) -> None:
        """Everything happens that the attacker must not see; it reaches whom it should."""
        stack, secret, thread = self.stack, self.secret, self.thread
        stack.add("thread:message", {"thread_id": thread, "message_id": 1, "s": secret})
        stack.add("chat:accepted", {"thread_id": thread, "attendant_id": 1, "s": secret})
        stack.add("user:notification", {"user_id": self.attendant.user_id, "s": secret})
        stack.add(
            "user:notification", {"user_id": self.victim.user_id, "s": secret}, namespaces=["hub", "portal"]
        )
        stack.add("queue:new", {"item_id": 1, "s": secret})
        stack.add("queue:updated", {"s": secret})
        await self.attendant.call("cursor:move", {"thread_id": thread, "position": secret})
        await self.attendant.expect("queue:updated", s=secret)
        await self.attendant.expect("thread:message", s=secret)
        await self.attendant.expect("user:notification", s=secret)
        await self.victim.expect("thread:message", s=secret)
        await self.victim.expect("user:notification", s=secret)
        await self.victim.expect("thread:cursor", position=secret)

    async def assert_nothing_leaked(self) -> None:
        await asyncio.sleep(0.3)
        for frame in self.attacker.frames:
            assert self.secret not in json.dumps(frame)
            assert frame["event"] in {"connection:ready", "ack", "error"}


@pytest.fixture
async def scene(stack: Stack):
    thread, own = unique("th"), unique("own")
    async with (
        stack.client("hub", groups=["attendants"], name="Ana") as attendant,
        stack.client("portal", threads=[thread]) as victim,
        stack.client("portal", attendant.user_id, threads=[own], groups=["attendants"]) as attacker,
    ):
        for client in (attendant, victim):
            await client.call("join:thread", {"thread_id": thread})
        await attacker.call("join:thread", {"thread_id": own})
        yield Scene(stack, attacker, attendant, victim, thread)


def injections(thread: str) -> list[Any]:
    """Ways to say a thread id that is not one's own."""
    return [
        thread,
        thread.upper(),
        f" {thread}",
        f"{thread} ",
        f"{thread}\n",
        f"{thread}\x00",
        f"{thread}:presence",
        f"42:{thread}",
        f"{thread},own",
        f"thread:{thread}",
        f"thread.{thread}",
        f"portal.thread.{thread}",
        f"../{thread}",
        f"..%2f{thread}",
        f"%74{thread[1:]}",
        f"*{thread}",
        f"{thread[:-1]}*",
        f"{thread[:-1]}?",
        "*",
        "**",
        "[a-z]*",
        "",
        ".",
        "..",
        "presence:attendants",
        "control",
        "٤٢",
        "42",
        thread.replace("t", "ｔ"),
        "x" * 64,
        "x" * 65,
        "x" * 10_000,
        "'; DROP TABLE users; --",
        "{hub:thread}",
        "${jndi:ldap://x}",
        None,
        True,
        1.5,
        -1,
        [thread],
        {"thread_id": thread},
        {"$ne": None},
    ]


async def test_no_thread_id_gets_one_into_anothers_thread(scene: Scene):
    for thread_id in injections(scene.thread):
        error = await scene.attacker.refused("join:thread", {"thread_id": thread_id})
        assert error["code"] in {"forbidden", "invalid_payload"}
        error = await scene.attacker.refused("join:thread", {"thread_id": thread_id, "since": "0"})
        assert error["code"] in {"forbidden", "invalid_payload"}
        for event in ("typing:start", "typing:stop", "cursor:move"):
            error = await scene.attacker.refused(event, {"thread_id": thread_id, "position": 1})
            assert error["code"] in {"not_in_room", "invalid_payload"}
        await scene.attacker.call("heartbeat")  # too many invalid frames in a row would end it
    await scene.go_on()
    await scene.assert_nothing_leaked()
    await scene.victim.nothing("thread:typing", within=0.1)


async def test_no_room_name_can_be_resumed_that_is_not_ones_own(scene: Scene):
    prefix = scene.stack.prefix
    rooms = [
        f"thread:{scene.thread}",
        f"user:{scene.victim.user_id}",
        "presence:attendants",
        "presence:*",
        "user:*",
        "thread:*",
        "control",
        f"hub.user.{scene.attendant.user_id}",
        f"user:{scene.attendant.user_id}:hub",
        f"hub:user:{scene.attendant.user_id}",
        f"{prefix}:events",
        f"{prefix}:stream",
        f"Thread:{scene.thread}",
        f"thread:{scene.thread}\n",
        f"thread::{scene.thread}",
        f"thread:own:{scene.thread}",
        f"thread:../{scene.thread}",
        "thread:٤٢",
        "",
        ":",
        "x" * 5000,
    ]
    for since in ("0", "0-0", "-", "+", "*", "$", "9" * 64, "-1", "9999999999999999"):
        answers = (await scene.attacker.call("resume", {"rooms": dict.fromkeys(rooms, since)}))["rooms"]
        assert set(answers) == set(rooms)
        assert all(set(answer) == {"error"} for answer in answers.values()), answers
    await scene.go_on()
    await scene.assert_nothing_leaked()


async def test_no_event_of_the_team_or_the_server_can_be_sent(scene: Scene):
    thread, user = scene.thread, scene.attacker.user_id
    data = {
        "thread_id": thread,
        "user_id": user,
        "group": "attendants",
        "item_id": 1,
        "message_id": 1,
        "attendant_id": 1,
        "status": "online",
        "namespace": "hub",
        "room": "presence:attendants",
        "rooms": {"presence:attendants": "0"},
        "s": scene.secret,
    }
    events = [
        *("presence:online", "presence:away", "presence:offline", "presence:state", "presence:set"),
        *("thread:grant", "thread:revoke", "user:disconnect", "token:revoke"),
        *("thread:message", "chat:accepted", "chat:ended", "queue:new", "queue:taken", "queue:updated"),
        *("user:notification", "attendant:online", "attendant:offline", "thread:typing", "thread:cursor"),
        *("connection:ready", "room:left", "room:gap", "auth:expiring", "ack", "error"),
        *("JOIN:THREAD", "Join:Thread", "join:thread ", "join.thread", "join:presence", "subscribe", "join"),
        *("room.frame", "room_frame", "room.ephemeral", "websocket.disconnect", "control.signal", "__init__"),
        *("heartbeat\x00", "*", "", "x" * 5000),
    ]
    for event in events:
        error = await scene.attacker.refused(event, data)
        assert error["code"] in {"unknown_event", "forbidden"}, event
    assert not [letter for letter in scene.stack.dead_letters() if scene.secret in letter["message"]]
    await scene.victim.nothing(within=0.1)
    scene_frames = [frame for frame in scene.attendant.frames if scene.secret in json.dumps(frame)]
    assert not scene_frames
    assert (await scene.attacker.refused("join:thread", {"thread_id": thread}))["code"] == "forbidden"
    await scene.go_on()
    await scene.assert_nothing_leaked()


async def test_no_extra_key_of_a_frame_opens_anything(scene: Scene):
    extras = {
        "room": f"thread:{scene.thread}",
        "rooms": ["presence:attendants", f"thread:{scene.thread}"],
        "namespace": "hub",
        "namespaces": ["hub"],
        "type": "room.frame",
        "user_id": scene.victim.user_id,
        "role": "admin",
        "principal": {"role": "admin"},
    }
    await scene.attacker.send("heartbeat", extras, **extras)
    await scene.attacker.send("leave:thread", {"thread_id": "1", **extras}, **extras)
    await scene.attacker.call("resume", {"rooms": {}, "namespace": "hub"})
    await scene.go_on()
    await scene.assert_nothing_leaked()


async def test_no_portal_token_enters_the_hub_or_becomes_another(scene: Scene):
    stack, attacker = scene.stack, scene.attacker
    token = stack.sign(role="customer", user_id=attacker.user_id, threads=["1"])
    for path in ("/hub/", "/hub", "/hub/?role=admin", "/hub/?namespace=portal"):
        stack.assert_refused(await stack.handshake(path, token=token), 403, "forbidden_role")
    for other in (
        stack.sign(role="attendant", user_id=attacker.user_id),
        stack.sign(role="customer", user_id=scene.victim.user_id, threads=[scene.thread]),
        stack.sign(role="admin", user_id=attacker.user_id),
    ):
        assert (await attacker.refused("auth:refresh", {"token": other}))["code"] == "forbidden"
    assert (await attacker.refused("join:thread", {"thread_id": scene.thread}))["code"] == "forbidden"
    await scene.go_on()
    await scene.assert_nothing_leaked()


async def test_signature_of_a_typist_cannot_be_forged(scene: Scene):
    own = unique("own")
    stack, attacker = scene.stack, scene.attacker
    token = stack.sign(role="customer", user_id=attacker.user_id, threads=[own], name="Mallory")
    async with stack.client("portal", token=token) as mallory, stack.client("hub") as witness:
        for client in (mallory, witness):
            await client.call("join:thread", {"thread_id": own})
        claimed = {"user_id": "1", "namespace": "hub", "name": "Boss", "room": "presence:attendants"}
        await mallory.call("cursor:move", {"thread_id": own, "position": 1, **claimed})
        frame = await witness.expect("thread:cursor")
        assert frame["room"] == f"thread:{own}"
        assert frame["data"] == {
            "thread_id": own,
            "user_id": attacker.user_id,
            "namespace": "portal",
            "name": "Mallory",
            "position": 1,
        }


async def test_who_left_or_was_put_out_hears_nothing_more(scene: Scene):
    stack, attacker = scene.stack, scene.attacker
    stack.add("thread:grant", {"thread_id": scene.thread, "user_id": attacker.user_id})

    async def joined() -> bool:
        await attacker.send("join:thread", {"thread_id": scene.thread}, id="joining")
        answer = await attacker.next_frame(lambda frame: frame.get("id") == "joining", "an answer")
        return answer["event"] == "ack"

    await eventually(joined)
    stack.add("thread:revoke", {"thread_id": scene.thread, "user_id": attacker.user_id})
    await attacker.expect("room:left")
    attacker.frames[:] = [frame for frame in attacker.frames if frame["event"] != "room:left"]
    await scene.go_on()
    await scene.assert_nothing_leaked()
