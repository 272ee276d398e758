from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presence import events
from presence.events import PresenceSet, announcements, parse_transition, set_presence, tell_instances
from presence.operations import Presentee
from presence.tracker import PresenceTracker
from realtime.auth import revocation
from realtime.conf import conf
from realtime.protocol.bus_message import InvalidMessage
from realtime.protocol.catalogue import BusContext, catalogue
from realtime.protocol.payloads import Id
from tests.inprocess import HUB, data_of

from .world import World

TRANSITION = {
    "user_id": "7",
    "namespace": "hub",
    "from": "online",
    "to": "away",
    "reason": "timeout",
    "at": "2024-02-29T12:00:00.250Z",
    "name": "Ana",
    "groups": ["attendants", "sales"],
}


def encoded(**changes: Any) -> bytes:
    return json.dumps({**TRANSITION, **changes}).encode()


# --- Reading the stream ------------------------------------------------------------------------------


def test_transition_is_typed():
    transition = parse_transition(encoded())
    assert (transition.user_id, transition.from_status, transition.to_status) == ("7", "online", "away")
    assert transition.at == datetime.fromisoformat("2024-02-29T12:00:00.250+00:00")
    assert not transition.is_regrouping


def test_fields_added_later_do_not_matter():
    assert parse_transition(encoded(new_field=1)).user_id == "7"


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": "a b"},
        {"user_id": None},
        {"from": "asleep"},
        {"to": "busy"},
        {"at": "yesterday"},
        {"at": 5},
        {"name": None},
        {"groups": "attendants"},
        {"groups": {}},
        {"reason": "x" * 33},
    ],
    ids=repr,
)
def test_what_is_no_transition_is_refused(changes: dict[str, Any]):
    with pytest.raises(InvalidMessage, match="invalid_transition"):
        parse_transition(encoded(**changes))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(raw: bytes):
    with pytest.raises(InvalidMessage):
        announcements(raw)


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_and_no_worse(raw: bytes):
    with pytest.raises(InvalidMessage):
        parse_transition(raw)


# --- Telling the groups ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["online", "away", "offline"])
def test_change_is_told_to_every_group_of_the_user(status: str):
    before = "away" if status == "online" else "online"
    (delivery,) = announcements(encoded(**{"from": before, "to": status}))
    assert delivery.event == f"attendant:{status}"
    assert set(delivery.targets) == {("hub", "presence:attendants"), ("hub", "presence:sales")}
    assert data_of(delivery) == {
        "user_id": "7",
        "name": "Ana",
        "status": status,
        "since": "2024-02-29T12:00:00.250Z",
    }


def test_change_of_a_user_without_groups_is_not_told():
    (delivery,) = announcements(encoded(groups=[]))
    assert delivery.targets == ()


def test_group_gained_hears_of_the_user_as_it_is_and_group_lost_that_it_is_offline():
    gained, lost = announcements(
        encoded(
            **{"from": "away", "to": "away"},
            since="2024-02-29T11:00:00.000Z",
            gained=["vip"],
            lost=["sales"],
        )
    )
    assert (gained.event, gained.targets) == ("attendant:away", (("hub", "presence:vip"),))
    assert data_of(gained)["since"] == "2024-02-29T11:00:00.000Z"
    assert (lost.event, lost.targets) == ("attendant:offline", (("hub", "presence:sales"),))
    assert data_of(lost)["since"] == "2024-02-29T12:00:00.250Z"


def test_regrouping_without_since_counts_from_the_regrouping():
    gained, _ = announcements(encoded(**{"from": "away", "to": "away"}, gained=["vip"]))
    assert data_of(gained)["since"] == "2024-02-29T12:00:00.250Z"


@pytest.mark.usefixtures("realtime_redis")
def test_another_namespace_has_keys_transitions_and_rooms_of_its_own(settings):
    paths = [*conf().namespaces, "tests.ops.namespace.OPS"]
    settings.REALTIME = {**settings.REALTIME, "NAMESPACES": paths}
    hub, ops = World(HUB), World("ops")
    assert ops.base == f"{hub.base}:ops"
    ops.connect()
    assert (ops.status(), hub.status()) == ("online", None)
    (transition,) = ops.transitions()
    (delivery,) = announcements(json.dumps(transition).encode())
    assert (delivery.event, delivery.targets) == ("attendant:online", (("ops", "presence:attendants"),))
    ops.silence()
    assert ops.news() == [("online", "away", "timeout")]


def test_announcement_has_the_data_the_catalogue_promises():
    (delivery,) = announcements(encoded())
    msgspec.convert(data_of(delivery), catalogue().server[delivery.event].payload, dec_hook=lambda k, v: k(v))


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({"reason": "timeout"}, [False]),
        ({"reason": "chosen"}, [True]),
        ({"reason": "bus"}, [True]),
        ({"to": "offline", "reason": "logout"}, [False]),
        ({"from": "away", "gained": ["vip"]}, []),
    ],
    ids=repr,
)
async def test_instances_are_signalled_a_change_of_status_and_whether_it_was_chosen(
    changes: dict[str, Any], chosen: list[bool], monkeypatch
):
    broadcast = AsyncMock()
    monkeypatch.setattr(events, "broadcast", broadcast)
    (first, *_) = announcements(encoded(**changes))
    await tell_instances(first.payload, BusContext(at=0.0, order=""))
    signals = [call.args[0] for call in broadcast.await_args_list]
    assert [(signal.namespace, signal.chosen) for signal in signals] == [("hub", each) for each in chosen]


# --- Status set over the bus -------------------------------------------------------------------------


async def test_status_that_is_set_again_after_the_user_logged_out_and_came_back_is_not_set(process: str):
    world, tracker = World(), PresenceTracker.current(HUB)
    await tracker.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    at = int(await revocation.now() * 1000) - 1
    await tracker.logout("tab-1")
    await tracker.connect(Presentee("tab-2", "ana", "Ana", ("attendants",)))
    context = BusContext(at=at / 1000, order=f"{at:020d}-{0:020d}")
    await set_presence(PresenceSet(user_id=Id("ana"), status="away"), context)
    assert world.status() == "online"
