from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from presence import store
from presence.admin.display import readable
from presence.models import PresenceGroup, PresenceRecord, PresenceTransition
from tests.inprocess import HUB
from tests.operators import operator, published, texts

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("realtime_redis"),
    # WhiteNoise, about STATIC_ROOT before the first `collectstatic`.
    pytest.mark.filterwarnings("ignore:No directory at"),
]

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
RECORDS = "admin:presence_presencerecord_changelist"
HISTORY = "admin:presence_presencetransition_changelist"


def make_record(user_id: str = "7", *groups: str, **values: Any) -> PresenceRecord:
    defaults = {"namespace": "hub", "name": f"Name {user_id}", "status": "online"}
    record = PresenceRecord.objects.create(
        user_id=user_id, since=START, updated=START, **{**defaults, **values}
    )
    record.groups.set([PresenceGroup.objects.get_or_create(name=name)[0] for name in groups])
    return record


def make_transition(user_id: str = "7", *groups: str, **values: Any) -> PresenceTransition:
    defaults: dict[str, Any] = {
        "namespace": "hub",
        "name": f"Name {user_id}",
        "from_status": "offline",
        "to_status": "online",
        "reason": "connect",
        "at": START,
        "duration": timedelta(seconds=90),
        "entry_id": f"{PresenceTransition.objects.count() + 1}-0",
    }
    transition = PresenceTransition.objects.create(user_id=user_id, **{**defaults, **values})
    transition.groups.set([PresenceGroup.objects.get_or_create(name=name)[0] for name in groups])
    return transition


def go_online(user_id: str) -> None:
    who = {"connection": f"tab-{user_id}", "user": user_id, "name": "x", "groups": []}
    store.apply_sync(HUB, [{"does": "connect", **who}])


def rows(response: Any) -> list[Any]:
    return list(response.context["cl"].result_list)


def users(response: Any) -> set[str]:
    return {row.user_id for row in rows(response)}


@pytest.fixture
def redis_calls(monkeypatch) -> list[str]:
    """Every round trip of the synchronous client."""
    calls: list[str] = []

    def counted(kind: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(kind, name)

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return original(self, *arguments, **options)

        monkeypatch.setattr(kind, name, call)

    counted(redis.client.Pipeline, "execute")
    counted(redis.Redis, "execute_command")
    return calls


# --- Records ---------------------------------------------------------------------------------------


def test_records_show_what_was_recorded_and_what_redis_says_beside_it(admin_client: Client):
    go_online("7")
    make_record("7", "sales", "attendants")
    make_record("8")
    make_record("9", namespace="portal")
    response = admin_client.get(reverse(RECORDS))
    assert {row.user_id: row.live for row in rows(response)} == {
        "7": "online",
        "8": "offline",
        "9": "unknown",
    }
    page = response.content.decode()
    assert "attendants, sales" in page
    assert "2026-03-01 09:00:00" in page


def test_queries_and_redis_calls_do_not_grow_with_the_rows(admin_client: Client, redis_calls: list[str]):
    def cost(url: str) -> tuple[int, list[str]]:
        redis_calls.clear()
        with CaptureQueriesContext(
            connection,
        ) as queries:
            response = admin_client.get(url)
        assert len(rows(response)) == PresenceRecord.objects.count()
        return len(queries), [*redis_calls]

    for number in range(5):
        make_record(f"u{number}", f"g{number % 3}", "attendants")
        make_transition(f"u{number}", f"g{number % 3}", "attendants")
    admin_client.get(reverse(RECORDS))  # what is read once per process
    few = cost(reverse(RECORDS)), cost(reverse(HISTORY))
    for number in range(5, 50):
        make_record(f"u{number}", f"g{number % 3}", "attendants")
        make_transition(f"u{number}", f"g{number % 3}", "attendants")
    many = cost(reverse(RECORDS)), cost(reverse(HISTORY))
    assert many == few
    assert many[0][1] == ["execute_command"]
    assert many[1][1] == []


def test_empty_list_does_not_ask_redis(admin_client: Client, redis_calls: list[str]):
    admin_client.get(reverse(RECORDS))
    assert redis_calls == []


@pytest.mark.usefixtures("without_redis")
def test_list_and_page_say_unknown_while_redis_is_down(admin_client: Client):
    record = make_record()
    for url in (reverse(RECORDS), reverse("admin:presence_presencerecord_change", args=[record.pk])):
        response = admin_client.get(url)
        assert response.status_code == 200
        assert "unknown" in response.content.decode()
        assert [str(message) for message in response.context["messages"]] == [
            "Redis does not answer: who is online right now is unknown."
        ]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "u1"}, {"u1"}),
        ({"q": "berta"}, {"u2"}),
        ({"status__exact": "away"}, {"u2"}),
        ({"groups__name__exact": "sales"}, {"u1", "u2"}),
        ({"groups__name__exact": "sales", "status__exact": "online"}, {"u1"}),
    ],
)
def test_records_are_found_by_user_name_status_and_group(
    admin_client: Client, query: dict[str, str], found: set[str]
):
    make_record("u1", "sales", "attendants")
    make_record("u2", "sales", name="Berta", status="away")
    make_record("u3", "attendants", status="offline")
    assert users(admin_client.get(reverse(RECORDS), query)) == found


