"""The live view: what it asks and shows."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from realtime.survey import ask as asking
from realtime.survey.messages import Instance
from tests.e2e.harness import ROOT
from tests.operators import text_of
from tests.presence.support import CONNECTIONS, DISCONNECT, INSTANCES, LOG, MOVE, ONE, ROOMS, System, person
from tests.survey.test_messages import CROWD, Connection, Principal

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("realtime_redis"),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def ids(response: Any) -> list[str]:
    return [each["row"].connection_id for each in response.context["rows"]]


# --- Connections -----------------------------------------------------------------------------------


def test_ten_thousand_connections_are_read_page_by_page(admin_client: Client, system: System):
    system.hold("one", *CROWD[::2])
    system.hold("two", *CROWD[1::2])
    page = admin_client.get(reverse(CONNECTIONS))
    assert len(page.content) < 60_000
    assert "1–50 of 10,000 connections" in page.content.decode().replace("10000", "10,000")
    seen = [ids(page)]
    for _ in range(3):
        page = admin_client.get(reverse(CONNECTIONS) + page.context["next"])
        seen.append(ids(page))
    newest = sorted(CROWD, key=lambda each: -each.opened_at)[:200]
    assert [id for page in seen for id in page] == [each.connection_id for each in newest]
    assert (page.context["first"], page.context["last"]) == (151, 200)
    page = admin_client.get(reverse(CONNECTIONS) + page.context["previous"])
    assert ids(page) == seen[2]
    assert all(about.limit == 50 for about in system.asked)


def test_first_page_leads_nowhere_back_and_last_nowhere_on(admin_client: Client, system: System):
    system.hold("one", *CROWD[:60])
    first = admin_client.get(reverse(CONNECTIONS))
    assert "previous" not in first.context
    last = admin_client.get(reverse(CONNECTIONS) + first.context["next"])
    assert "next" not in last.context
    assert len(ids(last)) == 10
    assert "previous" in last.context


@pytest.mark.parametrize(
    ("page", "query", "said"),
    [
        (CONNECTIONS, {}, "No client is connected."),
        (CONNECTIONS, {"order": "behind"}, "No client is connected."),
        (CONNECTIONS, {"q": "ana"}, "No connection matches User “ana”."),
        (
            CONNECTIONS,
            {"q": "<b>", "room": "42", "namespace": "hub", "instance": "one"},
            "No connection matches User “<b>”, Room “thread:42”, Namespace “hub”, Instance “one”.",
        ),
        (CONNECTIONS, {"user": "7"}, "No connection matches User “7”."),
        (ROOMS, {}, "No client is in a room. The users' own rooms are not included."),
        (ROOMS, {"personal": "on"}, "No client is in a room. "),
        (ROOMS, {"q": "x", "namespace": "hub"}, "No room matches Room “x”, Namespace “hub”."),
    ],
)
def test_empty_list_says_what_was_searched(
    admin_client: Client, system: System, page: str, query: dict[str, str], said: str
):
    text = text_of(admin_client.get(reverse(page), query))
    assert said in text
    assert ("Show all" in text) == ("matches" in said)


def test_list_without_an_instance_says_that_all_were_asked(admin_client: Client, system: System):
    system.held.clear()
    assert "All instances were asked, and none answered within 2 seconds." in text_of(
        admin_client.get(reverse(INSTANCES))
    )


def test_totals_are_of_all_pages_and_all_instances(admin_client: Client, system: System):
    system.hold("one", *CROWD[::2])
    system.hold("two", *CROWD[1::2])
    expected = "Connections 10,000 hub 9,000 portal 1,000 Instances 2 As of"
    assert expected in text_of(admin_client.get(reverse(CONNECTIONS)))
    assert "Connections 1,000 portal 1,000 Instances 2" in text_of(
        admin_client.get(reverse(CONNECTIONS), {"namespace": "portal"})
    )
    assert "Instances 2 Connections 10,000 hub 9,000 portal 1,000 Behind 9 As of" in text_of(
        admin_client.get(reverse(INSTANCES))
    )
    assert "Rooms listed 399 As of" in text_of(admin_client.get(reverse(ROOMS)))
    portuguese = admin_client.get(reverse(CONNECTIONS), headers={"Accept-Language": "pt-BR"})
    assert "Conexões 10.000" in text_of(portuguese)


def test_counts_of_namespaces_are_left_out_while_an_older_instance_does_not_tell_them(
    admin_client: Client, system: System, monkeypatch
):
    system.hold("one", person(1))
    system.hold("two", person(2))
    ask = system.ask

    def older(about: Any, kind: Any, instance: str = "") -> Any:
        asked = ask(about, kind, instance)
        page = msgspec.structs.replace(asked.answers[1].result, namespaces={})
        return replace(asked, answers=[asked.answers[0], replace(asked.answers[1], result=page)])

    monkeypatch.setattr(asking, "ask", older)
    assert "Connections 2 Instances 2 As of" in text_of(admin_client.get(reverse(CONNECTIONS)))


def test_page_says_when_and_in_which_time_zone_it_was_made(admin_client: Client, system: System, settings):
    settings.TIME_ZONE = "America/Sao_Paulo"
    for page in (CONNECTIONS, INSTANCES, ROOMS, LOG):
        text = text_of(admin_client.get(reverse(page)))
        assert re.search(r"As of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(America/Sao_Paulo\)", text), page


@pytest.mark.parametrize("page", [CONNECTIONS, INSTANCES, ROOMS, LOG])
def test_refresh_gets_the_changing_part_alone_and_leaves_messages_to_the_operator(
    admin_client: Client, system: System, page: str
):
    system.hold("one", *CROWD[:60])
    admin_client.post(reverse(DISCONNECT[0], args=DISCONNECT[1:]), {"confirmed": "yes"})
    whole = reverse(page)
    part = admin_client.get(whole, headers={"X-Presence-Refresh": "1"})
    assert "The user is being disconnected." not in part.content.decode()
    assert 'id="refreshed"' in part.content.decode()
    assert "<html" not in part.content.decode()
    page_again = admin_client.get(whole)
    assert "The user is being disconnected." in page_again.content.decode()
    assert 'src="/static/presence/live.js" defer' in page_again.content.decode()


def test_group_of_a_team_is_shown_for_its_members_and_not_for_customers(admin_client: Client, system: System):
    system.hold("one", person(1))
    system.hold("one", Connection("c2", ("portal", "9"), Principal("Carla", "customer"), 4.0, {"user:9": 1}))
    member, customer = (
        text_of(admin_client.get(reverse("admin:presence_live_connection", args=[id]))) for id in ("c1", "c2")
    )
    assert "Groups sales" in member
    assert "Groups " not in customer.partition("As of")[2]
    assert "sales" not in customer


@pytest.mark.parametrize(
    ("age", "said"),
    [(0.4, "0 s"), (59.9, "59 s"), (3 * 86400 + 4 * 3600, "3 d 4 h")],
)
def test_time_of_a_connection_is_told_in_the_units_of_people(
    admin_client: Client, system: System, monkeypatch, age: float, said: str
):
    at = datetime.now(UTC)
    monkeypatch.setattr(timezone, "now", lambda: at)
    opened = Connection("c1", ("hub", "7"), Principal("Ana"), at.timestamp() - age, {"user:7": 1})
    system.hold("one", opened)
    assert f'">{said}</time>' in admin_client.get(reverse(CONNECTIONS)).content.decode()
    page = text_of(admin_client.get(reverse("admin:presence_live_connection", args=["c1"])))
    assert f"Connected for {said} 20" in page
    assert "Token ends in" in page


def test_delay_of_an_hour_is_not_told_in_seconds(admin_client: Client, system: System):
    system.hold("one", person(1, late=2_500_001 - 3_725_000_000))
    page = text_of(admin_client.get(reverse("admin:presence_live_connection", args=["c1"])))
    assert "late 1 h 2 min" in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "ana"}, {"c1"}),
        ({"q": "8"}, {"c2"}),
        ({"user": "7"}, {"c1"}),
        ({"room": "42"}, {"c1"}),
        ({"room": " thread:42 "}, {"c1"}),
        ({"room": "presence:sales"}, {"c2"}),
        ({"namespace": "portal"}, {"c3"}),
        ({"namespace": "nowhere"}, {"c1", "c2", "c3"}),
        ({"instance": "two"}, {"c3"}),
        ({"after": "no place"}, {"c1", "c2", "c3"}),
        ({"order": "behind"}, {"c1", "c2", "c3"}),
    ],
)
def test_connections_are_searched_by_user_room_namespace_and_instance(
    admin_client: Client, system: System, query: dict[str, str], found: set[str]
):
    system.hold("one", person(1))
    system.hold("one", Connection("c2", ("hub", "8"), Principal("Bia"), 5.0, {"presence:sales": 1}))
    system.hold("two", Connection("c3", ("portal", "9"), Principal("Carla", "customer"), 4.0, {"user:9": 1}))
    assert set(ids(admin_client.get(reverse(CONNECTIONS), query))) == found


def test_those_furthest_behind_come_first_when_asked_for(admin_client: Client, system: System):
    system.hold("one", person(1), person(2))
    system.hold("two", Connection("slow", ("hub", "8"), Principal("Bia"), 1.0, {}, 300_000))
    page = admin_client.get(reverse(CONNECTIONS), {"order": "behind"})
    assert ids(page)[0] == "slow"
    assert "293.0" in page.content.decode()


def test_a_connection_is_shown_with_its_rooms_and_how_far_behind_it_is(admin_client: Client, system: System):
    system.hold("two", person(1))
    page = admin_client.get(reverse("admin:presence_live_connection", args=["c1"])).content.decode()
    assert "2.5 s" in page
    assert "up to date" in page
    assert "pod-b:22" in page
    assert reverse(MOVE[0], args=MOVE[1:]) in page
    assert reverse(DISCONNECT[0], args=DISCONNECT[1:]) in page


def test_connection_that_is_over_is_not_found_unless_an_instance_did_not_answer(
    admin_client: Client, system: System
):
    url = reverse("admin:presence_live_connection", args=["gone"])
    ended = admin_client.get(url)
    assert ended.status_code == 404
    assert "This connection has ended. Show all" in text_of(ended)
    system.silent.append(ONE)
    page = admin_client.get(url)
    assert page.status_code == 200
    assert "None of the instances that answered has this connection." in page.content.decode()


def test_names_cannot_do_anything_to_the_page(admin_client: Client, system: System):
    system.hold("one", person(1, name="<script>alert(1)</script>"))
    for url in (reverse(CONNECTIONS), reverse("admin:presence_live_connection", args=["c1"])):
        page = admin_client.get(url).content.decode()
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


# --- Instances and rooms ---------------------------------------------------------------------------


def test_instances_are_shown_with_load_and_lag(admin_client: Client, system: System):
    system.hold("one", *CROWD[:30])
    page = admin_client.get(reverse(INSTANCES))
    first, second = page.context["rows"]
    assert (first["connections"], second["connections"]) == ([27, 3], [0, 0])
    assert round(first["answered"], 1) == 4.0  # without what was waited for on purpose
    text = page.content.decode()
    for told in ("pod-a:11", "pod-b:22", "serving", "draining", "25 %"):
        assert told in text
    assert reverse("admin:presence_live_drain", args=["one"]) in text
    assert reverse("admin:presence_live_drain", args=["two"]) not in text  # it drains already


@pytest.mark.parametrize("page", [CONNECTIONS, INSTANCES, ROOMS])
def test_who_does_not_answer_is_named_on_every_page(admin_client: Client, system: System, page: str):
    system.silent += [
        Instance("x", "pod-c", 33, "0.1.0", 1.0, silent_since=1e9),
        Instance("y" * 32, "", 0, "", 0),
    ]
    text = admin_client.get(reverse(page)).content.decode()
    assert "2 instances do not answer" in text
    assert "pod-c:33" in text
    assert "2001-09-09 01:46:40" in text
    assert "yyyyyyyy<" in text


@pytest.mark.usefixtures("without_redis")
@pytest.mark.parametrize("page", [CONNECTIONS, INSTANCES, ROOMS, "admin:presence_live_connection"])
def test_redis_that_is_down_is_said_and_not_raised(admin_client: Client, page: str):
    url = reverse(page, args=["c1"] if page.endswith("connection") else [])
    response = admin_client.get(url)
    assert response.status_code == 200
    assert "Redis does not answer: what is connected right now is unknown." in text_of(response)
    assert "No " not in text_of(response).partition("is unknown.")[2]


def test_rooms_are_listed_by_size_and_paged(admin_client: Client, system: System):
    system.hold("one", *CROWD)
    page = admin_client.get(reverse(ROOMS))
    assert page.context["rows"][0][:3] == ("hub", "presence:attendants", 9000)
    assert len(page.context["rows"]) == 50
    second = admin_client.get(reverse(ROOMS) + page.context["next"])
    assert (second.context["first"], second.context["last"]) == (51, 100)
    assert "p=1" in second.context["previous"]
    assert not {row[1] for row in page.context["rows"]} & {row[1] for row in second.context["rows"]}
    named = admin_client.get(reverse(ROOMS), {"q": "thread:499", "p": "nonsense"})
    assert [row[:3] for row in named.context["rows"]] == [("hub", "thread:499", 20)]


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 9, "-1", "0", "x", "٣"])
def test_odd_number_of_a_page_is_no_error(admin_client: Client, system: System, text: str):
    system.hold("one", *CROWD[:60])
    for page in (ROOMS, LOG, CONNECTIONS):
        assert admin_client.get(reverse(page), {"p": text}).status_code == 200


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, '{"a":' * 5000, "\ud800", "[1", "9" * 5000, "\x00"],
    ids=["1", "2", "3", "4", "5", "6"],
)
def test_odd_place_in_an_address_is_no_error(admin_client: Client, system: System, text: str):
    system.hold("one", *CROWD[:60])
    for name in ("after", "before"):
        query = urlencode({name: text}, errors="surrogatepass")
        assert admin_client.get(f"{reverse(CONNECTIONS)}?{query}").status_code == 200


# --- What a strict Content-Security-Policy wants -------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "presence/templates").rglob("*.html")), ids=lambda path: path.name
)
def test_templates_have_neither_script_nor_style_of_their_own(path: Path):
    for forbidden in ("style=", "<style", "<script", "javascript:", " onclick", " onchange", "|safe"):
        assert forbidden not in path.read_text().replace('<script src="{% static', "")
