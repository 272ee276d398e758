"""Hours a day of each attendant: the pages and CSV."""

from __future__ import annotations

import csv
import io
from datetime import date
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import AsyncClient, Client
from django.urls import reverse
from django.utils import timezone

from presence.admin.availability import chart, harmless
from presence.admin.hours import Hours, days
from presence.models import PresenceRecord, PresenceTransition
from realtime import paging
from tests.operators import operator
from tests.presence.support import CSV, PEOPLE, PERSON, at, attend, transitions

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]


# --- Pages -------------------------------------------------------------------------------------------


def test_table_that_is_longer_than_what_is_counted_says_so(admin_client: Client, monkeypatch, realtime_redis):
    monkeypatch.setattr(paging, "MOST", 3)
    for user in range(4):
        attend(f"u{user}", [(at("2026-03-02T09:00"), "online")])
    for name, counted in (
        (PEOPLE, "3 attendants"),
        ("admin:presence_presencerecord_changelist", "3 presence records"),
        ("admin:presence_presencetransition_changelist", "3 presence history"),
    ):
        text = " ".join(admin_client.get(reverse(name)).content.decode().split())
        assert "Only the first 3 are counted and listed" in text, name
        assert counted in text
        PresenceRecord.objects.filter(user_id="u3").delete()
        PresenceTransition.objects.filter(user_id="u3").delete()
        text = " ".join(admin_client.get(reverse(name)).content.decode().split())
        assert "are counted and listed" not in text, name
        attend("u3", [(at("2026-03-02T09:00"), "online")])


@pytest.mark.parametrize("zone", ["UTC", "America/Sao_Paulo"])
def test_history_of_one_day_begins_at_its_midnight(admin_client: Client, settings, zone: str):
    settings.TIME_ZONE = zone
    attend("7", [(at("2026-03-02T02:59"), "online"), (at("2026-03-02T03:00"), "offline")])
    url = reverse("admin:presence_presencetransition_changelist")
    found = admin_client.get(url, {"day": "2026-03-02"}).context["cl"].result_list
    assert len(found) == (2 if zone == "UTC" else 1)
    for wrong in ("nonsense", "2026-02-30", "0001-01-01", "9999-12-31", "\x00"):
        assert admin_client.get(url, {"day": wrong}).status_code in {200, 302}


def test_all_users_are_shown_with_their_hours_by_name_and_paged(admin_client: Client):
    attend("z", [(at("2026-03-02T09:00"), "online"), (at("2026-03-02T10:15"), "offline")], name="Ana")
    for number in range(30):
        attend(f"u{number}", [], name=f"Bia {number:02}")
    attend("customer", [(at("2026-03-02T09:00"), "online")], namespace="portal")
    query = {"begin": "2026-03-01", "end": "2026-03-07"}
    page = admin_client.get(reverse(PEOPLE), query)
    names = [person.name for person, *_ in page.context["rows"]]
    assert names == ["Ana", *(f"Bia {number:02}" for number in range(24))]
    assert page.context["rows"][0][1] == "1 h 15 min"
    text = page.content.decode()
    assert "31 attendants" in text
    second = admin_client.get(reverse(PEOPLE) + page.context["next"])
    assert len(second.context["rows"]) == 6
    assert "begin=2026-03-01" in second.context["previous"]
    searched = admin_client.get(reverse(PEOPLE), {**query, "q": "ana"})
    assert [person.user_id for person, *_ in searched.context["rows"]] == ["z"]


def test_person_is_shown_with_a_chart_that_needs_no_script_and_no_style(admin_client: Client):
    attend("7", [(at("2026-03-02T09:00"), "online"), (at("2026-03-02T13:00"), "away")], name="Ana")
    attend("8", [])
    page = admin_client.get(reverse(PERSON, args=["7"]), {"begin": "2026-03-02", "end": "2026-03-02"})
    text = page.content.decode()
    svg = text[text.index('<svg class="presence-chart"') :].partition("</svg>")[0]
    assert "2026-03-02: online 4 h 0 min, away 11 h 0 min" in svg
    assert "style=" not in svg
    assert "<script" not in svg
    assert svg.count("<rect") == 2
    assert admin_client.get(reverse(PERSON, args=["unknown"])).status_code == 404
    assert admin_client.get(reverse(PERSON, args=["8"])).status_code == 200


