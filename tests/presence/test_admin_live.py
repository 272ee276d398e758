"""The live view: what it asks and shows, what it lets an operator do, and what it writes down."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest.mock import Mock
from urllib.parse import urlencode

import msgspec
import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from msgspec import Meta
from redis.exceptions import RedisError

from presence.admin import live
from presence.admin.samples import sample
from realtime.outbox.models import OutboxMessage
from realtime.protocol.payloads import Payload, parse_payload
from realtime.survey import ask as asking
from realtime.survey import load, results
from realtime.survey.ask import Answered, Asked
from realtime.survey.messages import (
    AboutConnection,
    AboutConnections,
    AboutInstances,
    AboutRooms,
    Detail,
    InRoom,
    Instance,
)
from tests.e2e.harness import ROOT
from tests.operators import logged, operator, published, texts
from tests.survey.test_messages import CROWD, Connection, Principal

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("realtime_redis"),
    pytest.mark.filterwarnings("ignore:No directory at"),
]

PUBLISHES = pytest.mark.django_db(transaction=True)
"""What is published is not held back for a commit."""

ONE = Instance("one", "pod-a", 11, "0.1.0", 1e9)
TWO = Instance("two", "pod-b", 22, "0.1.0", 1e9, is_draining=True)

CONNECTIONS = "admin:presence_live_changelist"
INSTANCES = "admin:presence_live_instances"
ROOMS = "admin:presence_live_rooms"
EVENT = "admin:presence_live_event"
LOG = "admin:presence_live_log"
DISCONNECT = ("admin:presence_live_disconnect", "hub", "7")
MOVE = ("admin:presence_live_move", "hub", "7", "thread:42")
DRAIN = ("admin:presence_live_drain", "one")


class System:
    """Processes with connections, which answer as real ones do."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[Instance, list[Connection]]] = {"one": (ONE, []), "two": (TWO, [])}
        self.silent: list[Instance] = []
        self.asked: list[Any] = []

    def hold(self, instance: str, *connections: Connection) -> None:
        self.held[instance][1].extend(connections)

    def ask(self, about: Any, kind: Any, instance: str = "") -> Asked[Any]:
        self.asked.append(about)
        answers = [
            Answered(who, asyncio.run(self._say(about, held)), 0.025)
            for id, (who, held) in self.held.items()
            if instance in {"", id}
        ]
        return Asked(answers, self.silent)

    async def _say(self, about: Any, held: list[Any]) -> Any:
        match about:
            case AboutConnections():
                return await results.page(about, held)
            case AboutRooms():
                return await results.rooms(about, held)
            case AboutInstances():
                return await load.load(held, cpu=0.25, stall=0.001)
            case AboutConnection():
                for each in held:
                    if each.connection_id == about.connection_id:
                        rooms = [InRoom(room, position, 2_500_001) for room, position in each.rooms.items()]
                        return Detail(results.row(each), ["sales"], 2e9, rooms)
                return Detail()


@pytest.fixture
def system(monkeypatch) -> System:
    system = System()
    monkeypatch.setattr(asking, "ask", system.ask)
    return system


@pytest.fixture
def without_redis(realtime_redis: str, settings) -> None:
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "unix:///nowhere/redis.sock"}


def person(number: int, name: str = "Ana", **rooms: int) -> Connection:
    rooms = {"user:7": 1, "thread:42": 2_500_001, **rooms}
    return Connection(f"c{number}", ("hub", "7"), Principal(name), 1e9 + number, rooms, 0)


def text_of(response: Any) -> str:
    """What a page says, without its tags."""
    body = re.sub(r"<[^>]*>", " ", response.content.decode())
    return re.sub(r"\s+", " ", unescape(body))


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


# --- Test event --------------------------------------------------------------------------------------

MESSAGE = {"event": "thread:message", "payload": '{"thread_id": "42", "message_id": "1"}', "rooms": ""}


@PUBLISHES
def test_event_is_shown_with_where_it_goes_before_it_is_sent(admin_client: Client, system: System):
    system.hold("one", person(1))
    system.hold("two", Connection("c2", ("portal", "9"), Principal("Carla"), 1.0, {"thread:42": 1}))
    page = admin_client.post(reverse(EVENT), MESSAGE).content.decode()
    assert "hub thread:42, portal thread:42" in page
    assert "<dd>2</dd>" in page
    assert (published(), logged()) == ([], [])
    done = admin_client.post(reverse(EVENT), {**MESSAGE, "confirmed": "yes"})
    assert done.status_code == 302
    assert published() == [("thread:message", {"thread_id": "42", "message_id": "1"})]
    assert logged() == [
        (
            "thread:message",
            'Sent: hub thread:42, portal thread:42: {"thread_id": "42", "message_id": "1"}',
        )
    ]


