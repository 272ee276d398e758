from __future__ import annotations

import pytest
from channels.layers import BaseChannelLayer
from hypothesis import given
from hypothesis import strategies as st

from realtime.protocol import rooms
from tests.inprocess import HUB, PORTAL
from tests.protocol.test_ids import GROUPS, IDS

NAMESPACES = st.sampled_from([HUB, PORTAL])
ROOMS = st.builds("{}:{}".format, st.sampled_from(["user", "thread"]), IDS) | st.builds(
    "presence:{}".format, GROUPS
)


def test_rooms_are_spelt_kind_and_id():
    assert rooms.user_room("7") == "user:7"
    assert rooms.thread_room("42") == "thread:42"
    assert rooms.presence_room("sales") == "presence:sales"


@given(ROOMS)
def test_kind_and_id_make_a_room(room: str):
    assert rooms.is_room(room)


@pytest.mark.parametrize(
    "name",
    [
        *("", ":", "thread", "thread:", ":42", "room:42", "Thread:42", " thread:42", "thread:42 "),
        *("thread:4 2", "thread:42\n", "thread:a:b", "thread:a/b", "thread:*", "thread:é", "thread:٤٢"),
        *("presence:", "presence:a:b", "presence:a\n", "presence:e\u0301quipe", "presence:💬", "presence:*"),
        *("thread:" + "x" * 65, "presence:" + "é" * 65),
    ],
)
def test_anything_else_is_no_room(name: str):
    assert not rooms.is_room(name)


def test_thread_of_a_thread_room_is_its_id():
    assert rooms.thread_of("thread:42") == "42"


@pytest.mark.parametrize("room", ["user:42", "presence:42"])
def test_other_rooms_have_no_thread(room: str):
    assert rooms.thread_of(room) is None


@given(NAMESPACES, ROOMS)
def test_group_of_a_room_says_which_room_it_is(namespace: str, room: str):
    assert rooms.room_of_group(rooms.group_name(namespace, room)) == room


@given(NAMESPACES, ROOMS)
def test_every_room_has_a_group_that_channel_layers_accept(namespace: str, room: str):
    assert BaseChannelLayer().require_valid_group_name(
        rooms.portable_group(rooms.group_name(namespace, room))
    )


@given(st.sets(st.tuples(NAMESPACES, ROOMS), min_size=2, max_size=2))
def test_different_rooms_have_different_groups(pair: set[tuple[str, str]]):
    groups = {rooms.group_name(namespace, room) for namespace, room in pair}
    assert len(groups) == len(set(map(rooms.portable_group, groups))) == 2


@pytest.mark.parametrize("room", ["user:7", "thread:a_B-9", "presence:sales"])
def test_group_of_a_plain_id_is_spelled_as_it_always_was(room: str):
    name = rooms.group_name(HUB, room)
    assert name == rooms.portable_group(name) == f"hub.{room.replace(':', '.')}"


def test_same_room_of_the_other_namespace_is_another_room():
    assert rooms.group_name(HUB, "user:7") != rooms.group_name(PORTAL, "user:7")


@given(NAMESPACES, ROOMS)
def test_no_room_is_the_control_group(namespace: str, room: str):
    assert rooms.CONTROL_GROUP not in {
        name := rooms.group_name(namespace, room),
        rooms.portable_group(name),
    }