def test_last_two_weeks_are_shown_when_nothing_is_asked_for(admin_client: Client):
    attend("7", [])
    page = admin_client.get(reverse(PERSON, args=["7"]))
    assert len(page.context["chart"].bars) == 14
    assert page.context["form"].days[-1].date == timezone.localdate()


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        ("2026-03-02", "2026-03-01", "The last day is before the first."),
        ("2026-01-01", "2026-12-31", "Choose at most 92 days."),
        ("nonsense", "2026-03-01", "Enter a valid date."),
    ],
)
def test_span_that_cannot_be_shown_is_refused(admin_client: Client, begin: str, end: str, said: str):
    attend("7", [(at("2026-03-02T09:00"), "online")])
    query = {"begin": begin, "end": end}
    for url in (reverse(PEOPLE), reverse(PERSON, args=["7"])):
        page = admin_client.get(url, query)
        assert page.status_code == 200
        assert said in page.content.decode()
    assert admin_client.get(reverse(CSV), query).status_code == 400


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Sao_Paulo"])
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        *(("9999-12-31", "9999-12-31"), ("9999-12-30", "9999-12-31"), ("9999-12-31", ""), ("", "9999-12-31")),
        *(("0001-01-01", "0001-01-01"), ("0001-01-01", "9999-12-31"), ("9999-12-31", "0001-01-01")),
        *(("1899-12-31", "1900-01-01"), ("9998-12-31", "9999-01-01"), ("1900-01-01", "9998-12-31")),
        *(
            ("0000-01-01", "10000-01-01"),
            ("9" * 5000, "\x00"),
            ("2026-02-30", "2026-13-01"),
            ("-1-01-01", "\ud800"),
        ),
    ],
)
def test_days_at_the_ends_of_the_calendar_are_refused(
    admin_client: Client, settings, begin: str, end: str, zone: str
):
    attend("7", [(at("2026-03-02T09:00"), "online")])
    settings.TIME_ZONE = zone
    query = urlencode({"begin": begin, "end": end}, errors="surrogatepass")
    for url in (reverse(PEOPLE), reverse(PERSON, args=["7"])):
        page = admin_client.get(f"{url}?{query}")
        assert page.status_code == 200
        assert "errorlist" in page.content.decode()
    assert admin_client.get(f"{reverse(CSV)}?{query}").status_code == 400


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Sao_Paulo"])
@pytest.mark.parametrize("day", ["1900-01-01", "1969-12-31", "2400-02-29", "9998-12-31"])
def test_first_and_last_day_that_are_taken_can_be_shown(admin_client: Client, settings, day: str, zone: str):
    attend("7", [(at("2026-03-02T09:00"), "online")])
    settings.TIME_ZONE = zone
    for url in (reverse(PEOPLE), reverse(PERSON, args=["7"])):
        page = admin_client.get(url, {"begin": day, "end": day})
        assert page.status_code == 200
        assert "errorlist" not in page.content.decode()
    assert len(exported(b"".join(admin_client.get(reverse(CSV), {"begin": day, "end": day})))) == 1


@pytest.mark.parametrize("user", ["\x00", "a b", "x" * 65, "é", "../7"])
def test_user_that_is_none_is_not_found(admin_client: Client, user: str):
    span = {"begin": "2026-03-01", "end": "2026-03-01"}
    assert admin_client.get(reverse(CSV), {**span, "user": user}).status_code == 404
    assert admin_client.get(f"{reverse(PEOPLE)}{quote(user, safe='')}/", span).status_code == 404


def test_it_wants_a_permission_of_its_own(client: Client):
    attend("7", [])
    urls = [reverse(PEOPLE), reverse(PERSON, args=["7"]), reverse(CSV)]
    operator(client, "view_presencetransition", "view_presencerecord")
    assert [client.get(url).status_code for url in urls] == [403] * 3
    operator(client, "view_availability")
    assert [client.get(url).status_code for url in urls] == [200] * 3


