"""`make attack` in small: it runs, counts and says so, it fails when it must, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import PATIENCE, ROOT, eventually, python
from tests.faults import attack
from tests.faults.attack_report import CALM, SLACK_MIB, Noticed, Report
from tests.faults.pressing import Spent
from tests.faults.world import World

COMMAND = ("-m", "tests.faults.attack")


# --- It runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_floods_run_and_the_ordinary_clients_notice_nothing():
    few = ["--minutes", "0.1", "--people", "8", "--flood", "empty pings", "--flood", "GET /healthz"]
    done = python(*COMMAND, *few)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line for line in lines if " of 2: " in line][2].startswith("2 of 2: GET /healthz")
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    assert [*cells] == ["flood", "---", "nothing", "empty pings", "GET /healthz", "in all"]
    for name in ("nothing", "empty pings", "GET /healthz", "in all"):
        assert cells[name][1:4] == ["0/0", "0", "0"]
    assert cells["nothing"][-1].strip(" |") == "0"
    assert int(cells["empty pings"][-1].strip(" |")) >= 20
    assert float(cells["empty pings"][-2]) >= 10
    assert lines[-1] == "The system held."


@pytest.mark.slow
async def test_interrupted_attack_leaves_nothing_running(tmp_path: Path):
    """By SIGTERM, which does what Ctrl-C does."""
    mark = f"attack-{os.getpid()}"
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *COMMAND, "--minutes", "0.3", "--people", "4", "--flood", "unread pongs"],
            cwd=ROOT,
            env={**os.environ, "MARK": mark},
            stdout=output,
            stderr=output,
        )
    try:
        await eventually(
            lambda: "1 of 1: unread pongs" in (tmp_path / "output").read_text() or process.poll()
        )
        assert len(marked(mark)) >= 4  # it, a Redis, a bridge, a socket server, the attackers
    finally:
        process.terminate()
        code = process.wait(PATIENCE)
    output_text = (tmp_path / "output").read_text()
    assert (code, "Stopped; nothing is left running." in output_text.splitlines()) == (130, True), output_text
    assert "Traceback" not in output_text
    await eventually(lambda: not marked(mark))


def marked(mark: str) -> list[int]:
    """The processes that have it in their environment."""
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"MARK={mark}".encode() in each.read_bytes():
                found.append(int(each.parent.name))
    return found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--minutes", "soon"], "minutes are a number above 0 and at most 1440, not 'soon'"),
        (["--minutes", "0"], "not '0'"),
        (["--minutes", "nan"], "not 'nan'"),
        (["--minutes", "-3"], "not '-3'"),
        (["--people", "0"], "people are a whole number from 1 to 5000, not '0'"),
        (["--people", "1.5"], "not '1.5'"),
        (["--flood", "pigs"], "there is no flood 'pigs', but empty pings, "),
        (["--speed", "3"], "nrecognized arguments: --speed 3"),
    ],
)
def test_bad_argument_is_refused_in_one_sentence(given: list[str], said: str, capsys: Any):
    with pytest.raises(SystemExit) as ended:
        attack.main(given)
    assert ended.value.code == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert said in sentence


# --- It judges ---------------------------------------------------------------------------------------


def report(**noticed: Any) -> Report:
    """A quiet moment, and a flood during which this was noticed."""
    return Report(2, [Noticed("nothing"), Noticed("pigs", spent=Spent(most_open=4), **noticed)])


def test_system_held_when_nothing_was_noticed():
    quiet = report(deliveries=100, delays=array("d", [0.001]), memory_mib=4 + SLACK_MIB, cpu=9)
    assert quiet.faults() == []
    assert quiet.text().endswith("The system held.\n")


@pytest.mark.parametrize(
    ("noticed", "fault"),
    [
        ({"lost": 1}, "pigs: messages lost: 1"),
        ({"doubled": 2}, "pigs: messages doubled: 2"),
        ({"presence_changes": 1}, "pigs: presence changes of clients that stayed: 1"),
        ({"memory_mib": 37.0}, "pigs: memory grew by 37.0 MiB, 36 are allowed"),
    ],
)
def test_what_the_ordinary_clients_noticed_is_said(noticed: dict[str, Any], fault: str):
    assert report(**noticed).faults() == [fault]
    assert report(**noticed).text().endswith(f"\n{fault}\n")


@pytest.mark.parametrize(("noticed", "status"), [({}, 0), ({"lost": 1}, 1)])
def test_exit_status_says_whether_the_system_held(
    noticed: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    async def attacked(*_: object) -> Report:
        return report(**noticed)

    monkeypatch.setattr(attack, "attack", attacked)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert attack.main([]) == status
    assert ("The system held." in capsys.readouterr().out) is (status == 0)


def test_memory_may_not_grow_from_flood_to_flood_either():
    slow = report(memory_mib=20.0)
    slow.memory_mib = 40.0
    assert slow.faults() == ["in all: memory grew by 40.0 MiB, 36 are allowed"]


def test_latency_and_unanswered_probes_are_said_and_not_judged():
    slow = report(delays=array("d", [0.1] * 98 + [20.0] * 2), unanswered=3)
    assert slow.faults() == []
    assert "| 100/20000 | – (3 unanswered) |" in slow.text()


def test_wrong_list_of_those_present_stack_traces_and_ended_processes_are_said():
    wrong = report()
    wrong.absent, wrong.traces, wrong.ended = 2, 1, ["runsockets"]
    assert wrong.faults() == [
        "wrong in the list of those present at the end: 2",
        "stack traces logged: 1",
        "runsockets ended during the attack",
    ]


@pytest.mark.slow
async def test_ordinary_client_that_loses_a_message_or_is_seen_to_leave_fails_the_attack(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """Through a real system, which does what it does in every attack, but for one client."""
    world.ports = (world.stack.port,)
    siege = attack.Siege(world, 2)
    await siege.begin()
    async with attack.attackers(world) as hostile:
        quiet = await siege.endure("pongs", 1, hostile)
        assert quiet.faults() == []
        unlucky = world.people[0]
        thread = world.threads[0]
        world.written[thread].insert(0, "never sent")
        unlucky.seen[thread].append(unlucky.seen[thread][0])
        await unlucky.leave()
        world.patience = 5
        noticed = await siege.endure(CALM, 5, hostile)
        world.sockets[0].stop(signal.SIGKILL)
        world.patience = 2
        dead = await siege.endure("pongs", 1, hostile)
        outcome = await siege.end()
    assert noticed.lost >= 2
    assert noticed.doubled == 1
    assert noticed.presence_changes == 1
    assert dead.lost > 0
    assert dead.unanswered > 0
    assert outcome.absent == 2
    assert outcome.ended == ["runsockets"]
    assert len(outcome.faults()) >= 6
