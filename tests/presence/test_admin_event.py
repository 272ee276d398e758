"""An event that an operator sends to try something out."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal
from unittest.mock import Mock

import msgspec
import pytest
from django.test import Client
from django.urls import reverse
from msgspec import Meta
from redis.exceptions import RedisError

from presence.admin.samples import sample
from realtime.protocol.payloads import Payload, parse_payload
from realtime.survey import ask as asking
from tests.operators import logged, published, text_of
from tests.presence.support import EVENT, PUBLISHES, System, person
from tests.survey.test_messages import Connection, Principal

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("realtime_redis"),
    pytest.mark.filterwarnings("ignore:No directory at"),
]

MESSAGE = {"event": "thread:message", "payload": '{"thread_id": "42", "message_id": "1"}', "rooms": ""}


@PUBLISHES
def test_event_is_shown_with_where_it_goes_before_it_is_sent(admin_client: Client, system: System):
    system.hold("one", person(1))
    system.hold("two", Connection("c2", ("portal", "9"), Principal("Carla"), 1.0, {"thread:42": 1}))
    page = admin_client.post(reverse(EVENT), MESSAGE).content.decode()
    assert "hub thread:42, portal thread:42" in page
    assert "<dd>2</dd>" in page
    assert (published(), logged()) == ([], [])
    done = admin_client.post(reverse(EVENT), {**MESSAGE, "confirmed": "yes"})
    assert done.status_code == 302
    assert published() == [("thread:message", {"thread_id": "42", "message_id": "1"})]
    assert logged() == [
        (
            "thread:message",
            'Sent: hub thread:42, portal thread:42: {"thread_id": "42", "message_id": "1"}',
        )
    ]


def test_event_is_filled_in_with_what_it_needs_and_is_valid_as_it_is(admin_client: Client, system: System):
    first = admin_client.get(reverse(EVENT))
    names = [name for name, _ in first.context["form"].fields["event"].choices]
    assert {"thread:message", "chat:ended", "queue:updated"} <= {*names}
    assert '{ "thread_id": "1", "message_id": "1" }' in text_of(
        admin_client.get(reverse(EVENT), {"event": "thread:message"})
    )
    for name in names:
        page = admin_client.get(reverse(EVENT), {"event": name})
        filled = page.context["form"].initial
        assert filled["event"] == name
        asked = admin_client.post(reverse(EVENT), {**filled, "rooms": ""})
        assert "Connections there now" in text_of(asked), name
    assert admin_client.get(reverse(EVENT), {"event": "nope"}).context["form"].initial["event"] == names[0]


class Priced(Payload, frozen=True, kw_only=True):
    status: Literal["open", "closed"]
    total: Decimal
    at: datetime
    parts: tuple[int, str]
    lines: Annotated[list[str], Meta(min_length=2)]
    rating: Annotated[int, Meta(ge=3, le=5)]
    code: Annotated[str, Meta(min_length=6)]
    share: float
    parent: Priced | None
    position: msgspec.Raw
    note: str = ""


def test_sample_fits_the_types_of_a_product(settings):
    filled = sample(Priced)
    parse_payload(Priced, filled.encode())
    assert "note" not in json.loads(filled)


def test_event_can_go_to_other_rooms(admin_client: Client, system: System):
    page = admin_client.post(reverse(EVENT), {**MESSAGE, "rooms": "thread:1, user:7"}).content.decode()
    assert "hub thread:1, portal thread:1, hub user:7, portal user:7" in page
    rooms = "presence:E\u0301quipe Sa\u0303o Paulo, presence:sales user:ana@example.com"
    queue = {"event": "queue:updated", "payload": "{}", "rooms": rooms}
    page = admin_client.post(reverse(EVENT), queue).content.decode()
    assert "hub presence:Équipe São Paulo, hub presence:sales, hub user:ana@example.com" in page


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"payload": "{"}, "This is not JSON"),
        ({"payload": "[]"}, "Expected a JSON object."),
        ({"payload": "{}"}, "thread_id: required"),
        ({"payload": "[" * 5000}, "This is not JSON"),
        (
            {"payload": '{"thread_id": "1", "message_id": "1", "x": %s}' % ("[" * 500 + "]" * 500)},
            "levels deep",
        ),
        ({"payload": '{"thread_id": "1", "message_id": "1", "x": [NaN]}'}, "data.x[0]: JSON has neither NaN"),
        ({"rooms": "nonsense"}, "is not a room"),
        ({"event": "thread:typing"}, "Select a valid choice"),
        ({"event": "user:disconnect"}, "Select a valid choice"),
    ],
)
def test_event_that_is_not_valid_is_not_sent(
    admin_client: Client, system: System, changed: dict[str, str], said: str
):
    page = admin_client.post(reverse(EVENT), {**MESSAGE, **changed, "confirmed": "yes"})
    assert page.status_code == 200
    assert said in page.content.decode()
    assert (published(), logged()) == ([], [])


def test_audience_that_cannot_be_counted_keeps_no_operator_from_looking(admin_client: Client, monkeypatch):
    monkeypatch.setattr(asking, "ask", Mock(side_effect=RedisError))
    assert "<dd>–</dd>" in admin_client.post(reverse(EVENT), MESSAGE).content.decode()
