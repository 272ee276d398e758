"""What is published about the demo's chats."""

from __future__ import annotations

import pytest

from demo.models import Message, Status
from realtime.outbox.models import OutboxMessage
from tests.demo.people import Person, published, routes

# The demo is only routed while DEBUG is on, which pytest-django turns off.
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("demo.urls"),
    pytest.mark.usefixtures("realtime_redis", "patient_outbox"),
]


def test_chat_is_published_from_its_opening_to_its_end(ana: Person, carla: Person):
    thread = carla.opens("My invoice")
    assert ana.post(f"{thread}/take/").status_code == 200
    said = carla.post(f"{thread}/messages/", body="Hello?")
    assert said.status_code == 201
    assert carla.post(f"{thread}/end/").status_code == 200

    (new, first, taken, accepted, message, ended, updated) = published()
    assert new[0] == "queue:new"
    assert str(new[1]["item_id"]) == thread
    assert new[1]["conversation"]["topic"] == "My invoice"
    assert new[1]["conversation"]["customer"] == {"user_id": carla.id, "name": "Carla Reis"}
    assert (first[0], first[1]["body"]) == ("thread:message", "My invoice"), "the topic is the first message"
    assert taken == ("queue:taken", {"item_id": int(thread), "attendant_id": ana.id})
    assert accepted[0] == "chat:accepted"
    assert str(accepted[1]["user_id"]) == carla.id, "the customer, who is granted the thread by it"
    assert accepted[1]["conversation"]["attendant"] == {"user_id": ana.id, "name": "Ana Lima"}
    assert message == ("thread:message", said.json()), "the event says what the answer said"
    assert ended[0] == "chat:ended"
    assert (ended[1]["thread_id"], ended[1]["ended_by"]) == (int(thread), carla.id)
    assert ended[1]["conversation"]["status"] == Status.ENDED
    assert ended[1]["message"] == carla.get(f"{thread}/").json()["messages"][-1], "what the log says about it"
    assert updated[0] == "queue:updated"


def test_refused_request_publishes_nothing(ana: Person, carla: Person):
    thread = carla.opens()
    before = published()
    carla.post("", topic="another")
    carla.post(f"{thread}/take/")
    ana.post(f"{thread}/messages/", body="too early")
    ana.post(f"{thread}/end/")
    ana.post(f"{thread}/transfer/", attendant_id=ana.id)
    assert published() == before


def test_waiting_customer_is_reached_in_their_own_room_and_not_in_the_thread(ana: Person, carla: Person):
    thread = carla.opens()
    carla.post(f"{thread}/messages/", body="Hello?")
    assert routes("thread:message") == [([f"user:{carla.id}"], ["portal"])] * 2
    ana.post(f"{thread}/take/")
    carla.post(f"{thread}/messages/", body="There you are.")
    assert routes("thread:message")[-1] == (None, None), "the thread, which the customer was let into"
    ana.post(f"{thread}/end/")
    assert routes("chat:ended") == [(None, None)]
    carla.post(f"{carla.opens()}/end/")
    assert routes("chat:ended")[-1] == ([f"user:{carla.id}"], ["portal"])


def test_transfer_tells_the_thread_its_customer_and_the_colleague(ana: Person, bia: Person, carla: Person):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    before = len(published())
    answer = ana.post(f"{thread}/transfer/", attendant_id=bia.id)
    assert answer.status_code == 200
    assert answer.json()["attendant"] == {"user_id": bia.id, "name": "Bia Souza"}

    (accepted, notified) = published()[before:]
    assert accepted[0] == "chat:accepted"
    assert (accepted[1]["attendant_id"], accepted[1]["user_id"]) == (int(bia.id), int(carla.id))
    assert accepted[1]["message"]["body"] == "Ana Lima transferred the chat to Bia Souza."
    assert notified[0] == "user:notification"
    assert (notified[1]["user_id"], notified[1]["by"]) == (int(bia.id), "Ana Lima")
    assert notified[1]["conversation"] == answer.json()


def test_message_that_cannot_be_announced_is_saved_and_waits(ana: Person, carla: Person, settings):
    thread = carla.opens()
    ana.post(f"{thread}/take/")
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis://127.0.0.1:1/0"}
    answer = carla.post(f"{thread}/messages/", body="Hello?")
    assert answer.status_code == 201
    assert Message.objects.last().body == "Hello?"
    assert OutboxMessage.objects.get().event == "thread:message"
