"""What a process tells about 10,000 connections: the right ones, a page at a time, and little of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from realtime.survey import load, results
from realtime.survey.messages import AboutConnections, AboutRooms, Answer, Instance, Result, Survey

COUNT = 10_000


@dataclass
class Principal:
    name: str
    role: str = "attendant"


@dataclass
class Connection:
    connection_id: str
    user: tuple[str, str]
    principal: Any
    opened_at: float
    rooms: dict[str, int] = field(default_factory=dict)
    unsent: int | None = 0


def crowd(count: int = COUNT) -> list[Connection]:
    """Every tenth a customer; thread n % 500, and the whole team in one group; in no order of time."""
    made = []
    for number in range(count):
        namespace = "portal" if number % 10 == 0 else "hub"
        user = f"u{number}"
        rooms = {f"user:{user}": 1, f"thread:{number % 500}": 1}
        if namespace == "hub":
            rooms["presence:attendants"] = 1
        made.append(
            Connection(
                connection_id=f"{number:032x}",
                user=(namespace, user),
                principal=Principal(f"Name {number} Ção"),
                opened_at=1e9 + (number * 7919) % count,
                rooms=rooms,
                unsent=number if number % 1000 == 0 else 0,
            )
        )
    return made


CROWD = crowd()


def size(said: Result) -> int:
    """Bytes of an answer on its way."""
    instance = Instance("x" * 32, "host-name-of-a-pod-7d9f8", 12345, "0.1.0", 1e9)
    return len(msgspec.msgpack.encode(Answer(instance, said)))


async def test_a_page_costs_what_it_shows_and_nothing_more():
    small, large = [await results.page(AboutConnections(), each) for each in (CROWD[:100], CROWD)]
    assert (large.total, len(large.rows)) == (COUNT, 50)
    assert abs(size(large) - size(small)) < 1000
    assert size(large) < 15_000
    assert large.namespaces == {"hub": 9000, "portal": 1000}


async def test_no_answer_has_more_than_200_rows_whatever_is_asked_for():
    assert len((await results.page(AboutConnections(limit=COUNT), CROWD)).rows) == 200
    listed = await results.rooms(AboutRooms(limit=COUNT, personal=True), CROWD)
    assert (listed.total, len(listed.sizes)) == (COUNT + 501, 200)


@pytest.mark.parametrize("behind_first", [False, True])
async def test_pages_show_all_users_once_in_order_there_and_back(behind_first: bool):
    about = AboutConnections(behind_first=behind_first, limit=200)
    pages = [await results.page(about, CROWD)]
    while pages[-1].rows and pages[-1].before + len(pages[-1].rows) < pages[-1].total:
        about = msgspec.structs.replace(about, origin=pages[-1].rows[-1].place)
        pages.append(await results.page(about, CROWD))
    assert [page.before for page in pages] == list(range(0, COUNT, 200))
    places = [row.place for page in pages for row in page.rows]
    assert places == sorted(set(places))
    assert len(places) == COUNT
    back = msgspec.structs.replace(about, origin=pages[5].rows[0].place, backwards=True)
    assert await results.page(back, CROWD) == pages[4]
    begin = msgspec.structs.replace(about, origin=pages[0].rows[0].place, backwards=True)
    assert await results.page(begin, CROWD) == msgspec.structs.replace(pages[0], before=0, rows=[])


async def test_newest_come_first():
    opened = [row.opened_at for row in (await results.page(AboutConnections(), CROWD)).rows]
    assert opened == sorted((each.opened_at for each in CROWD), reverse=True)[:50]


async def test_connections_that_read_too_slowly_come_first_when_asked_for():
    rows = (await results.page(AboutConnections(behind_first=True, limit=10), CROWD)).rows
    assert [row.unsent for row in rows] == [9000, 8000, 7000, 6000, 5000, 4000, 3000, 2000, 1000, 0]


@pytest.mark.parametrize(
    ("about", "fits"),
    [
        (AboutConnections(search="U777"), lambda each: "u777" in each.user[1]),
        (AboutConnections(search="name 12 ção"), lambda each: each.user[1] == "u12"),
        (AboutConnections(user_id="u77"), lambda each: each.user[1] == "u77"),
        (AboutConnections(room="thread:42"), lambda each: "thread:42" in each.rooms),
        (AboutConnections(namespace="portal"), lambda each: each.user[0] == "portal"),
        (
            AboutConnections(namespace="portal", room="thread:20", search="1"),
            lambda each: each.user[0] == "portal" and "thread:20" in each.rooms and "1" in each.user[1],
        ),
        (AboutConnections(user_id="nobody"), lambda each: False),
    ],
)
async def test_connections_are_found_by_user_room_and_namespace(about: AboutConnections, fits: Any):
    page = await results.page(msgspec.structs.replace(about, limit=200), CROWD)
    expected = {each.connection_id for each in CROWD if fits(each)}
    assert page.total == len(expected)
    assert {row.connection_id for row in page.rows} <= expected
    assert len(page.rows) == min(len(expected), 200)


async def test_a_row_names_a_few_rooms_and_counts_all():
    crowded = Connection("c", ("hub", "7"), Principal("Ana"), 1.0, {f"thread:{n}": 0 for n in range(150)})
    crowded.rooms["user:7"] = 0
    row = results.row(crowded)
    assert (row.rooms, row.threads) == (151, ["thread:0", "thread:1", "thread:2"])


async def test_largest_rooms_come_first_and_personal_ones_only_when_asked_for():
    told = await results.rooms(AboutRooms(limit=5), CROWD)
    assert told.sizes[0] == ("hub", "presence:attendants", COUNT * 9 // 10)
    assert told.total == 501  # a tenth of the threads has customers, and those have no member of the team
    assert not any(room.startswith("user:") for _, room, _ in told.sizes)
    counted = Counter((each.user[0], room) for each in CROWD for room in each.rooms)
    for namespace, room, connections in told.sizes:
        assert counted[namespace, room] == connections


async def test_rooms_are_found_by_name_and_namespace():
    told = await results.rooms(AboutRooms(search="THREAD:49", namespace="portal"), CROWD)
    assert {room for _, room, _ in told.sizes} == {"thread:490"}
    told = await results.rooms(AboutRooms(search="user:u77", personal=True), CROWD)
    assert told.total == 111


async def test_named_rooms_are_told_whatever_their_size():
    named = [("hub", "user:u1"), ("portal", "user:u1"), ("hub", "thread:1")]
    told = await results.rooms(AboutRooms(named=named, personal=True), CROWD)
    assert told.sizes == [("hub", "thread:1", 20), ("hub", "user:u1", 1)]


async def test_load_counts_connections_and_what_waits():
    found = await load.load(CROWD, cpu=0.25, stall=0.001)
    assert found.connections == {"hub": 9000, "portal": 1000}
    assert (found.behind, found.unsent, found.rooms) == (9, 45_000, COUNT + 501)
    assert found.memory > 1_000_000


async def test_cpu_is_measured_since_the_last_question():
    meter = load.Meter()
    sum(range(1_000_000))
    first = meter.read()
    assert 0 < first < 2
    assert 0 <= meter.read() < 2


async def test_survey_survives_the_way_through_the_channel_layer():
    survey = Survey("q", AboutConnections(origin=(-1, -2.5, "c"), backwards=True), "i")
    assert msgspec.convert(msgspec.to_builtins(survey), Survey) == survey