def test_records_can_be_ordered_by_user(admin_client: Client):
    for user_id in ("b", "c", "a"):
        make_record(user_id)
    ordered = rows(admin_client.get(reverse(RECORDS), {"o": "1"}))
    assert [row.user_id for row in ordered] == ["a", "b", "c"]


def test_a_records_page_shows_the_live_status_and_the_users_latest_changes(admin_client: Client):
    go_online("7")
    record = make_record("7", "sales")
    make_transition("7", reason="heartbeat", duration=timedelta(seconds=3900))
    make_transition("8", reason="lease")
    response = admin_client.get(reverse("admin:presence_presencerecord_change", args=[record.pk]))
    page = response.content.decode()
    assert response.context["original"].live == "online"
    assert "heartbeat again" in page
    assert "1 h 5 min" in page
    assert "instance died" not in page
    all_of_them = admin_client.get(response.context["history_url"])
    assert users(all_of_them) == {"7"}


def test_a_records_page_without_history_says_so_and_hides_it_from_operators_who_may_not_see_it(
    client: Client,
):
    record = make_record()
    url = reverse("admin:presence_presencerecord_change", args=[record.pk])
    user = operator(client, "view_presencerecord")
    assert "Latest changes" not in client.get(url).content.decode()
    user.user_permissions.add(Permission.objects.get(codename="view_presencetransition"))
    assert "No changes are recorded." in client.get(url).content.decode()


# --- History ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "u1"}, {"u1"}),
        ({"q": "berta"}, {"u2"}),
        ({"to_status__exact": "away"}, {"u2"}),
        ({"reason__exact": "timeout"}, {"u2"}),
        ({"groups__name__exact": "sales"}, {"u1", "u2"}),
        ({"at__year": "2026", "at__month": "4"}, {"u3"}),
    ],
)
def test_history_is_found_by_user_status_reason_group_and_date(
    admin_client: Client, query: dict[str, str], found: set[str]
):
    make_transition("u1", "sales")
    make_transition("u2", "sales", name="Berta", to_status="away", reason="timeout")
    make_transition("u3", "attendants", at=START + timedelta(days=40))
    assert users(admin_client.get(reverse(HISTORY), query)) == found


@pytest.mark.parametrize(
    "query",
    [
        {"at__year": "9999", "at__month": "12", "at__day": "31"},
        {"at__year": "9999", "at__month": "12"},
        {"at__year": "9999"},
        {"at__year": "1", "at__month": "1", "at__day": "1"},
        {"at__year": "0"},
        {"at__year": "9" * 5000},
        {"at__gte": "9999-12-31", "at__lt": "0001-01-01"},
    ],
    ids=lambda query: "-".join(query.values())[:12],
)
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Sao_Paulo"])
def test_days_at_the_ends_of_the_calendar_are_wrong_parameters_and_no_error(
    admin_client: Client, settings, query: dict[str, str], zone: str
):
    settings.TIME_ZONE = zone
    make_transition("u1", "sales")
    assert admin_client.get(reverse(HISTORY), query, follow=True).status_code == 200


