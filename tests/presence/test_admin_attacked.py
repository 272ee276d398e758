"""The admin's pages under odd addresses and forms."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from presence.models import PresenceRecord
from realtime.redis.client import key, sync_client
from tests.operators import logged, published, texts

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("realtime_redis"),
    pytest.mark.filterwarnings("ignore:No directory at"),
]

ODD = ["a\x00b", "'; -- <script>%\ufffd", "\n", "x" * 3000, "9" * 40, "-1"]
LOOKED_AT = (
    "live/connections/{0}/",
    "live/?q={0}&room={0}&instance={0}&user={0}&after={0}",
    "live/rooms/?q={0}&p={0}",
    "live/log/?p={0}",
    "live/event/?event={0}",
    "live/instances/{0}/drain/?name={0}",
    "live/users/{0}/{0}/disconnect/",
    "live/users/hub/{0}/move/{0}/",
    "deadletter/?before={0}",
    "deadletter/{0}/",
    "availability/?q={0}&begin={0}&end={0}",
    "availability/{0}/",
    "presencerecord/?q={0}",
    "presencerecord/?user_id={0}",
    "presencerecord/?status__exact={0}",
    "presencerecord/{0}/change/",
    "presencetransition/?day={0}",
    "presencetransition/?user_id={0}&p={0}",
)
DONE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("live/instances/{0}/drain/", {}),
    ("live/instances/abc/drain/?name={0}", {}),
    ("live/users/{0}/{0}/disconnect/", {}),
    ("live/users/hub/{0}/move/{0}/", {}),
    ("live/event/", {"event": "{0}", "payload": "{0}", "rooms": "{0}"}),
    ("live/event/", {"event": "queue:new", "payload": '{{"item_id":"1","x":"{0}"}}', "rooms": "{0}"}),
    ("deadletter/resend/", {"letter": "{0}"}),
    ("deadletter/discard/", {"letter": "{0}"}),
    ("presencerecord/", {"action": "disconnect", "_selected_action": "{0}"}),
    ("presencetransition/", {"action": "{0}", "_selected_action": "{0}"}),
)


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_no_address_and_no_form_is_an_error_of_the_server(admin_client: Client, odd: str):
    for path in LOOKED_AT:
        answer = admin_client.get("/admin/presence/" + path.format(quote(odd, safe="")))
        assert answer.status_code < 500, path
        assert "<script>" not in answer.content.decode()
    for path, data in DONE:
        sent = {name: value.format(odd) for name, value in data.items()}
        answer = admin_client.post(
            "/admin/presence/" + path.format(quote(odd, safe="")), {**sent, "confirmed": "y"}
        )
        assert answer.status_code < 500, (path, sent)
    assert len(published()) == LogEntry.objects.count()


@pytest.mark.parametrize("escape", [r"\ud800", r"\u0000"])
def test_event_with_what_no_page_and_no_database_holds_is_shown_sent_and_logged(
    admin_client: Client, escape: str
):
    form = {"event": "queue:new", "payload": f'{{"item_id":"1","x":"{escape}"}}'}
    asked = admin_client.post("/admin/presence/live/event/", form)
    assert escape in asked.content.decode()
    done = admin_client.post("/admin/presence/live/event/", {**form, "confirmed": "yes"}, follow=True)
    assert texts(done) == ["The event was sent."]
    assert len(published()) == 1
    assert escape in logged()[0][1]


def test_letters_that_are_gone_are_not_said_to_be_discarded(admin_client: Client):
    fields: Any = {"reason": "x", "source": "stream", "message": "{}"}
    there = sync_client().xadd(key("dead"), fields).decode()
    data = {"letter": ["1-1", there, f"{2**64}-1"], "confirmed": "yes"}
    done = admin_client.post("/admin/presence/deadletter/discard/", data, follow=True)
    assert texts(done) == ["Discarded 1 dead letter."]
    assert logged() == [(there, "Discarded.")]
    again = admin_client.post("/admin/presence/deadletter/discard/", data, follow=True)
    assert "were gone" in texts(again)[0]
    assert len(logged()) == 1


def test_message_beyond_the_limits_is_refused_before_it_is_sent(admin_client: Client):
    fields: Any = {"reason": "too_large: x", "source": "stream", "message": "{"}
    letter = sync_client().xadd(key("dead"), fields).decode()
    for size, status in ((256 * 1024, 200), (3_000_000, 400)):
        large = {"event": "thread:message", "data": {"thread_id": "1", "message_id": "1", "body": "x" * size}}
        data = {"message": json.dumps(large), "confirmed": "yes"}
        answer = admin_client.post(f"/admin/presence/deadletter/{letter}/", data)
        assert answer.status_code == status
        if status == 200:
            assert "too_large" in answer.content.decode()
    assert published() == []


def test_address_alone_changes_nothing_even_for_those_who_may(admin_client: Client):
    fields: Any = {"reason": "x", "source": "stream", "message": '{"event":"queue:new","data":{"item_id":1}}'}
    letter = sync_client().xadd(key("dead"), fields).decode()
    for path in (
        "live/instances/abc/drain/",
        "live/users/hub/7/disconnect/",
        "live/users/hub/7/move/42/",
        "live/event/",
        "deadletter/resend/",
        "deadletter/discard/",
        f"deadletter/{letter}/",
        "presencerecord/",
    ):
        query = {"confirmed": "yes", "letter": letter, "event": "queue:new", "payload": '{"item_id":"1"}'}
        admin_client.get("/admin/presence/" + path, {**query, "message": "{}"})
    assert (published(), logged(), sync_client().xlen(key("dead"))) == ([], [], 1)


def test_action_is_for_the_rows_of_a_page(admin_client: Client):
    now = timezone.now()
    PresenceRecord.objects.bulk_create(
        PresenceRecord(namespace="hub", user_id=f"u{number}", status="online", since=now, updated=now)
        for number in range(150)
    )
    address = "/admin/presence/presencerecord/"
    page = admin_client.get(address).content.decode()
    assert "action-counter" in page
    assert "Select all 150" not in page
    of_all = {
        "action": "disconnect",
        "_selected_action": PresenceRecord.objects.latest("pk").pk,
        "select_across": "1",
    }
    assert admin_client.post(address, of_all).status_code == 400
    assert admin_client.post(address, {**of_all, "select_across": "0"}).status_code == 200