def test_attendants_have_one_order_in_the_list_and_in_csv_whatever_the_case(admin_client: Client):
    for user, name in (("3", "bia"), ("1", "Caio"), ("2", "Ana"), ("5", ""), ("4", "ana")):
        PresenceRecord.objects.create(
            namespace="hub",
            user_id=user,
            name=name,
            status="online",
            since=at("2026-03-02"),
            updated=at("2026-03-02"),
        )
        PresenceTransition.objects.bulk_create(transitions(user, [(at("2026-03-02T09:00"), "online")]))
    query = {"begin": "2026-03-02", "end": "2026-03-03"}
    expected = ["5", "2", "4", "3", "1"]
    page = admin_client.get(reverse(PEOPLE), query)
    assert [person.user_id for person, *_ in page.context["rows"]] == expected
    lines = exported(b"".join(admin_client.get(reverse(CSV), query)))[1:]
    assert [line[1] for line in lines] == [user for user in expected for _ in range(2)]


def test_days_of_a_person_are_in_one_order_in_chart_table_and_csv(admin_client: Client):
    attend("7", [(at("2026-03-02T09:00"), "online"), (at("2026-03-04T10:00"), "offline")])
    query = {"begin": "2026-03-01", "end": "2026-03-05"}
    page = admin_client.get(reverse(PERSON, args=["7"]), query)
    drawn = [bar.title[:10] for bar in page.context["chart"].bars if bar.online]
    assert drawn == ["2026-03-02", "2026-03-03", "2026-03-04"]
    assert [str(day) for day, *_ in page.context["table"]] == drawn
    lines = exported(b"".join(admin_client.get(reverse(CSV), {**query, "user": "7"})))[1:]
    assert [line[0] for line in lines] == drawn


def test_small_charts_share_the_scale_of_the_longest_day_shown(admin_client: Client):
    attend("7", [(at("2026-03-02T09:00"), "online"), (at("2026-03-02T13:00"), "offline")], name="Ana")
    attend("8", [(at("2026-03-02T09:00"), "online"), (at("2026-03-02T10:00"), "away"),
                 (at("2026-03-02T11:00"), "offline")], name="Bia")  # fmt: skip
    page = admin_client.get(reverse(PEOPLE), {"begin": "2026-03-01", "end": "2026-03-03"})
    longest, other = (row[3].bars[1] for row in page.context["rows"])
    assert (longest.online, longest.online_y) == (28, 0)
    assert (other.online, other.away) == (7, 7)
    assert "By day, up to 4 h 0 min" in page.content.decode()


def test_minute_of_presence_is_no_day_without(admin_client: Client):
    attend("7", [(at("2026-03-02T09:00"), "online"), (at("2026-03-02T09:00:20"), "offline")])
    page = admin_client.get(reverse(PERSON, args=["7"]), {"begin": "2026-03-02", "end": "2026-03-03"})
    bar, empty = page.context["chart"].bars
    assert (bar.online, empty.online) == (1, 0)
    assert page.context["table"][0][1:] == ("< 1 min", "0 min")


def test_pages_name_the_time_zone_of_their_days(admin_client: Client, settings):
    settings.TIME_ZONE = "America/Sao_Paulo"
    attend("7", [])
    for url in (reverse(PEOPLE), reverse(PERSON, args=["7"])):
        assert "Days and hours in America/Sao_Paulo" in admin_client.get(url).content.decode()


def test_empty_list_says_what_was_searched(admin_client: Client):
    assert "No attendant has been recorded yet." in admin_client.get(reverse(PEOPLE)).content.decode()
    page = admin_client.get(reverse(PEOPLE), {"q": "<ana>"}).content.decode()
    assert "No attendant has “&lt;ana&gt;” in the name or the id." in page
    attend("7", [])
    page = admin_client.get(reverse(PERSON, args=["7"])).content.decode()
    assert "This attendant was neither online nor away on these days." in page


