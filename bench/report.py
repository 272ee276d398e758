"""Turns runs into a table, a chart and a file."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.catalogue import SCENARIOS, Metric
from bench.chart import chart
from bench.context import Outcome, Sizes
from bench.systems import PEERS

OURS = "ours"
YARDSTICKS = ("socketio", "centrifuge")
"""The peers that our figures are divided by; the chart shows the first."""
CHANNELS = ("channels-uvicorn", "channels-daphne")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one scenario against one peer."""

    scenario: str
    peer: str
    number: int
    outcome: Outcome

    def summary(self) -> str:
        """Return one line for the terminal."""
        values = ", ".join(
            f"{metric.title} {number(self.outcome.metrics[metric.key])} {metric.unit}"
            for metric in SCENARIOS[self.scenario].metrics
            if metric.key in self.outcome.metrics
        )
        outcome = self.outcome
        if outcome.complete:
            return f"{values}; complete"
        return f"{values}; INCOMPLETE: {outcome.missing} missing, {outcome.doubled} duplicated of {outcome.expected}"


@dataclass
class Report:
    """All runs of a benchmark."""

    at: datetime
    machine: dict[str, str | int]
    sizes: Sizes
    peers: list[str]
    runs: list[Run] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether no message was missing or duplicated in any run."""
        return all(run.outcome.complete for run in self.runs)

    def median(self, scenario: str, peer: str, metric: str) -> float | None:
        values = [
            run.outcome.metrics[metric]
            for run in self.runs
            if (run.scenario, run.peer) == (scenario, peer) and metric in run.outcome.metrics
        ]
        return statistics.median(values) if values else None

    def ratio(self, scenario: str, peer: str, metric: str, yardstick: str = YARDSTICKS[0]) -> float | None:
        """Return the ratio of a metric to another peer's."""
        mine, theirs = self.median(scenario, peer, metric), self.median(scenario, yardstick, metric)
        return mine / theirs if mine is not None and theirs else None

    def medians(self) -> dict[str, dict[str, dict[str, float | None]]]:
        return {
            key: {
                peer: {
                    metric: _finite(self.median(key, peer, metric))
                    for metric in sorted(
                        {
                            name
                            for run in self.runs
                            if (run.scenario, run.peer) == (key, peer)
                            for name in run.outcome.metrics
                        }
                    )
                }
                for peer in self.peers
            }
            for key in SCENARIOS
            if any(run.scenario == key for run in self.runs)
        }

    def add(self, file: Path) -> None:
        """Add the runs of an earlier report.

        Raises `ValueError` if they were measured on another machine or with other sizes.
        """
        before = json.loads(file.read_text())
        same = {name: value for name, value in self.machine.items() if name != "load_average"}
        if before["machine"] | same != before["machine"] or before["sizes"] != asdict(self.sizes):
            raise ValueError(f"{file} was measured on another machine, or with other sizes")
        for entry in before["runs"]:
            outcome = Outcome(
                **{each.name: entry[each.name] for each in fields(Outcome) if each.name in entry}
            )
            outcome.metrics = {
                name: math.inf if value is None else value for name, value in outcome.metrics.items()
            }
            self.runs.append(Run(entry["scenario"], entry["peer"], entry["number"], outcome))
        known = {run.peer for run in self.runs} | set(self.peers)
        self.peers = [name for name in PEERS if name in known]

    def forget(self, scenario: str, peer: str) -> None:
        """Remove the runs that will be measured again."""
        self.runs = [run for run in self.runs if (run.scenario, run.peer) != (scenario, peer)]

    def as_json(self) -> dict[str, Any]:
        return {
            "at": self.at.isoformat(timespec="seconds"),
            "machine": self.machine,
            "sizes": asdict(self.sizes),
            "complete": self.complete,
            "medians": self.medians(),
            "runs": [
                {
                    "scenario": run.scenario,
                    "peer": run.peer,
                    "number": run.number,
                    "complete": run.outcome.complete,
                    **asdict(run.outcome),
                    "metrics": {name: _finite(value) for name, value in run.outcome.metrics.items()},
                }
                for run in self.runs
            ],
        }

    def markdown(self) -> str:
        """Return the table: a line for each metric, a column for each peer, ours also as a ratio to Socket.IO."""
        titles = [PEERS[peer].title for peer in self.peers]
        titles += [f"ours ÷ {PEERS[peer].title}" for peer in YARDSTICKS]
        lines = [
            f"{self.at:%Y-%m-%d}, {self.machine['cpu']}, {self.machine['cores']} cores, "
            f"Python {self.machine['python']}, Node {self.machine['node']}; medians.",
            "",
            f"| | {' | '.join(titles)} | target |",
            f"|---|{'--:|' * len(titles)}--:|",
        ]
        for key, scenario in SCENARIOS.items():
            if not any(run.scenario == key for run in self.runs):
                continue
            lines.append(
                f"| **{key}. {scenario.title.format(**asdict(self.sizes))}** |{' |' * (len(titles) + 1)}"
            )
            lines += [self._line(key, metric) for metric in scenario.metrics]
            counts = [self._incomplete(key, peer) for peer in self.peers]
            if any(counts):
                lines.append(
                    f"| missing, duplicated | {' | '.join(count or '0' for count in counts)} | | | |"
                )
        guarantees = " | ".join(PEERS[peer].guarantee for peer in self.peers)
        lines += [f"| *delivery guarantee* | {guarantees} | | | |", "", *self._against_channels()]
        return "\n".join(lines)

    def _against_channels(self) -> list[str]:
        """Return how many times better we are than plain Channels, under the faster of its two servers."""
        found = []
        for key, scenario in SCENARIOS.items():
            metric = scenario.metrics[0]
            mine = self.median(key, OURS, metric.key)
            theirs = [value for peer in CHANNELS if (value := self.median(key, peer, metric.key))]
            if mine and theirs:
                times = mine / max(theirs) if metric.higher_is_better else min(theirs) / mine
                goal = f" (target {metric.times_channels:g})" if metric.times_channels else ""
                found.append(f"{key} {number(times)}{goal}")
        return [f"Times better than plain Channels: {', '.join(found)}.", ""] if found else []

    def _line(self, key: str, metric: Metric) -> str:
        cells = [
            "–" if (value := self.median(key, peer, metric.key)) is None else f"{number(value)} {metric.unit}"
            for peer in self.peers
        ]
        for yardstick in YARDSTICKS:
            ratio = self.ratio(key, OURS, metric.key, yardstick)
            cells.append("–" if ratio is None else f"{ratio:.2f}")
        return f"| {metric.title} | {' | '.join(cells)} | {target(metric)} |"

    def _incomplete(self, key: str, peer: str) -> str:
        runs = [run.outcome for run in self.runs if (run.scenario, run.peer) == (key, peer)]
        missing, doubled = sum(run.missing for run in runs), sum(run.doubled for run in runs)
        return f"**{missing:,}, {doubled:,}**" if missing or doubled else ""

    def write(self, folder: Path) -> None:
        (folder / "results.json").write_text(json.dumps(self.as_json(), indent=1) + "\n")
        (folder / "table.md").write_text(self.markdown())
        (folder / "chart.svg").write_text(self._chart())

    def _chart(self) -> str:
        """Return the chart of the first metric of each scenario, as times better than Socket.IO."""
        rows = []
        for key, scenario in SCENARIOS.items():
            metric = scenario.metrics[0]
            bars = {}
            for peer in self.peers:
                ratio = self.ratio(key, peer, metric.key)
                if ratio is not None and 0 < ratio < math.inf:
                    bars[PEERS[peer].title] = ratio if metric.higher_is_better else 1 / ratio
            if bars:
                rows.append((f"{key}. {scenario.title.partition(':')[0]}: {metric.title}", bars))
        subtitle = f"{self.at:%Y-%m-%d}, {self.machine['cpu']}, one core for each server, medians"
        return chart("Times better than Socket.IO (logarithmic)", subtitle, rows)


def target(metric: Metric) -> str:
    sign = "≥" if metric.higher_is_better else "≤"
    if metric.must_be is not None:
        return f"{sign} {metric.must_be:g} {metric.unit}"
    goals = _goals(sign, metric.must, metric.stretch)
    if metric.centrifuge is None or metric.centrifuge == (metric.must, metric.stretch):
        return f"{goals} of both" if metric.centrifuge else goals
    return f"{goals}; Centrifuge {_goals(sign, *metric.centrifuge)}"


def _goals(sign: str, *goals: float | None) -> str:
    return " / ".join(f"{sign} {goal:g}" for goal in dict.fromkeys(goals) if goal is not None)


def number(value: float) -> str:
    """Format a value with three significant digits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
