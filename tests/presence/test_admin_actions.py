"""What an operator may and does in the live view, and what is written down of it."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from presence.admin import live
from realtime.outbox.models import OutboxMessage
from tests.operators import logged, operator, published, texts
from tests.presence.support import (
    CONNECTIONS,
    DISCONNECT,
    DRAIN,
    EVENT,
    INSTANCES,
    LOG,
    MOVE,
    PUBLISHES,
    ROOMS,
    System,
    person,
)

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("realtime_redis"),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


# --- What an operator may ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "permission"),
    [
        (CONNECTIONS, (), "view_live"),
        ("admin:presence_live_connection", ("c1",), "view_live"),
        (INSTANCES, (), "view_live"),
        (ROOMS, (), "view_live"),
        (LOG, (), "view_live"),
        (EVENT, (), "publish_live"),
        (DISCONNECT[0], DISCONNECT[1:], "disconnect_presencerecord"),
        (MOVE[0], MOVE[1:], "move_live"),
        (DRAIN[0], DRAIN[1:], "drain_live"),
    ],
)
def test_each_page_wants_its_own_permission(
    client: Client, system: System, name: str, arguments: tuple[str, ...], permission: str
):
    system.hold("one", person(1))
    everything = {"view_live", "publish_live", "move_live", "drain_live", "disconnect_presencerecord"}
    url = reverse(name, args=arguments)
    operator(client, *(everything - {permission}))
    for method in (client.get, client.post):
        assert method(url, {"confirmed": "yes"}).status_code == 403
    assert published() == []
    client.logout()
    assert client.get(url).status_code == 302
    operator(client, permission)
    assert client.get(url).status_code == 200


def test_who_may_only_look_is_offered_nothing_to_do(client: Client, system: System):
    system.hold("one", person(1))
    operator(client, "view_live")
    for url in (
        reverse(CONNECTIONS),
        reverse(INSTANCES),
        reverse("admin:presence_live_connection", args=["c1"]),
    ):
        page = client.get(url).content.decode()
        for name in (DISCONNECT, MOVE, DRAIN, (EVENT,)):
            assert reverse(name[0], args=name[1:]) not in page


def test_index_links_to_the_live_view_for_operators_who_may_see_it(client: Client):
    operator(client, "view_live")
    page = client.get(reverse("admin:index")).content.decode()
    assert reverse(CONNECTIONS) in page
    assert reverse("admin:presence_deadletter_changelist") not in page


# --- What an operator does -----------------------------------------------------------------------------


ACTIONS = [
    (DISCONNECT, ("user:disconnect", {"user_id": "7", "namespace": "hub"}), ("hub user:7", "Disconnected.")),
    (
        MOVE,
        ("room:expel", {"user_id": "7", "namespace": "hub", "room": "thread:42"}),
        ("hub user:7", "Taken out: thread:42"),
    ),
    (
        (MOVE[0], "portal", "7", "42"),
        ("room:revoke", {"user_id": "7", "namespace": "portal", "room": "thread:42"}),
        ("portal user:7", "Taken out: thread:42"),
    ),
    (DRAIN, ("instance:drain", {"instance": "one"}), ("instance one", "Drained: one")),
]


@PUBLISHES
@pytest.mark.parametrize(("action", "event", "entry"), ACTIONS)
def test_action_is_asked_for_then_done_and_written_down(
    admin_client: Client, action: tuple[str, ...], event: Any, entry: Any
):
    url = reverse(action[0], args=action[1:])
    for asked in (admin_client.get(url), admin_client.get(url, {"confirmed": "yes"}), admin_client.post(url)):
        assert asked.status_code == 200
        assert "csrfmiddlewaretoken" in asked.content.decode()
    assert (published(), logged()) == ([], [])
    done = admin_client.post(url, {"confirmed": "yes"})
    assert done.status_code == 302
    assert published() == [event]
    assert logged() == [entry]


@pytest.mark.parametrize("action", [action for action, _, _ in ACTIONS])
def test_no_other_site_can_have_it_done(client: Client, action: tuple[str, ...]):
    strict = Client(enforce_csrf_checks=True)
    operator(strict, "view_live", "move_live", "drain_live", "disconnect_presencerecord")
    assert strict.post(reverse(action[0], args=action[1:]), {"confirmed": "yes"}).status_code == 403
    assert (published(), logged()) == ([], [])


@PUBLISHES
@pytest.mark.usefixtures("without_redis", "without_outbox")
@pytest.mark.parametrize("action", [action for action, _, _ in ACTIONS])
def test_action_that_failed_is_said_and_not_written_down(admin_client: Client, action: tuple[str, ...]):
    done = admin_client.post(reverse(action[0], args=action[1:]), {"confirmed": "yes"}, follow=True)
    assert "Redis does not answer: nothing was done." in texts(done)
    assert logged() == []


@PUBLISHES
@pytest.mark.usefixtures("without_redis")
@pytest.mark.parametrize("action", [action for action, _, _ in ACTIONS])
def test_action_is_kept_in_the_outbox_while_redis_is_away(admin_client: Client, action: tuple[str, ...]):
    admin_client.post(reverse(action[0], args=action[1:]), {"confirmed": "yes"}, follow=True)
    assert OutboxMessage.objects.count() == 1
    assert len(logged()) == 1


@PUBLISHES
def test_action_on_what_cannot_be_is_refused(admin_client: Client, system: System):
    for name, arguments in (
        (DISCONNECT[0], ("nowhere", "7")),
        (DISCONNECT[0], ("hub", "a b")),
        (DRAIN[0], ("a b",)),
    ):
        done = admin_client.post(reverse(name, args=arguments), {"confirmed": "yes"}, follow=True)
        assert len(texts(done)) == 1, name
        assert "invalid_payload" in texts(done)[0]
    for where in (("nowhere", "7", "42"), ("hub", "7", "*"), ("hub", "7", "user:7"), ("hub", "7", "board:7")):
        assert admin_client.get(reverse(MOVE[0], args=where)).status_code == 404
    assert (published(), logged()) == ([], [])


def test_drained_instance_is_named_in_the_log(admin_client: Client):
    url = reverse(DRAIN[0], args=DRAIN[1:])
    admin_client.post(f"{url}?name=pod-a:11", {"confirmed": "yes"})
    assert logged() == [("instance pod-a:11", "Drained: one")]


# --- Log ---------------------------------------------------------------------------------------------


def test_log_says_who_did_what_newest_first(admin_client: Client, admin_user: Any, monkeypatch):
    assert "There are no actions yet." in admin_client.get(reverse(LOG)).content.decode()
    monkeypatch.setattr(live, "PAGE", 2)
    for user in ("ana", "bia", "cleo"):
        admin_client.post(reverse(DISCONNECT[0], args=["hub", user]), {"confirmed": "yes"})
    page = admin_client.get(reverse(LOG))
    assert [entry.object_repr for _, entry, _ in page.context["rows"]] == ["hub user:cleo", "hub user:bia"]
    assert admin_user.username in page.content.decode()
    last = admin_client.get(reverse(LOG) + page.context["next"])
    assert [entry.object_repr for _, entry, _ in last.context["rows"]] == ["hub user:ana"]
