"""The benchmark, with numbers too small to mean anything: does it run, count, and say so?"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import capacity, overhead
from bench.profiling import summary
from bench.report import number
from bench.wires import Refused, SocketIO, User
from tests.e2e.harness import ROOT


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    command = ["-m", "bench", "--quick", "--runs", "1", "--peers", "ours", "--output", str(folder)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "table.md").read_text() == done.stdout
    assert (folder / "chart.svg").read_text().startswith("<svg")
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


@pytest.mark.slow
def test_every_scenario_is_measured_and_complete(results: dict[str, Any]) -> None:
    assert results["complete"]
    assert [run["scenario"] for run in results["runs"]] == list("abcdefgh")
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

    from bench.report import Report, Run
    from bench.scenarios import Outcome, Sizes

    report = Report(datetime.now(UTC), {"cpu": "", "cores": 2, "python": "", "node": ""}, Sizes(), ["ours"])
    report.runs.append(Run("a", "ours", 0, Outcome({"deliveries_per_cpu_second": 1.0}, 100, missing=1)))
    assert not report.complete
    assert "1, 0" in report.markdown()


def test_what_was_measured_before_is_kept_but_for_what_is_measured_anew(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from bench.report import Report, Run
    from bench.scenarios import Outcome, Sizes

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
    command = [sys.executable, "-m", "bench.memory", "--count", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