def test_history_shows_the_newest_first_with_its_duration(admin_client: Client):
    make_transition("old", duration=None)
    make_transition("new", at=START + timedelta(hours=1))
    response = admin_client.get(reverse(HISTORY))
    assert [row.user_id for row in rows(response)] == ["new", "old"]
    assert "1 min 30 s" in response.content.decode()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (2.54, "2.5 s"),
        (9, "9 s"),
        (59.94, "59 s"),
        (60, "1 min 0 s"),
        (3599.99, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_duration_reads_as_its_two_largest_units(seconds: float | None, text: str):
    assert readable(None if seconds is None else timedelta(seconds=seconds)) == text


def test_neither_can_be_added_changed_or_deleted(admin_client: Client):
    record, transition = make_record(), make_transition()
    for row in (record, transition):
        name = f"admin:presence_{type(row).__name__.lower()}"
        assert admin_client.get(reverse(f"{name}_add")).status_code == 403
        assert admin_client.post(reverse(f"{name}_delete", args=[row.pk])).status_code == 403
        assert admin_client.post(reverse(f"{name}_change", args=[row.pk]), {"name": "x"}).status_code == 403
        assert admin_client.get(reverse(f"{name}_change", args=[row.pk])).status_code == 200
        assert "delete_selected" not in admin_client.get(reverse(f"{name}_changelist")).content.decode()


# --- Disconnect ------------------------------------------------------------------------------------


def disconnect(client: Client, *records: PresenceRecord, **more: str) -> Any:
    data = {"action": "disconnect", "_selected_action": [record.pk for record in records]}
    return client.post(reverse(RECORDS), {**data, **(more or {"confirmed": "yes"})}, follow=True)


def test_disconnect_is_published_for_every_selected_user_and_leaves_a_log_entry(
    client: Client, django_capture_on_commit_callbacks
):
    user = operator(client, "view_presencerecord", "disconnect_presencerecord")
    first, second, _ = make_record("7"), make_record("8", namespace="portal"), make_record("9")
    with django_capture_on_commit_callbacks(execute=True):
        response = disconnect(client, first, second)
    assert published() == [
        ("user:disconnect", {"user_id": "8", "namespace": "portal"}),
        ("user:disconnect", {"user_id": "7", "namespace": "hub"}),
    ]
    assert texts(response) == ["Disconnected 2 users."]
    entries = LogEntry.objects.values_list("user_id", "object_id", "change_message")
    assert set(entries) == {
        (user.pk, str(first.pk), "Disconnected."),
        (user.pk, str(second.pk), "Disconnected."),
    }


def test_disconnect_asks_first_and_names_all_users_it_would_concern(admin_client: Client):
    response = disconnect(admin_client, make_record("7"), make_record("8"), confirmed_not="")
    page = response.content.decode()
    assert "these 2 users" in page
    assert "Name 7 (hub)" in page
    assert "Name 8 (hub)" in page
    assert published() == []
    assert not LogEntry.objects.exists()


def test_disconnect_needs_its_own_permission(client: Client):
    operator(client, "view_presencerecord", "view_presencetransition")
    record = make_record()
    assert "Disconnect user" not in client.get(reverse(RECORDS)).content.decode()
    disconnect(client, record)
    assert published() == []
    assert not LogEntry.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("without_redis", "without_outbox")
def test_disconnect_while_redis_is_down_is_said_and_leaves_no_log_entry(admin_client: Client):
    response = disconnect(admin_client, make_record())
    assert "Redis does not answer: not all users were disconnected." in texts(response)
    assert not any(text.startswith("Disconnected") for text in texts(response))
    assert not LogEntry.objects.exists()
