"""What users of the demo's desk can do with a chat, and what they cannot."""

from __future__ import annotations

import pytest
from django.core.exceptions import PermissionDenied

from demo import desk
from demo.models import Conversation, Status
from tests.demo.people import CONVERSATIONS, Person, bodies, published

# The demo is only routed while DEBUG is on, which pytest-django turns off.
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("demo.urls"),
    pytest.mark.usefixtures("realtime_redis", "patient_outbox"),
]


def test_chat_is_taken_once(ana: Person, bia: Person, carla: Person):
    thread = carla.opens()
    assert ana.post(f"{thread}/take/").status_code == 200
    answer = bia.post(f"{thread}/take/")
    assert answer.status_code == 409
    assert answer.json() == {"detail": "This chat is not waiting."}
    assert Conversation.objects.get().attendant == ana.user


def test_attendant_who_saw_a_chat_waiting_loses_it_to_one_who_was_quicker(
    ana: Person, bia: Person, carla: Person
):
    carla.opens()
    seen_by_bia = Conversation.objects.get()
    desk.take(Conversation.objects.get(), ana.user)
    with pytest.raises(desk.Conflict):
        desk.take(seen_by_bia, bia.user)


def test_customer_has_one_chat_at_a_time(carla: Person):
    thread = carla.opens()
    assert carla.post("", topic="another").status_code == 409
    carla.post(f"{thread}/end/")
    assert carla.post("", topic="another").status_code == 201


def test_customer_writes_while_waiting_and_no_attendant_does(ana: Person, carla: Person):
    thread = carla.opens("My invoice")
    assert carla.post(f"{thread}/messages/", body="It is\n\nwrong.").status_code == 201
    assert ana.post(f"{thread}/messages/", body="Hello?").status_code == 403
    assert bodies(carla, thread) == ["My invoice", "It is\n\nwrong."]


def test_nothing_is_written_after_the_end_of_a_chat(ana: Person, bia: Person, carla: Person):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    assert ana.post(f"{thread}/end/").status_code == 200
    before = bodies(ana, thread)
    for person in (ana, carla):
        answer = person.post(f"{thread}/messages/", body="Hello?")
        assert (answer.status_code, answer.json()) == (409, {"detail": "This chat has ended."})
        assert person.post(f"{thread}/end/").status_code == 409
    assert ana.post(f"{thread}/transfer/", attendant_id=bia.id).status_code == 409
    assert bodies(ana, thread) == before


def test_log_records_by_whom_and_when_a_chat_was_taken_transferred_and_ended(
    ana: Person, bia: Person, carla: Person
):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    ana.post(f"{thread}/transfer/", attendant_id=bia.id)
    bia.post(f"{thread}/end/")
    notes = [note for note in carla.get(f"{thread}/").json()["messages"] if note["is_note"]]
    assert [(note["author"]["user_id"], note["body"]) for note in notes] == [
        (ana.id, "Ana Lima joined the chat."),
        (ana.id, "Ana Lima transferred the chat to Bia Souza."),
        (bia.id, "Bia Souza ended the chat."),
    ]
    assert all(note["created_at"] for note in notes)


def test_transferred_chat_is_the_colleagues_alone(ana: Person, bia: Person, carla: Person):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    ana.post(f"{thread}/transfer/", attendant_id=bia.id)
    assert (ana.sees(), bia.sees()) == ([], [thread])
    assert ana.post(f"{thread}/messages/", body="Hello?").status_code == 403
    assert ana.post(f"{thread}/transfer/", attendant_id=ana.id).status_code == 403
    assert bia.post(f"{thread}/messages/", body="Hello.").status_code == 201


def test_request_that_began_before_a_transfer_is_decided_by_what_holds_after_it(
    ana: Person, bia: Person, carla: Person
):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    seen_by_ana = Conversation.objects.get()
    ana.post(f"{thread}/transfer/", attendant_id=bia.id)
    with pytest.raises(PermissionDenied):
        desk.write(seen_by_ana, ana.user, "Hello?")
    with pytest.raises(PermissionDenied):
        desk.transfer(seen_by_ana, ana.user, bia.user)


def test_chat_is_transferred_to_another_attendant_and_to_no_other_user(
    ana: Person, carla: Person, dora: Person
):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    for user_id in (ana.id, dora.id):
        assert ana.post(f"{thread}/transfer/", attendant_id=user_id).status_code == 409
    for user_id in ("999999", "9" * 40, "x", None, [], True):
        assert ana.post(f"{thread}/transfer/", attendant_id=user_id).status_code == 400
    assert Conversation.objects.get().attendant == ana.user


def test_customer_may_give_up_waiting(ana: Person, carla: Person):
    thread = carla.opens()
    assert carla.post(f"{thread}/end/").json()["status"] == Status.ENDED
    assert bodies(carla, thread)[-1] == "Carla Reis cancelled the chat."
    assert ana.sees() == []
    assert [event for event, _ in published()][-1] == "queue:updated"


ODD_BODIES = (
    *(
        '{"body": ""}',
        '{"body": "   "}',
        '{"body": null}',
        '{"body": ["a"]}',
        '{"body": "' + "x" * 4001 + '"}',
    ),
    *(r'{"body": "\u0000"}', r'{"body": "\ud800"}', "{}", "[]", '"text"', "{", b"\xff", ""),
)


def test_odd_input_is_answered_with_400_and_json(ana: Person, carla: Person):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    for body in ODD_BODIES:
        path = f"{CONVERSATIONS}{thread}/messages/"
        answer = carla.http.post(path, body, content_type="application/json")
        assert answer.status_code == 400, body
        assert answer.json(), body


def test_unknown_conversation_is_404_however_large_its_id(ana: Person):
    for pk in ("0", "999999", "9" * 40):
        assert ana.get(f"{pk}/").status_code == 404
