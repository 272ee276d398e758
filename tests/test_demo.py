"""The demo's desk: which user may do what, and what is published about it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.core.management import CommandError, call_command
from rest_framework.test import APIClient

from demo import desk
from demo.models import Conversation, Message, Status
from demo.views import DeskTokenSerializer
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from realtime.outbox.models import OutboxMessage
from realtime.redis.client import key, sync_client

# The demo is only routed while DEBUG is on, which pytest-django turns off.
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("demo.urls"),
    pytest.mark.usefixtures("realtime_redis", "patient_outbox"),
]

CONVERSATIONS = "/demo/conversations/"


class Person:
    """A user of the desk, with an access token for the socket."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.id = str(user.pk)
        self.http = APIClient()
        self.http.credentials(HTTP_AUTHORIZATION=f"Bearer {token_of(user)}")

    def get(self, path: str) -> Any:
        return self.http.get(CONVERSATIONS + path)

    def post(self, path: str, **data: Any) -> Any:
        return self.http.post(CONVERSATIONS + path, data, format="json")

    def opens(self, topic: str = "My invoice") -> str:
        """Open a chat; returns its id."""
        answer = self.post("", topic=topic)
        assert answer.status_code == 201, answer.json()
        return answer.json()["thread_id"]

    def sees(self) -> list[str]:
        return [found["thread_id"] for found in self.get("").json()["conversations"]]


def token_of(user: User) -> str:
    return str(DeskTokenSerializer.get_token(user).access_token)


@pytest.fixture(autouse=True)
def development(settings: Any) -> None:
    """Static files straight from the applications, none collected; passwords that cost nothing."""
    settings.WHITENOISE_AUTOREFRESH = True
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def people(settings: Any) -> dict[str, Person]:
    settings.DEBUG = True
    call_command("createdemo", verbosity=0)
    settings.DEBUG = False
    User.objects.create_user("dora", password="demo", first_name="Dora", last_name="Nunes")
    return {user.username: Person(user) for user in User.objects.all()}


@pytest.fixture
def ana(people: dict[str, Person]) -> Person:
    return people["ana"]


@pytest.fixture
def bia(people: dict[str, Person]) -> Person:
    return people["bia"]


@pytest.fixture
def carla(people: dict[str, Person]) -> Person:
    return people["carla"]


@pytest.fixture
def dora(people: dict[str, Person]) -> Person:
    """A customer too."""
    return people["dora"]


def stream() -> list[dict[str, Any]]:
    """What has been appended to the durable stream so far, in order."""
    return [json.loads(fields[b"message"]) for _, fields in sync_client().xrange(key("stream"))]


def published() -> list[tuple[str, dict[str, Any]]]:
    """The events on the stream, with their data."""
    return [(message["event"], message["data"]) for message in stream()]


def routes(event: str) -> list[tuple[Any, Any]]:
    """Where the messages of an event were sent: rooms and namespaces, None for the event's own."""
    found = [message for message in stream() if message["event"] == event]
    return [(message.get("rooms"), message.get("namespaces")) for message in found]


# --- What is published ---------------------------------------------------------------------------


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


# --- What each user sees -------------------------------------------------------------------------


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


# --- What cannot be ------------------------------------------------------------------------------


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


def bodies(person: Person, thread: str) -> list[str]:
    return [message["body"] for message in person.get(f"{thread}/").json()["messages"]]


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


# --- The page and its people ---------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch):
    """As after `make desk`; a function that takes the files away again."""

    def say(path: str | None) -> None:
        monkeypatch.setattr("demo.views.finders.find", lambda name: path)

    say("/somewhere/desk.js")
    return say


def test_page_that_was_not_built_says_what_to_do(client, built):
    built(None)
    answer = client.get("/").content.decode()
    assert "make desk" in answer
    assert "Node 20.19 or newer" in answer
    assert "<script" not in answer


def test_page_says_where_the_sockets_are(client, monkeypatch, built):
    monkeypatch.delenv("SOCKETS_PUBLIC_URL", raising=False)
    monkeypatch.setenv("SOCKETS_PORT", "9001")
    for host, url in (
        ("localhost:8000", "ws://localhost:9001"),
        ("127.0.0.1", "ws://127.0.0.1:9001"),
        ("[::1]:8000", "ws://[::1]:9001"),
    ):
        answer = client.get("/", headers={"host": host})
        assert f'data-sockets="{url}"' in answer.content.decode()
    monkeypatch.setenv("SOCKETS_PUBLIC_URL", "wss://sockets.example.com/")
    answer = client.get("/")
    assert 'data-sockets="wss://sockets.example.com"' in answer.content.decode()
    policy = answer.headers["Content-Security-Policy"]
    assert "connect-src 'self' wss://sockets.example.com https://sockets.example.com" in policy


def test_createdemo_can_run_again_and_again(people: dict[str, Person], settings):
    people["ana"].user.set_password("forgotten")
    people["ana"].user.save()
    settings.DEBUG = True
    call_command("createdemo", verbosity=0)
    assert User.objects.count() == len(people)
    ana = User.objects.get(username="ana")
    assert ana.check_password("demo")
    claims = verify(token_of(ana))
    assert (claims.role, claims.name, claims.groups) == ("attendant", "Ana Lima", ("attendants",))
    roles = {person.user.username: verify(token_of(person.user)).role for person in people.values()}
    assert roles == {
        "ana": "attendant",
        "bia": "attendant",
        "carla": "customer",
        "davi": "customer",
        "elisa": "customer",
        "dora": "customer",
        "admin": "admin",
    }


def test_createdemo_is_refused_outside_development(settings):
    settings.DEBUG = False
    with pytest.raises(CommandError, match="DEBUG is off") as refused:
        call_command("createdemo")
    assert refused.value.returncode == 2
    assert not User.objects.exists()
