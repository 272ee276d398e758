"""`make bench-check`: when does it call a difference a regression, and does it compare the right code?"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any, Self

import pytest

from bench import check, counters, load
from bench.comparison import Comparison, Verdict, estimate
from bench.context import Outcome
from bench.profiling import titled
from bench.systems.base import ROOT
from tests.e2e.harness import python

# --- Statistics --------------------------------------------------------------------------------------


def test_ratio_of_pairs_ignores_what_slows_down_both():
    found = estimate([1.0, 5.0, 2.0, 40.0], [1.2, 6.0, 2.4, 48.0])
    assert (found.ratio, found.low, found.high) == (1.2, 1.2, 1.2)
    assert found.verdict is Verdict.REGRESSION


def test_interval_is_students():
    # Logarithms 0 and 0.2: mean 0.1, standard error 0.1, t(1) = 12.706.
    found = estimate([1.0, 1.0], [1.0, 1.221402758])
    assert (found.ratio, found.low, found.high) == pytest.approx((1.105171, 0.310179, 3.937756), rel=1e-4)


def test_interval_contains_the_true_ratio_as_often_as_it_claims():
    noise = random.Random(17)
    hits = 0
    for _ in range(2000):
        base = [noise.lognormvariate(0, 0.2) for _ in range(6)]
        head = [1.05 * noise.lognormvariate(0, 0.2) for _ in base]
        found = estimate(base, head)
        hits += found.low <= 1.05 <= found.high
    assert 0.93 < hits / 2000 < 0.97


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.20, 1.22, 1.18, 1.21], Verdict.REGRESSION),
        ([1.05, 1.06, 1.05, 1.06], Verdict.SLOWER),
        ([1.02, 1.30, 1.10, 1.25], Verdict.UNDECIDED),
        ([0.99, 1.01, 1.02, 0.98], Verdict.SAME),
        ([0.80, 0.82, 0.79, 0.81], Verdict.FASTER),
        ([0.5, 2.0, 0.7, 1.4], Verdict.UNDECIDED),
    ],
)
def test_only_a_sure_difference_of_more_than_a_tenth_is_a_regression(ratios: list[float], verdict: Verdict):
    assert estimate([1.0] * 4, ratios).verdict is verdict


@pytest.mark.parametrize(("base", "head"), [([1.0], [1.0]), ([1.0, 1.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_what_cannot_be_estimated_is_refused(base: list[float], head: list[float]):
    with pytest.raises(ValueError, match="expected"):
        estimate(base, head)


# --- Report ------------------------------------------------------------------------------------------


def comparison(**ratios: float) -> Comparison:
    made = Comparison("v1.0.0", "CPU seconds")
    for key, ratio in ratios.items():
        for base in (1.0, 1.5, 2.0):
            made.add(key, base, base * ratio)
    return made


def test_report_gives_ratio_interval_and_verdict_of_each_scenario():
    report = comparison(c=1.25, d=0.9).markdown({"c": "chat", "d": "connect storm"})
    assert "The working tree against v1.0.0: CPU seconds" in report
    assert "| c. chat | 1.5 | 1.88 | 1.250 | 1.250–1.250 | 3 | regression |" in report
    assert "| d. connect storm | 1.5 | 1.35 | 0.900 | 0.900–0.900 | 3 | faster |" in report
    assert "FAILED" in report


def test_a_lost_message_fails_and_a_scenario_new_in_the_tree_does_not():
    made = comparison(c=1.0)
    made.left_out["i"] = "the base could not run it"
    made.add("d", 1.0, 1.0)
    assert made.passed
    assert "i is left out: the base could not run it" in made.markdown({"c": "chat"})
    assert "d has too few pairs" in made.markdown({"c": "chat"})
    made.failures["d"] = ["1 missing, 0 duplicated of 20"]
    assert not made.passed
    assert "d failed: 1 missing" in made.markdown({"c": "chat"})


# --- Runs --------------------------------------------------------------------------------------------


class FakeRunning:
    """A system that is not started."""

    def __init__(self, peer: Any, scenario: str, logs: Path, root: Path) -> None:
        self.root = root

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What a run of the working tree costs (a run of the base costs 1), and the folders whose code ran."""
    runs: dict[str, Any] = {"cost": 1.0, "order": [], "missing": {}}

    def apply(running: FakeRunning, *arguments: object) -> Outcome:
        is_tree = running.root == ROOT
        runs["order"].append("tree" if is_tree else "base")
        cost = runs["cost"] if is_tree else 1.0
        missing = runs["missing"].get(runs["order"][-1], 0)
        return Outcome(cost={"cpu_seconds": cost, "instructions": cost}, missing=missing)

    monkeypatch.setattr(check, "Running", FakeRunning)
    monkeypatch.setattr(load, "apply", apply)
    monkeypatch.setattr(check, "COPIES", tmp_path / "copies")
    return runs


def run(output: Path, *more: str) -> int:
    return check.main(["--base", "HEAD", "--scenarios", "c", "--pairs", "3", "--output", str(output), *more])


def test_versions_run_in_turn_from_their_own_folders(runs: dict[str, Any], tmp_path: Path, capsys):
    assert run(tmp_path) == 0
    assert runs["order"] == ["base", "tree"] * 3
    assert "no difference shown" in capsys.readouterr().out
    assert (tmp_path / "check.md").exists()
    assert json.loads((tmp_path / "check.json").read_text())["estimates"]["c"]["ratio"] == 1


def test_regression_and_lost_messages_fail(runs: dict[str, Any], tmp_path: Path):
    runs["cost"] = 1.2
    assert run(tmp_path) == 1
    runs["cost"], runs["missing"] = 1.0, {"tree": 1}
    assert run(tmp_path) == 1
    runs["missing"] = {"base": 1}
    assert run(tmp_path) == 0


def test_unknown_base_is_refused(tmp_path: Path, capsys):
    assert run(tmp_path, "--base", "no-such-tag") == 2
    assert "expected a commit, a tag or a branch, got 'no-such-tag'" in capsys.readouterr().err


@pytest.mark.parametrize("pairs", ["1", "0", "many"])
def test_one_pair_is_too_few(tmp_path: Path, pairs: str, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--pairs", pairs)
    assert "2 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_commit_is_compared_with_the_working_tree(tmp_path: Path):
    options = ["--quick", "--pairs", "2", "--scenarios", "d", "--base", "HEAD", "--output", str(tmp_path)]
    done = python("-m", "bench.check", *options)
    assert done.returncode == 0, done.stderr
    assert "| d. connect storm |" in done.stdout


# --- Counters and graphs -----------------------------------------------------------------------------


def test_counter_counts_the_work_of_a_process():
    """By the clock that every machine has; instructions are counted in the same way."""
    try:
        with counters.Counter([os.getpid()], counters.TASK_CLOCK) as counter:
            until = time.process_time() + 0.05
            while time.process_time() < until:
                pass
            assert counter.read() > 40_000_000
    except PermissionError:
        assert not counters.available()


def test_flame_graph_has_a_title_that_says_what_it_shows():
    graph = '<svg><text id="title" x="5">py-spy record --pid 7</text></svg>'
    assert titled(graph, "c & d") == '<svg><text id="title" x="5">c &amp; d</text></svg>'
