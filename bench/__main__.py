"""`python -m bench`: parses the arguments and runs the scenarios."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import load, machine
from bench.catalogue import SCENARIOS
from bench.context import BUSY, QUICK, Outcome, Sizes
from bench.options import RESULTS, choice
from bench.profiling import Profiles
from bench.report import Report, Run
from bench.systems import PEERS, Peer, Running


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if any message was lost or duplicated, else 0."""
    options = _parse(arguments)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    sizes = QUICK if options.quick else Sizes()
    machine.raise_file_limit(sizes.idle_connections + 500 if "e" in options.scenarios else 8000)
    options.output.mkdir(parents=True, exist_ok=True)
    peers = _installed([PEERS[name] for name in options.peers], console)
    report = Report(datetime.now(UTC), machine.describe(), sizes, [peer.name for peer in peers])
    if options.add and (options.output / "results.json").exists():
        try:
            report.add(options.output / "results.json")
        except ValueError as error:
            console.print(f"[red]{escape(str(error))}")
            return 2
        for scenario, _, peer in _schedule(options.scenarios, 1, peers):
            report.forget(scenario, peer.name)
    with _progress(console) as progress:
        session = Session(report, options.output, progress, options.profile, options.flames)
        try:
            for scenario, number, peer in _schedule(options.scenarios, options.runs, peers):
                session.run(scenario, number, peer)
        except KeyboardInterrupt:
            console.print("stopped; the results so far follow")
    if not (options.profile or options.flames):
        sys.stdout.write(report.markdown())
    console.print(f"written: {options.output}/results.json, table.md, chart.svg")
    return 0 if report.complete else 1


def _schedule(scenarios: Iterable[str], runs: int, peers: Sequence[Peer]) -> Iterator[tuple[str, int, Peer]]:
    """Alternate the peers, so that other load on the machine affects all of them."""
    for scenario in scenarios:
        for number in range(runs):
            for peer in peers:
                again = number > 0
                if scenario in peer.scenarios and not (again and peer.slow and SCENARIOS[scenario].heavy):
                    yield scenario, number, peer


@dataclass
class Session:
    """Runs scenarios, shows their progress, prints a line for each run, and stores the results."""

    report: Report
    output: Path
    progress: Progress
    profile: bool = False
    flames: bool = False

    def run(self, scenario: str, number: int, peer: Peer) -> None:
        """Run one scenario once, against one peer that is started for it."""
        name = f"{scenario}, run {number + 1}, {peer.title}"
        task = self.progress.add_task(name, total=None)
        folder = self.output / f"{scenario}-{peer.name}"
        folder.mkdir(exist_ok=True)
        try:
            with Running(peer, scenario, folder) as running:
                outcome = load.apply(
                    running,
                    self.report.sizes,
                    lambda done, total: self.progress.update(task, advance=done, total=total),
                    profiles=Profiles(folder, self.flames) if self.profile or self.flames else None,
                )
        except (load.LoadFailed, RuntimeError) as error:
            outcome = Outcome(missing=1, notes=[str(error)[-1500:]])
        self.progress.remove_task(task)
        run = Run(scenario, peer.name, number, outcome)
        self.report.runs.append(run)
        self.report.write(self.output)
        self._say(f"{name}: {run.summary()}", *(f"  [red]{escape(note)}" for note in outcome.notes))
        if outcome.load.get("core_busy", 0.0) > BUSY:
            self._say(
                f"  [yellow]the load generator's core was {outcome.load['core_busy']:.0%} busy "
                f"(generator {outcome.load['generator_cpu']:.0%}, Redis {outcome.load['redis_cpu']:.0%}): "
                "CPU figures hold, but times may be too long"
            )

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.progress.console.print(line)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="This project and its peers, side by side."
    )
    names = [peer.name for peer in PEERS.values() if not peer.reference]
    parser.add_argument(
        "--scenarios", type=choice(SCENARIOS), default=os.environ.get("BENCH_SCENARIOS") or list(SCENARIOS),
        help=f"comma-separated, of {','.join(SCENARIOS)} (BENCH_SCENARIOS)",
    )  # fmt: skip
    parser.add_argument(
        "--peers", type=choice(PEERS), default=os.environ.get("BENCH_PEERS") or names,
        help=f"comma-separated, of {','.join(PEERS)} (BENCH_PEERS; default: all but baseline)",
    )  # fmt: skip
    parser.add_argument(
        "--runs",
        type=int,
        default=os.environ.get("BENCH_RUNS") or 3,
        help="runs of which the median is taken (BENCH_RUNS)",
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the results of other peers and scenarios in results.json"
    )
    parser.add_argument("--quick", action="store_true", help="functional test with small numbers")
    parser.add_argument(
        "--profile", action="store_true", help="profile instead of measuring (py-spy on PATH)"
    )
    parser.add_argument(
        "--flames", action="store_true", help="draw flame graphs instead of measuring (py-spy on PATH)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for results and logs")
    return parser.parse_args(arguments)


def _installed(peers: Sequence[Peer], console: Console) -> list[Peer]:
    """Return the peers that can be started, and print what each of the others needs."""
    found = []
    for peer in peers:
        if lacks := peer.missing():
            console.print(f"[yellow]{peer.title} is left out: it needs {lacks}")
        else:
            found.append(peer)
    return found


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    )


if __name__ == "__main__":
    raise SystemExit(main())
