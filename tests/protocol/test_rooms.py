from __future__ import annotations

import re

import pytest
from channels.layers import BaseChannelLayer
from hypothesis import given
from hypothesis import strategies as st

from realtime.protocol import rooms
from realtime.protocol.namespaces import ID_PATTERN
from tests.inprocess import HUB, PORTAL

IDS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
ROOMS = st.builds("{}:{}".format, st.sampled_from(["user", "thread", "presence"]), IDS)


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
        *("thread:4 2", "thread:42\n", "thread:a:b", "thread:a.b", "thread:*", "thread:é", "thread:٤٢"),
        "thread:" + "x" * 65,
    ],
)
def test_anything_else_is_no_room(name: str):
    assert not rooms.is_room(name)


def test_thread_of_a_thread_room_is_its_id():
    assert rooms.thread_of("thread:42") == "42"


@pytest.mark.parametrize("room", ["user:42", "presence:42"])
def test_other_rooms_have_no_thread(room: str):
    assert rooms.thread_of(room) is None


@given(st.sampled_from([HUB, PORTAL]), ROOMS)
def test_every_room_has_a_group_name_that_channel_layers_accept(namespace: str, room: str):
    assert BaseChannelLayer().require_valid_group_name(rooms.group_name(namespace, room))


@given(st.sets(st.tuples(st.sampled_from([HUB, PORTAL]), ROOMS), min_size=2, max_size=2))
def test_different_rooms_have_different_groups(pair: set[tuple[str, str]]):
    assert len({rooms.group_name(namespace, room) for namespace, room in pair}) == 2


def test_same_room_of_the_other_namespace_is_another_room():
    assert rooms.group_name(HUB, "user:7") != rooms.group_name(PORTAL, "user:7")


@given(st.sampled_from([HUB, PORTAL]), ROOMS)
def test_no_room_is_the_control_group(namespace: str, room: str):
    assert rooms.group_name(namespace, room) != rooms.CONTROL_GROUP


@given(IDS)
def test_id_pattern_is_what_rooms_accept(value: str):
    assert re.fullmatch(ID_PATTERN, value)
