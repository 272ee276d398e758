"""Dead letters that operators edit and send again: once, and only with the permission to."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.urls import reverse
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from presence.admin import letters
from realtime.bridge.dead_letters import DEAD_LETTER_BYTES
from realtime.redis.client import key, sync_client
from tests.operators import logged, operator, text_of, texts
from tests.presence.support import LETTERS, RESEND, VALID, dead, send

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("realtime_redis"),
    pytest.mark.filterwarnings("ignore:No directory at"),
]

DISCARD = "admin:presence_deadletter_discard"
LETTER = "admin:presence_deadletter_letter"

GONE = "1 dead letter was gone: it had been sent again or discarded, or newer ones replaced it."


def left() -> list[str]:
    return [entry_id.decode() for entry_id, _ in sync_client().xrange(key("dead"))]


def on_the_bus() -> list[bytes]:
    return [fields[b"message"] for _, fields in sync_client().xrange(key("stream"))]


def edit(client: Client, letter_id: str, message: str, **more: str) -> Any:
    return client.post(reverse(LETTER, args=[letter_id]), {"message": message, **more}, follow=True)


# --- In bulk -----------------------------------------------------------------------------------------


def test_letters_are_sent_again_once_that_is_confirmed(admin_client: Client):
    first, kept, second = dead(), dead(), dead(VALID.replace(b"42", b"43"))
    asked = admin_client.post(reverse(RESEND), {"letter": [first, second]})
    text = text_of(asked)
    assert "Send 2 dead letters again? Real clients get them." in text
    assert "hub thread:42, portal thread:42" in text
    assert (left(), on_the_bus(), logged()) == ([first, kept, second], [], [])
    done = send(admin_client, first, second)
    assert texts(done) == ["Sent 2 dead letters again."]
    assert left() == [kept]
    assert [json.loads(each)["data"]["thread_id"] for each in on_the_bus()] == [42, 43]
    assert [(about, words.partition(": {")[0]) for about, words in logged()] == [
        (first, "Sent again: thread:message"),
        (second, "Sent again: thread:message"),
    ]


def test_data_stays_as_it_is_to_the_last_digit_and_gets_a_key(admin_client: Client):
    letter = dead()
    send(admin_client, letter)
    [message] = on_the_bus()
    assert message == VALID[:-1] + f',"id":"dead-{letter}"}}'.encode()


def test_key_of_the_backbone_is_kept(admin_client: Client):
    message = b'{"event":"thread:message","id":"mine","data":{"thread_id":42,"message_id":"1"}}'
    send(admin_client, dead(message))
    assert on_the_bus() == [message]


def test_message_whose_handler_failed_gets_another_key_as_the_bridge_has_marked_its_own(admin_client: Client):
    """Under the old one it would be dropped as a duplicate, while the operator is told that it was sent."""
    message = b'{"event":"thread:message","id":"mine","data":{"thread_id":42,"message_id":"1"}}'
    letter = dead(message, "handler_failed: x")
    send(admin_client, letter)
    edited = dead(message, "handler_failed: x")
    edit(admin_client, edited, message.decode(), confirmed="yes")
    assert [json.loads(each)["id"] for each in on_the_bus()] == [f"dead-{letter}", f"dead-{edited}"]


def test_what_is_not_valid_is_left_and_named(admin_client: Client):
    good, bad = dead(), dead(b"no json", "invalid_json: malformed")
    asked = text_of(admin_client.post(reverse(RESEND), {"letter": [good, bad]}))
    assert "Send 1 dead letter again?" in asked
    assert "Not sent" in asked
    assert "invalid_json" in asked
    send(admin_client, good, bad)
    assert left() == [bad]
    assert len(on_the_bus()) == 1
    told = texts(send(admin_client, bad))
    assert len(told) == 1
    assert "invalid_json" in told[0]


def test_entry_of_another_stream_is_not_put_onto_the_bus(admin_client: Client):
    letter = dead(source="presence")
    assert "it did not come over the bus" in texts(send(admin_client, letter))[0]
    assert reverse(LETTER, args=[letter]) not in admin_client.get(reverse(LETTERS)).content.decode()
    assert admin_client.get(reverse(LETTER, args=[letter])).status_code == 302
    assert on_the_bus() == []


def test_message_of_pubsub_is_sent_over_the_durable_stream(admin_client: Client):
    send(admin_client, dead(source="events"))
    assert len(on_the_bus()) == 1


def test_page_warns_of_what_clients_have_got_already(admin_client: Client):
    for reason, warned in (("handler_failed: x", True), ("unknown_event: x", False)):
        asked = text_of(admin_client.post(reverse(RESEND), {"letter": [dead(reason=reason)]}))
        assert ("may get it twice" in asked) == warned


@pytest.mark.parametrize("given", [[], ["no id"], ["-"], ["1-1\n"]])
def test_nothing_selected_is_said(admin_client: Client, given: list[str]):
    assert texts(admin_client.post(reverse(RESEND), {"letter": given}, follow=True)) == [
        "Nothing was selected."
    ]


# --- Exactly once ------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_operators_who_press_at_once_send_it_once_and_one_of_them_is_told(
    admin_client: Client, admin_user: Any
):
    letters_ = [dead() for _ in range(20)]
    both = Barrier(2)

    def press(_: int) -> list[str]:
        client = Client()
        client.force_login(admin_user)
        both.wait()
        try:
            # Not from its context: Django's test client takes that of whichever page is rendered meanwhile.
            page = send(client, *letters_).content.decode()
            return re.findall(r'<li class="(?:success|warning)">(.*?)</li>', page)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        told = sorted(pool.map(press, range(2)), key=len)
    assert len(on_the_bus()) == 20
    assert left() == []
    assert len(logged()) == 20
    numbers = [int(text.split()[1 if text.startswith("Sent") else 0]) for each in told for text in each]
    assert "Sent" in str(told)
    assert sum(numbers) == 40  # each of the two accounts for each letter


def test_letter_that_was_removed_meanwhile_is_not_sent(admin_client: Client):
    letter = dead()
    admin_client.post(reverse(RESEND), {"letter": [letter]})
    sync_client().xdel(key("dead"), letter)
    assert texts(send(admin_client, letter)) == [GONE]
    assert texts(edit(admin_client, letter, VALID.decode(), confirmed="yes")) == [GONE]
    assert texts(admin_client.get(reverse(LETTER, args=[letter]), follow=True)) == [GONE]
    assert (on_the_bus(), logged()) == ([], [])


def test_letter_that_goes_between_reading_and_sending_is_not_sent(admin_client: Client, monkeypatch):
    gone, kept = dead(), dead()
    read = letters.read_these

    def slow(ids: Any) -> Any:
        found = read(ids)
        sync_client().xdel(key("dead"), gone)
        return found

    monkeypatch.setattr(letters, "read_these", slow)
    assert texts(send(admin_client, gone, kept)) == ["Sent 1 dead letter again.", GONE]
    assert [about for about, _ in logged()] == [kept]


def test_redis_that_is_away_is_said(admin_client: Client, settings):
    letter = dead()
    with_redis = settings.REALTIME
    settings.REALTIME = {**with_redis, "REDIS_URL": "unix:///nowhere/redis.sock"}
    told = ["Redis does not answer: nothing was done.", "Redis does not answer."]  # the second is of the list
    assert texts(send(admin_client, letter)) == told
    assert texts(edit(admin_client, letter, VALID.decode(), confirmed="yes")) == told
    settings.REALTIME = with_redis
    assert (left(), on_the_bus(), logged()) == ([letter], [], [])


def test_answer_that_is_lost_once_is_asked_for_again(admin_client: Client, monkeypatch):
    """The client repeats the call, which finds the letters gone: they were sent, and the log has to tell by whom."""
    one = dead()
    parse_response: Any = Redis.parse_response
    lost: list[str] = []

    def parse(self: Any, connection: Any, command: str, **options: Any) -> Any:
        answer = parse_response(self, connection, command, **options)
        if command == "EVALSHA" and not lost:
            lost.append(command)
            connection.disconnect()
            raise RedisConnectionError
        return answer

    send(admin_client, dead())  # the script is known from now on
    monkeypatch.setattr(Redis, "parse_response", parse)
    told = texts(edit(admin_client, one, VALID.decode(), confirmed="yes"))
    assert lost
    assert told == ["Sent 1 dead letter again."]
    assert len(on_the_bus()) == 2
    assert [about for about, _ in logged()][1:] == [one]


def test_answer_that_is_lost_is_written_down_as_not_confirmed(admin_client: Client, monkeypatch):
    """It may have been sent: the list says so, and the log has to."""
    letter = dead()
    send_again = letters.send_again

    def lost(messages: Any) -> Any:
        send_again(messages)
        raise RedisConnectionError

    monkeypatch.setattr(letters, "send_again", lost)
    told = texts(send(admin_client, letter))
    assert told == ["Redis did not confirm it. What is still listed here was not sent."]
    assert left() == []
    assert logged()[0][1].startswith("Sent again, not confirmed by Redis: thread:message")


def test_bus_that_cannot_take_it_keeps_the_letter(admin_client: Client):
    letter = dead()
    sync_client().set(key("stream"), "of another type")
    assert texts(send(admin_client, letter)) == [
        "Redis did not confirm it. What is still listed here was not sent."
    ]
    assert left() == [letter]


def test_cluster_sends_with_a_key_by_which_the_bridge_knows_it(admin_client: Client, monkeypatch):
    class Clustered:
        nodes = ("a server",)

    monkeypatch.setattr(letters, "location", Clustered)
    letter, gone = dead(), dead()
    sync_client().xdel(key("dead"), gone)
    assert letters.send_again({letter: b"one", gone: b"two"}) == {letter}
    assert (on_the_bus(), left()) == ([b"one"], [])


# --- Edited ------------------------------------------------------------------------------------------


def test_letter_is_edited_checked_confirmed_and_sent(admin_client: Client):
    letter = dead(
        b'{"event":"thread:message","data":{"thread_id":"42"}}', "invalid_payload: message_id: required"
    )
    page = text_of(admin_client.get(reverse(LETTER, args=[letter])))
    assert '"thread_id": "42"' in page
    assert "The data does not fit the event. invalid_payload: message_id: required" in page
    refused = edit(
        admin_client, letter, '{"event":"thread:message","data":{"thread_id":"42"}}', confirmed="yes"
    )
    assert "message_id: required" in text_of(refused)
    assert on_the_bus() == []
    fixed = '{"event":"thread:message","data":{"thread_id":"42","message_id":"7","body":"Olá 🎈"}}'
    asked = edit(admin_client, letter, fixed)
    assert "Send 1 dead letter again? Real clients get it." in text_of(asked)
    assert on_the_bus() == []
    done = edit(admin_client, letter, fixed, confirmed="yes")
    assert texts(done) == ["Sent 1 dead letter again."]
    assert json.loads(on_the_bus()[0])["data"] == {"thread_id": "42", "message_id": "7", "body": "Olá 🎈"}
    assert left() == []
    [(about, entry)] = logged()
    assert about == letter
    assert entry.startswith('Edited and sent again: thread:message: {"event":"thread:message"')


def test_letter_that_was_only_looked_at_counts_as_sent_as_it_was(admin_client: Client):
    letter = dead()
    page = admin_client.get(reverse(LETTER, args=[letter]))
    shown = page.context["form"].initial["message"].replace("\n", "\r\n")  # as a browser sends it
    edit(admin_client, letter, shown, confirmed="yes")
    assert logged()[0][1].startswith("Sent again: thread:message")


@pytest.mark.parametrize(
    "message",
    ["", " ", "{", "[]", "null", "[" * 5000, '{"event":5}', '{"event":"nope:nope"}', "\ud800", "\x00"],
)
def test_odd_message_is_refused_and_shown_again(admin_client: Client, message: str):
    letter = dead()
    done = edit(admin_client, letter, message.encode(errors="replace").decode(), confirmed="yes")
    assert done.status_code == 200
    assert "errorlist" in done.content.decode()
    assert (left(), on_the_bus()) == ([letter], [])


def test_letter_becomes_no_other_order(admin_client: Client):
    grant = b'{"event":"room:grant","data":{"user_id":"7","room":"thread:42","namespace":"portal"}}'
    other = dead()
    page = edit(admin_client, other, grant.decode(), confirmed="yes")
    assert "A dead letter cannot become another control event." in text_of(page)
    assert on_the_bus() == []
    own = dead(grant, "handler_failed: x")
    assert texts(edit(admin_client, own, grant.decode(), confirmed="yes")) == ["Sent 1 dead letter again."]


def test_letter_that_was_cut_says_so(admin_client: Client):
    cut = dead((b'{"event":"thread:message","data":{"x":"' + b"x" * 5000)[:DEAD_LETTER_BYTES], "too_large: 1")
    whole = dead(b'{"event":"queue:updated","data":{"x":"' + b"y" * (DEAD_LETTER_BYTES - 41) + b'"}}')
    assert len(sync_client().xrange(key("dead"), whole, whole)[0][1][b"message"]) == DEAD_LETTER_BYTES
    assert "Only the first 4 KiB" in text_of(admin_client.get(reverse(LETTER, args=[cut])))
    assert "Only the first 4 KiB" not in text_of(admin_client.get(reverse(LETTER, args=[whole])))
    assert text_of(admin_client.get(reverse(LETTERS))).count("Cut: the rest was not kept.") == 1


# --- Who may -----------------------------------------------------------------------------------------


def test_it_wants_a_permission_of_its_own(client: Client):
    letter = dead()
    operator(client, "view_deadletter", "delete_deadletter", "publish_live")
    assert client.post(reverse(RESEND), {"letter": [letter], "confirmed": "yes"}).status_code == 403
    for method in (client.get, client.post):
        assert (
            method(reverse(LETTER, args=[letter]), {"message": "{}", "confirmed": "yes"}).status_code == 403
        )
    page = client.get(reverse(LETTERS)).content.decode()
    assert "Send selected again" not in page
    assert reverse(LETTER, args=[letter]) not in page
    assert on_the_bus() == []
    operator(client, "resend_deadletter", "view_deadletter")
    page = client.get(reverse(LETTERS)).content.decode()
    assert "Send selected again" in page
    assert "Discard selected" not in page
    assert client.post(reverse(DISCARD), {"letter": [letter], "confirmed": "yes"}).status_code == 403
    assert texts(send(client, letter)) == ["Sent 1 dead letter again."]


def test_no_other_site_can_have_it_done(admin_user: Any):
    letter, strict = dead(), Client(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    assert strict.post(reverse(RESEND), {"letter": [letter], "confirmed": "yes"}).status_code == 403
    url = reverse(LETTER, args=[letter])
    assert strict.post(url, {"message": VALID.decode(), "confirmed": "yes"}).status_code == 403
    assert strict.get(url, {"message": VALID.decode(), "confirmed": "yes"}).status_code == 200
    assert on_the_bus() == []
