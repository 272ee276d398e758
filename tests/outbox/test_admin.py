from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from realtime.outbox import table
from realtime.outbox.models import OutboxMessage
from realtime.outbox.writing import breaker
from realtime.publisher import publish
from tests.outbox.conftest import numbers, take_first

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("realtime_redis")]
LIST = "admin:realtime_outbox_outboxmessage_changelist"


@pytest.fixture
def waiting() -> list[int]:
    """The ids of three rows that a request could not send."""
    breaker.trip()
    for number in range(3):
        publish("thread:message", {"thread_id": 42, "message_id": number, "body": "secret words"})
    return [*OutboxMessage.objects.values_list("pk", flat=True)]


@pytest.fixture
def operator(client):
    """Logs in as a member of the staff with these permissions."""

    def login(*permissions: str):
        user = User.objects.create_user("ana", is_staff=True)
        names = [f"{name}_outboxmessage" for name in permissions]
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        client.force_login(user)
        return client

    return login


def act(client, action: str, ids: list[int], **more: str):
    data = {"action": action, "_selected_action": ids, **more}
    return client.post(reverse(LIST), data, follow=True)


def test_list_shows_event_and_rooms_and_nothing_of_the_data(operator, waiting):
    page = operator("view").get(reverse(LIST)).content.decode()
    assert "thread:message" in page
    assert "thread:42" in page
    assert "secret words" not in page


def test_page_of_large_messages_reads_the_beginning_of_each_and_counts_a_bounded_number(
    operator, django_assert_max_num_queries
):
    table.insert(
        "default", b'{"event":"thread:message","data":{"x":"%s"}}' % (b"y" * 200_000), {"thread:1"}, "", 0
    )
    table.insert("default", b"no json", {"thread:1"}, "", 0)
    client = operator("view", "delete")
    with django_assert_max_num_queries(8) as queries:
        page = client.get(reverse(LIST))
    assert "thread:message" in page.content.decode()
    assert all("LIMIT 10001" in each["sql"] for each in queries.captured_queries if "COUNT(" in each["sql"])
    rows = [each["sql"] for each in queries.captured_queries if "LIMIT 100" in each["sql"]]
    assert all("""."message",""" not in each for each in rows)
    assert all("message" not in vars(row) for row in page.context["cl"].result_list)
    ids = [*OutboxMessage.objects.values_list("pk", flat=True)]
    with django_assert_max_num_queries(12):  # the names of all of them, without a query for each
        asked = act(client, "delete_selected", ids)
    assert "thread:message" in asked.content.decode()


def test_texts_are_in_the_language_of_the_reader(operator, waiting):
    client = operator("view", "send")
    page = client.get(reverse(LIST), headers={"Accept-Language": "pt-BR"}).content.decode()
    for text in (
        "mensagens da caixa de saída",
        "Enviar agora as mensagens selecionadas",
        "evento",
        "salas",
        "vence",
    ):
        assert text.lower() in page.lower(), text


def test_operator_sends_messages_now_also_those_that_a_sender_holds_back(operator, waiting):
    take_first()
    page = act(operator("view", "send"), "send_now", waiting)
    assert "Sent 3 messages." in page.content.decode()
    assert numbers() == [0, 1, 2]
    assert not OutboxMessage.objects.exists()


def test_message_is_not_sent_before_an_older_one_of_its_room(operator, waiting):
    OutboxMessage.objects.filter(pk=waiting[0]).update(claim="another", due_at="2999-01-01T00:00Z")
    page = act(operator("view", "send"), "send_now", waiting[1:])
    assert "Sent 0 messages." in page.content.decode()
    assert numbers() == []


def test_redis_that_is_away_is_said(operator, waiting, settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis://127.0.0.1:1/0"}
    page = act(operator("view", "send"), "send_now", waiting)
    assert "Nothing was sent" in page.content.decode()
    assert OutboxMessage.objects.count() == 3


def test_operator_drops_messages(operator, waiting):
    act(operator("view", "delete"), "delete_selected", waiting[:1], post="yes")
    assert OutboxMessage.objects.count() == 2


@pytest.mark.parametrize("action", ["send_now", "delete_selected"])
def test_action_needs_its_permission(operator, waiting, action: str):
    act(operator("view"), action, waiting, post="yes")
    assert OutboxMessage.objects.count() == 3
    assert numbers() == []


def test_nothing_is_added_or_changed(admin_client, waiting):
    assert admin_client.get(reverse("admin:realtime_outbox_outboxmessage_add")).status_code == 403
    url = reverse("admin:realtime_outbox_outboxmessage_change", args=waiting[:1])
    page = admin_client.get(url)
    assert "secret words" not in page.content.decode()
    assert admin_client.post(url, {"rooms": "x"}).status_code == 403


class ReadFromReplica:
    """Reads of the outbox go to a database that takes no writes; here it is not even there."""

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return "replica" if model is OutboxMessage else None


def test_admin_reads_and_sends_what_the_primary_has(operator, waiting, settings):
    client = operator("view", "send")
    settings.DATABASE_ROUTERS = [ReadFromReplica()]
    act(client, "send_now", waiting)
    assert not OutboxMessage.objects.using("default").exists()


@pytest.mark.parametrize("action", ["send_now", "delete_selected"])
def test_action_is_for_the_rows_of_a_page(operator, waiting, action: str):
    client = operator("view", "send", "delete")
    assert "action-counter" in client.get(reverse(LIST)).content.decode()
    assert act(client, action, waiting[:1], select_across="1", post="yes").status_code == 400
    assert [*OutboxMessage.objects.values_list("pk", flat=True)] == waiting
