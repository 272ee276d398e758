"""The pages of dead letters: reading, discarding, and what a page costs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import translation

from presence.admin import letters
from presence.admin.letters import printable
from realtime.redis.client import key, sync_client
from tests.e2e.harness import ROOT
from tests.operators import logged, operator, text_of, texts
from tests.presence.support import LETTERS, VALID, dead, send

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("realtime_redis"),
    pytest.mark.filterwarnings("ignore:No directory at"),
]

DISCARD = "admin:presence_deadletter_discard"


def dead_letter(
    message: bytes = b"no json", reason: bytes = b"invalid_json: what is this", id: str = "*"
) -> str:
    fields: Any = {"reason": reason, "source": b"stream", "message": message}
    return sync_client().xadd(key("dead"), fields, id=id).decode()


def left() -> list[str]:
    return [entry_id.decode() for entry_id, _ in sync_client().xrange(key("dead"))]


def ids(response: Any) -> list[str]:
    return [letter.id for letter in response.context["rows"]]


def test_letter_is_shown_with_reason_source_and_time(admin_client: Client):
    dead_letter(b'{"event":"nope"}', b"unknown_event: 'nope'", id="1700000000123-0")
    page = admin_client.get(reverse(LETTERS)).content.decode()
    for text in ("2023-11-14 22:13:20", "unknown_event: &#x27;nope&#x27;", "stream", "{&quot;event&quot;"):
        assert text in page


def test_thousand_letters_are_read_page_by_page_there_and_back(admin_client: Client):
    for number in range(1, 121):
        dead_letter(id=f"{number}-0")
    newest_first = [f"{number}-0" for number in range(120, 0, -1)]
    first = admin_client.get(reverse(LETTERS))
    second = admin_client.get(reverse(LETTERS) + first.context["older"])
    third = admin_client.get(reverse(LETTERS) + second.context["older"])
    assert [*ids(first), *ids(second), *ids(third)] == newest_first
    assert ("newer" in first.context, "older" in third.context) == (False, False)
    back = admin_client.get(reverse(LETTERS) + third.context["newer"])
    assert ids(back) == ids(second)
    front = admin_client.get(reverse(LETTERS) + back.context["newer"])
    assert ids(front) == ids(first)
    assert "newer" not in front.context
    assert "120 dead letters" in first.content.decode()


def test_invalid_place_leads_to_the_first_page(admin_client: Client):
    dead_letter(id="1-0")
    assert ids(admin_client.get(reverse(LETTERS), {"before": "nonsense", "after": "+"})) == ["1-0"]


def test_page_says_that_there_are_no_letters(admin_client: Client):
    assert (
        "There are no dead letters: no message of the bus has failed"
        in admin_client.get(reverse(LETTERS)).content.decode()
    )


def test_payload_can_do_nothing_to_the_page(admin_client: Client):
    dead_letter(b"<script>alert(1)</script>\xff\x00\x1b[31m" + "\u202etxt".encode(), b"<b>")
    page = admin_client.get(reverse(LETTERS)).content.decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for harmful in ("\x00", "\x1b", "\u202e", "<b>"):
        assert harmful not in page


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain {}", "plain {}"),
        ("ação ✓".encode(), "ação ✓"),
        (b"a\nb\tc\r", "a\nb\\tc\\r"),
        (b"\xff\x00", "\\xff\\u0000"),
        ("a\u202eb\u2028".encode(), "a\\u202eb\\u2028"),
    ],
)
def test_characters_that_are_not_printable_are_escaped(raw: bytes, shown: str):
    assert printable(raw) == shown


# --- Discard -----------------------------------------------------------------------------------------


def test_letters_are_discarded_once_that_is_confirmed(admin_client: Client):
    kept, first, second = dead_letter(), dead_letter(), dead_letter()
    asked = admin_client.post(reverse(DISCARD), {"letter": [first, second]})
    assert "Discard 2 dead letters for good?" in asked.content.decode()
    assert left() == [kept, first, second]
    done = admin_client.post(reverse(DISCARD), {"letter": [first, second], "confirmed": "yes"}, follow=True)
    assert left() == [kept]
    assert texts(done) == ["Discarded 2 dead letters."]
    assert logged() == [(first, "Discarded."), (second, "Discarded.")]


def test_page_says_that_nothing_was_selected(admin_client: Client):
    kept = dead_letter()
    for data in ({}, {"letter": ["-", "+", "nonsense"]}):
        done = admin_client.post(reverse(DISCARD), {**data, "confirmed": "yes"}, follow=True)
        assert texts(done) == ["Nothing was selected."]
    assert left() == [kept]


def test_looking_and_discarding_want_a_permission_each(client: Client):
    letter = dead_letter()
    operator(client, "view_deadletter")
    page = client.get(reverse(LETTERS))
    assert page.status_code == 200
    assert "checkbox" not in page.content.decode()
    assert client.post(reverse(DISCARD), {"letter": [letter], "confirmed": "yes"}).status_code == 403
    assert left() == [letter]
    operator(client, "view_presencerecord", "delete_deadletter")
    assert client.get(reverse(LETTERS)).status_code == 403


def test_no_other_site_can_have_it_done():
    letter, strict = dead_letter(), Client(enforce_csrf_checks=True)
    operator(strict, "view_deadletter", "delete_deadletter")
    assert strict.post(reverse(DISCARD), {"letter": [letter], "confirmed": "yes"}).status_code == 403
    assert left() == [letter]


@pytest.mark.usefixtures("without_redis")
def test_page_says_that_redis_does_not_answer(admin_client: Client):
    assert texts(admin_client.get(reverse(LETTERS))) == ["Redis does not answer."]
    done = admin_client.post(reverse(DISCARD), {"letter": ["1-0"], "confirmed": "yes"}, follow=True)
    assert "Redis does not answer: nothing was done." in texts(done)
    assert logged() == []


# --- Reasons, and what a page costs ------------------------------------------------------------------


def test_every_documented_reason_is_there_in_the_language_of_the_reader(admin_client: Client):
    table = (ROOT / "docs/protocol.md").read_text().partition("### Dead letters")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert {*documented} == {*letters.REASONS}
    for code in documented:
        dead(reason=f"{code}: in detail")
    english = text_of(admin_client.get(reverse(LETTERS), headers={"Accept-Language": "en"}))
    portuguese = text_of(admin_client.get(reverse(LETTERS), headers={"Accept-Language": "pt-BR"}))
    for code in documented:
        with translation.override("en"):
            meaning = str(letters.REASONS[code])
        assert f"{meaning} {code}: in detail" in english
        assert f"{meaning} {code}" not in portuguese
        assert f"{code}: in detail" in portuguese


def commands() -> dict[str, int]:
    found: Any = sync_client().info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in found.items()}


@pytest.mark.parametrize("count", [1, 1000])
def test_page_and_bulk_cost_as_many_commands_for_many_letters_as_for_few(
    admin_client: Client, count: int, django_assert_max_num_queries: Any
):
    pipeline = sync_client().pipeline()
    for _ in range(count):
        pipeline.xadd(key("dead"), {"reason": "x: y", "source": "stream", "message": VALID})
    pipeline.execute()
    before = commands()
    with django_assert_max_num_queries(4):
        page = admin_client.get(reverse(LETTERS))
    after = commands()
    assert {name: after[name] - before.get(name, 0) for name in ("xrevrange", "xlen")} == {
        "xrevrange": 1,
        "xlen": 1,
    }
    assert len(page.context["rows"]) == min(count, 50)
    assert len(page.content) < 80_000
    send(admin_client, *[letter.id for letter in page.context["rows"]])
    assert commands()["evalsha"] - after.get("evalsha", 0) == 1
