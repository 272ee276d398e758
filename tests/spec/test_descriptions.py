"""What an event is for, and its rooms, in words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from realtime.protocol.catalogue import ServerEvent
from realtime.protocol.payloads import Id, Payload
from realtime.protocol.rooms import presence_room, thread_room
from realtime.spec.descriptions import default_rooms, summary


class Part(msgspec.Struct):
    part_id: Id


class Changed(Payload, frozen=True):
    thread_id: Id
    part: Part
    watcher_ids: list[Id]
    by_id: dict[Id, int]
    count: int


@pytest.mark.parametrize(
    ("rooms", "text"),
    [
        (None, "–"),
        (lambda payload: [thread_room(payload.thread_id)], "`thread:{thread_id}`"),
        (lambda payload: [f"board:{payload.part.part_id}"], "`board:{part.part_id}`"),
        (lambda payload: [f"user:{id}" for id in payload.watcher_ids], "`user:{watcher_ids}`"),
        (lambda payload: [f"user:{id}" for id in payload.by_id.values()], "`user:{by_id.values}`"),
        (lambda payload: [presence_room("sales")], "`presence:sales`"),
        (lambda payload: [(frozenset({"hub"}), "user:7")], "`user:7` (hub)"),
        (lambda payload: [f"board:{payload.count % 7 + 1}"], "by its data"),
    ],
    ids=["none", "field", "part", "list", "keys", "constant", "audience", "computed"],
)
def test_rooms_are_named_by_the_fields_that_they_come_from(rooms: Any, text: str):
    both = frozenset({"hub", "portal"})
    event = ServerEvent("order:changed", Changed, both, both, rooms, bus=True)
    assert default_rooms(event) == text


class Silent(Payload, frozen=True):
    count: int


class Told(Payload, frozen=True):
    """What

    happened.
    """


def test_docstring_of_a_base_class_is_not_that_of_an_event():
    assert summary(Silent) == ""
    assert summary(Told) == "What happened."
