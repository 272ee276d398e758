"""What each user of the demo's desk sees, and what their token says."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from demo.models import Message
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from tests.demo.people import CONVERSATIONS, Person, token_of

# The demo is only routed while DEBUG is on, which pytest-django turns off.
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("demo.urls"),
    pytest.mark.usefixtures("realtime_redis", "patient_outbox"),
]


def test_attendant_sees_the_queue_and_their_own_chats(ana: Person, bia: Person, carla: Person, dora: Person):
    first, second = carla.opens(), dora.opens()
    assert ana.sees() == bia.sees() == [first, second]
    ana.post(f"{first}/take/")
    assert ana.sees() == [first, second]
    assert bia.sees() == [second]
    ana.post(f"{first}/end/")
    assert ana.sees() == [second]


def test_conversation_comes_with_its_messages_in_order(ana: Person, carla: Person):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    for person, body in ((carla, "Hello?"), (ana, "Hello."), (carla, "My invoice…")):
        person.post(f"{thread}/messages/", body=body)
    found = carla.get(f"{thread}/").json()
    assert found["status"] == "open"
    assert [(message["author"]["user_id"], message["body"]) for message in found["messages"]] == [
        (carla.id, "My invoice"),
        (ana.id, "Ana Lima joined the chat."),
        (carla.id, "Hello?"),
        (ana.id, "Hello."),
        (carla.id, "My invoice…"),
    ]


def test_customer_neither_reads_nor_writes_what_belongs_to_another(ana: Person, carla: Person, dora: Person):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    assert dora.sees() == []
    assert dora.get(f"{thread}/").status_code == 404
    assert dora.post(f"{thread}/messages/", body="Hello?").status_code == 404
    assert dora.post(f"{thread}/end/").status_code == 404
    assert not Message.objects.filter(author=dora.user).exists()


def test_attendant_reads_but_does_not_write_in_the_chat_of_another(ana: Person, bia: Person, carla: Person):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    assert bia.get(f"{thread}/").status_code == 200
    assert bia.post(f"{thread}/messages/", body="Hello?").status_code == 403
    assert bia.post(f"{thread}/end/").status_code == 403
    assert bia.post(f"{thread}/transfer/", attendant_id=bia.id).status_code == 403


def test_roles_do_not_do_each_others_work(ana: Person, carla: Person):
    assert ana.post("", topic="My invoice").status_code == 403
    answer = carla.post(f"{carla.opens()}/take/")
    assert answer.status_code == 403
    assert answer.json() == {"detail": "Only attendants take chats."}


def test_user_without_a_good_token_does_not_get_in(ana: Person):
    stranger = APIClient()
    assert stranger.get(CONVERSATIONS).status_code == 401
    for token in (
        "nonsense",
        issue(user_id="stranger", role="customer"),
        issue(user_id="999999", role="customer"),
        issue(user_id="9" * 60, role="customer"),
        issue(user_id=ana.id, role="attendant", ttl=-1),
    ):
        stranger.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
        assert stranger.get(CONVERSATIONS).status_code == 401


def test_token_names_the_customers_open_chats_and_no_other(ana: Person, carla: Person, dora: Person):
    thread, _ = carla.opens(), dora.opens()
    ana.post(f"{thread}/take/")
    assert verify(token_of(carla.user)).threads == {thread}
    assert verify(token_of(dora.user)).threads == set(), "hers still waits"
    assert verify(token_of(ana.user)).threads == set()
    answer = APIClient().post("/demo/token/", {"username": "carla", "password": "demo"}, format="json")
    assert verify(answer.json()["access"]).threads == {thread}