def test_event_is_filled_in_with_what_it_needs_and_is_valid_as_it_is(admin_client: Client, system: System):
    first = admin_client.get(reverse(EVENT))
    names = [name for name, _ in first.context["form"].fields["event"].choices]
    assert {"thread:message", "chat:ended", "queue:updated"} <= {*names}
    assert '{ "thread_id": "1", "message_id": "1" }' in text_of(
        admin_client.get(reverse(EVENT), {"event": "thread:message"})
    )
    for name in names:
        page = admin_client.get(reverse(EVENT), {"event": name})
        filled = page.context["form"].initial
        assert filled["event"] == name
        asked = admin_client.post(reverse(EVENT), {**filled, "rooms": ""})
        assert "Connections there now" in text_of(asked), name
    assert admin_client.get(reverse(EVENT), {"event": "nope"}).context["form"].initial["event"] == names[0]


class Priced(Payload, frozen=True, kw_only=True):
    status: Literal["open", "closed"]
    total: Decimal
    at: datetime
    parts: tuple[int, str]
    lines: Annotated[list[str], Meta(min_length=2)]
    rating: Annotated[int, Meta(ge=3, le=5)]
    code: Annotated[str, Meta(min_length=6)]
    share: float
    parent: Priced | None
    position: msgspec.Raw
    note: str = ""


def test_sample_fits_the_types_of_a_product(settings):
    filled = sample(Priced)
    parse_payload(Priced, filled.encode())
    assert "note" not in json.loads(filled)


def test_event_can_go_to_other_rooms(admin_client: Client, system: System):
    page = admin_client.post(reverse(EVENT), {**MESSAGE, "rooms": "thread:1, user:7"}).content.decode()
    assert "hub thread:1, portal thread:1, hub user:7, portal user:7" in page
    rooms = "presence:E\u0301quipe Sa\u0303o Paulo, presence:sales user:ana@example.com"
    queue = {"event": "queue:updated", "payload": "{}", "rooms": rooms}
    page = admin_client.post(reverse(EVENT), queue).content.decode()
    assert "hub presence:Équipe São Paulo, hub presence:sales, hub user:ana@example.com" in page


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"payload": "{"}, "This is not JSON"),
        ({"payload": "[]"}, "Expected a JSON object."),
        ({"payload": "{}"}, "thread_id: required"),
        ({"payload": "[" * 5000}, "This is not JSON"),
        (
            {"payload": '{"thread_id": "1", "message_id": "1", "x": %s}' % ("[" * 500 + "]" * 500)},
            "levels deep",
        ),
        ({"payload": '{"thread_id": "1", "message_id": "1", "x": [NaN]}'}, "data.x[0]: JSON has neither NaN"),
        ({"rooms": "nonsense"}, "is not a room"),
        ({"event": "thread:typing"}, "Select a valid choice"),
        ({"event": "user:disconnect"}, "Select a valid choice"),
    ],
)
def test_event_that_is_not_valid_is_not_sent(
    admin_client: Client, system: System, changed: dict[str, str], said: str
):
    page = admin_client.post(reverse(EVENT), {**MESSAGE, **changed, "confirmed": "yes"})
    assert page.status_code == 200
    assert said in page.content.decode()
    assert (published(), logged()) == ([], [])


def test_audience_that_cannot_be_counted_keeps_no_operator_from_looking(admin_client: Client, monkeypatch):
    monkeypatch.setattr(asking, "ask", Mock(side_effect=RedisError))
    assert "<dd>–</dd>" in admin_client.post(reverse(EVENT), MESSAGE).content.decode()


# --- What a strict Content-Security-Policy wants -------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "presence/templates").rglob("*.html")), ids=lambda path: path.name
)
def test_templates_have_neither_script_nor_style_of_their_own(path: Path):
    for forbidden in ("style=", "<style", "<script", "javascript:", " onclick", " onchange", "|safe"):
        assert forbidden not in path.read_text().replace('<script src="{% static', "")


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