# --- Chart -------------------------------------------------------------------------------------------


def test_bars_stand_on_the_base_and_above_each_other():
    over = days(date(2026, 3, 1), date(2026, 3, 2))
    drawn = chart(over, [Hours(2 * 3600, 3600), Hours()])
    first, second = drawn.bars
    assert first.online_y + first.online == drawn.base
    assert first.away_y + first.away == first.online_y
    assert first.online == 2 * first.away
    assert (second.online, second.away) == (0, 0)
    assert [label for _, label in drawn.lines] == ["0 h", "1 h", "2 h", "3 h", "4 h"]


def test_day_of_25_hours_does_not_stick_out():
    [day] = days(date(2026, 3, 1), date(2026, 3, 1))
    drawn = chart([day], [Hours(25 * 3600)])
    assert drawn.bars[0].online_y >= 0
    assert drawn.lines[-1][1] == "25 h"


def test_long_spans_are_labelled_now_and_then():
    over = days(date(2026, 1, 1), date(2026, 4, 2))
    labels = [bar.label for bar in chart(over, [Hours()] * len(over)).bars]
    assert labels[:4] == ["1", "", "", "4"]


# --- CSV ---------------------------------------------------------------------------------------------


def exported(content: bytes) -> list[list[str]]:
    return [*csv.reader(io.StringIO(content.decode()))]


def test_csv_has_a_line_for_each_day_on_which_a_user_was_there(admin_client: Client):
    attend(
        "7", [(at("2026-03-02T23:00"), "online"), (at("2026-03-03T00:30"), "offline")], name='Ana "A", Lima'
    )
    attend("8", [(at("2026-03-02T09:00"), "away"), (at("2026-03-02T09:00:59"), "offline")], name="=SUM(A1)")
    attend("9", [])
    response = admin_client.get(reverse(CSV), {"begin": "2026-03-01", "end": "2026-03-07"})
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert 'filename="presence-2026-03-01-2026-03-07.csv"' in response.headers["Content-Disposition"]
    assert exported(b"".join(response)) == [
        ["date", "user_id", "name", "online_seconds", "away_seconds"],
        ["2026-03-02", "8", "'=SUM(A1)", "0", "59"],
        ["2026-03-02", "7", 'Ana "A", Lima', "3600", "0"],
        ["2026-03-03", "7", 'Ana "A", Lima', "1800", "0"],
    ]
    alone = admin_client.get(reverse(CSV), {"begin": "2026-03-01", "end": "2026-03-07", "user": "7"})
    assert len(exported(b"".join(alone))) == 3


@pytest.mark.django_db(transaction=True)
async def test_csv_is_streamed_by_an_asynchronous_server_as_well(async_client: AsyncClient, admin_user: Any):
    await sync_to_async(attend)(
        "7", [(at("2026-03-02T23:00"), "online"), (at("2026-03-03T00:30"), "offline")]
    )
    await sync_to_async(async_client.force_login)(admin_user)
    response = await async_client.get(reverse(CSV), {"begin": "2026-03-01", "end": "2026-03-07"})
    assert response.is_async
    lines = [line async for line in response]
    assert len(lines) == 3
    await sync_to_async(connections.close_all)()  # those of its thread


@pytest.mark.parametrize("sign", [*"=+-@", *"＝＋－＠", *"﹢﹣﹫⁺⁼₋\N{MINUS SIGN}"])
@pytest.mark.parametrize(
    "before", ["", "\n", "\r", "\t", " ", "\u3000", "\xa0", "\x00", "\u200b", "\ufeff", "\u202e"], ids=ascii
)
def test_spreadsheet_takes_no_name_for_a_formula(before: str, sign: str):
    text = f"{before}{sign}1+1"
    assert harmless(text) == f"'{text}"
    assert harmless(f"a{text}") == f"a{text}"


@pytest.mark.parametrize("text", ["", "Ana", "7", "Émile", "李", "'quoted", "🎈", "_x", "(Ana)"])
def test_other_names_stay_as_they_are(text: str):
    assert harmless(text) == text
