"""The benchmark, with numbers too small to mean anything: does it run, count, and say so?"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import capacity, mixed, overhead
from bench.context import QUICK, Context, Outcome
from bench.profiling import summary
from bench.report import number
from bench.wires import Centrifuge, Kind, Ours, Refused, Seen, SocketIO, User
from tests.e2e.harness import ROOT, python


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    command = ["-m", "bench", "--quick", "--runs", "1", "--peers", "ours", "--output", str(folder)]
    done = python(*command)
    assert done.returncode == 0, done.stderr
    assert (folder / "table.md").read_text() == done.stdout
    assert (folder / "chart.svg").read_text().startswith("<svg")
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


@pytest.mark.slow
def test_every_scenario_is_measured_and_complete(results: dict[str, Any]) -> None:
    assert results["complete"]
    assert [run["scenario"] for run in results["runs"]] == list("abcdefghij")
    for run in results["runs"]:
        assert run["complete"], run
        assert run["expected"] > 0
        assert run["metrics"]
        assert all(value is not None and value >= 0 for value in run["metrics"].values()), run


@pytest.mark.slow
def test_results_say_where_and_when_they_are_from(results: dict[str, Any]) -> None:
    assert results["at"]
    assert results["machine"]["cpu"]
    assert results["machine"]["cores"] >= 1


def test_a_peer_that_loses_a_message_fails_the_benchmark(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from bench.context import Sizes
    from bench.report import Report, Run

    report = Report(datetime.now(UTC), {"cpu": "", "cores": 2, "python": "", "node": ""}, Sizes(), ["ours"])
    report.runs.append(Run("a", "ours", 0, Outcome({"deliveries_per_cpu_second": 1.0}, 100, missing=1)))
    assert not report.complete
    assert "1, 0" in report.markdown()


def test_table_divides_our_figures_by_those_of_both_yardsticks() -> None:
    from datetime import UTC, datetime

    from bench.context import Sizes
    from bench.report import Report, Run

    machine = {"cpu": "", "cores": 2, "python": "", "node": ""}
    report = Report(datetime.now(UTC), machine, Sizes(), ["ours", "socketio", "centrifuge"])
    for peer, cost in (("ours", 3.0), ("socketio", 4.0), ("centrifuge", 2.0)):
        report.runs.append(Run("c", peer, 0, Outcome({"cpu_us_per_event": cost})))
    row = "| CPU per event | 3.00 µs | 4.00 µs | 2.00 µs | 0.75 | 1.50 | ≤ 0.85 / ≤ 0.6 of both |"
    assert row in report.markdown()
    lines = [line for line in report.markdown().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_what_was_measured_before_is_kept_but_for_what_is_measured_anew(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from bench.context import Sizes
    from bench.report import Report, Run

    machine = {"cpu": "", "cores": 2, "python": "", "node": ""}
    before = Report(datetime.now(UTC), machine, Sizes(), ["ours", "socketio"])
    for peer in before.peers:
        before.runs.append(Run("a", peer, 0, Outcome({"deliveries_per_cpu_second": float("inf")})))
    before.write(tmp_path)

    now = Report(datetime.now(UTC), machine, Sizes(), ["channels-daphne", "ours"])
    now.add(tmp_path / "results.json")
    now.forget("a", "ours")
    assert now.peers == ["ours", "socketio", "channels-daphne"]
    assert [(run.peer, run.outcome.metrics) for run in now.runs] == [
        ("socketio", {"deliveries_per_cpu_second": float("inf")})
    ]

    elsewhere = Report(datetime.now(UTC), machine | {"cpu": "another"}, Sizes(), ["ours"])
    with pytest.raises(ValueError, match="another machine"):
        elsewhere.add(tmp_path / "results.json")


def test_socket_io_is_spoken_to_the_end() -> None:
    user, wire = User("7", "token", "42"), SocketIO()
    assert wire.receive(b"2", user, None)[1] == b"3"
    assert wire.receive(b'0{"sid":"x"}', user, None)[1] == b'40{"token": "token"}'
    with pytest.raises(Refused):
        wire.receive(b'44{"message":"jwt malformed"}', user, None)


def test_centrifuge_is_spoken_to_several_messages_in_a_frame_and_pings():
    user, wire = User("user-7", "token", "42", "g1"), Centrifuge()
    frame = b'{"push":{"channel":"thread:42","pub":{"data":{"typing":true},"info":{"user":"%s"}}}}\n{}'
    pushed, ping = wire.messages(frame % b"user-8")
    assert wire.receive(pushed, user, None) == (Kind.EVENT, None)
    assert wire.receive(ping, user, None) == (Kind.NOISE, b"{}")
    own, _ = wire.messages(frame % b"user-7")
    assert wire.receive(own, user, None) == (Kind.NOISE, None)
    found = wire.typed.search(pushed)
    assert found
    assert (found["user"], found["state"]) == (b"user-8", b"true")


@pytest.mark.parametrize(
    "answer",
    [
        b'{"id":1,"error":{"code":109,"message":"token expired"}}',
        b'{"id":2,"subscribe":{"recoverable":true,"epoch":"e","was_recovering":true}}',
        b'{"push":{"disconnect":{"code":3500,"reason":"invalid token"}}}',
    ],
)
def test_refusal_of_centrifuge_is_noticed(answer: bytes):
    with pytest.raises(Refused):
        Centrifuge().receive(answer, User("7", "token", "42"), None)


POSITIONS = [
    (
        Ours(),
        Seen(message=b'{"event":"thread:message","room":"thread:42","offset":"12","data":{}}'),
        b'"thread:42": "12"',
    ),
    (
        Centrifuge(),
        Seen(
            answer=b'{"id":2,"subscribe":{"epoch":"abc"}}',
            message=b'{"push":{"channel":"thread:42","pub":{"data":{},"offset":5}}}',
        ),
        b'"recover":true,"epoch":"abc","offset":5',
    ),
]


@pytest.mark.parametrize(("wire", "seen", "asked"), POSITIONS)
def test_client_that_comes_back_asks_for_what_it_missed(wire: Any, seen: Seen, asked: bytes):
    user = User("7", "token", "42")
    assert asked in wire.recovery(user, wire.position(user, seen))


def test_client_of_socket_io_knows_the_newest_offset():
    event = '42["%s",{},"%s"]'
    seen = Seen(
        hello=b'40{"sid":"s","pid":"p"}',
        message=(event % ("thread:message", "1700000000000-9")).encode(),
        typing=(event % ("thread:typing", "1700000000000-10")).encode(),
    )
    position = SocketIO().position(User("7", "token", "42"), seen)
    assert (position.session, position.offsets) == ("p", {"": "1700000000000-10"})


# --- The mixed day -----------------------------------------------------------------------------------


class Received:
    """What one connection of a client has received."""

    def __init__(self, sequences: Iterable[int], signals: Iterable[tuple[str, str, int]] = ()) -> None:
        self.sequences, self.signals, self.closed = [*sequences], [*signals], False


def day_of(*lives: list[Received], typed_at: int = 5) -> Outcome:
    """Check a day with one thread: the first client has typed, and message 1 was published."""
    outcome = Outcome()
    context: Any = SimpleNamespace(peer=SimpleNamespace(wire=Ours()), sizes=replace(QUICK, mixed_threads=1))
    context.outcome, context.count = outcome, partial(Context.count, SimpleNamespace(outcome=outcome))
    clients = []
    for place, connections in enumerate(lives):
        client = mixed.Client(User(f"u{place}", "", "t0", "" if place else "g"), place, list(connections))  # type: ignore[arg-type]
        client.live = [[0, 10], [20, math.inf]] if len(connections) == 2 else [[0, math.inf]]
        clients.append(client)
    day = mixed.Day(context, SimpleNamespace(), clients, SimpleNamespace())  # type: ignore[arg-type]
    day.sent[1] = 1
    day.typing.sent["u0", "true"].append(typed_at)
    day.check()
    return outcome


TYPED = ("u0", "true", 6)


def test_mixed_day_is_complete_over_both_connections_of_a_client():
    outcome = day_of([Received([0, 1])], [Received([0], [TYPED]), Received([1])])
    assert (outcome.expected, outcome.missing, outcome.doubled, outcome.notes) == (4, 0, 0, [])


def test_mixed_day_notices_what_was_lost_or_came_again_after_the_client_was_back():
    outcome = day_of([Received([0, 1])], [Received([0]), Received([0])])
    assert (outcome.missing, outcome.doubled) == (1, 1)


def test_typing_must_reach_a_client_that_stays_and_no_client_twice():
    assert day_of([Received([0, 1])], [Received([0, 1])]).missing == 1
    assert day_of([Received([0, 1])], [Received([0, 1], [TYPED, TYPED])]).doubled == 1
    assert day_of([Received([0, 1])], [Received([0], []), Received([1], [])]).missing == 0


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.01234, 1.2345, 12345.6, float("inf"))] == [
        "0.0123",
        "1.23",
        "12,346",
        "∞",
    ]


def test_profile_counts_functions_not_lines() -> None:
    assert "100.0%  send (a.py)" in summary("main (m.py:1);send (a.py:1) 1\nmain (m.py:1);send (a.py:2) 3\n")


@pytest.mark.slow
def test_memory_of_redis_is_measured_for_all_that_the_page_lists() -> None:
    done = python("-m", "bench.memory", "--count", "40")
    assert done.returncode == 0, done.stderr
    measured = re.findall(r"(?m)^\| (.+) \| ([\d,]+) \|$", done.stdout)
    assert len(measured) == 10
    page = (ROOT / "docs" / "deployment.md").read_text()
    listed = dict(re.findall(r"(?m)^\| (.+) \| ([\d,]+) \|$", page))
    for name, text in measured:
        there, here = (int(each.replace(",", "")) for each in (listed[name], text))
        assert there / 2 < here < there * 2, name


# --- What metrics cost -------------------------------------------------------------------------------


async def test_overhead_is_measured_on_what_clients_receive(realtime_redis: str, monkeypatch):
    monkeypatch.setattr(overhead, "ROUNDS", 3)
    said: list[str] = []
    received: list[bytes] = []
    monkeypatch.setattr(
        overhead.Wires, "drain", lambda self: received.extend(p.recv(1 << 20) for p in self.peers)
    )
    before = overhead.tally
    await overhead.compare(overhead.Case("a few", rooms=2, connections=3, together=2, repeat=1), said.append)
    assert len(said) == 1
    assert len(received) == 2 * 3 * 2 * 4
    assert all(frames.count(b'"event":"thread:message"') == 2 for frames in received)
    assert overhead.fanout.tally is before


@pytest.mark.usefixtures("process")
async def test_what_a_publication_costs_redis_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(capacity, "PUBLICATIONS", 200)
    monkeypatch.setattr(capacity, "ROOMS", 20)
    await capacity.measure([], 1)
    table = capsys.readouterr().out
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 1 + len(capacity.KINDS)
    assert "Keeping a publication" in table
