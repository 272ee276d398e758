"""`make bench-check`: does the working tree cost more than an earlier commit?

Both versions run in turn, A B A B …, against the same load generator. Costs are instructions where the machine counts
them, else CPU time, of all processes of the system. The exit status is 1 after a regression (see `bench.comparison`),
or when the working tree lost a message; 2 when the comparison could not be made.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import counters, load, machine
from bench.catalogue import SCENARIOS
from bench.comparison import Comparison
from bench.context import QUICK, Outcome, Sizes
from bench.options import RESULTS, choice
from bench.systems import PEERS, Running
from bench.systems.base import ROOT

COPIES = ROOT / ".run" / "bench-check"
SIZES = Sizes(
    paced_seconds=5, threads=1000, chat_seconds=5, storm_connections=2000, idle_connections=3000, idle_seconds=10,
    heartbeat_seconds=5, recover_connections=1000, recover_pause=1, slow_connections=300, slow_seconds=4,
    mixed_threads=600, mixed_drops=20, mixed_seconds=15,
)  # fmt: skip
"""Smaller than in `make bench`: many short pairs tell more than few long ones."""
UNITS = {"instructions": "instructions", "cpu_seconds": "CPU seconds"}


class Unusable(Exception):
    """The comparison cannot be made; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        base = _copy(options.base or _newest())
    except Unusable as error:
        _say(str(error))
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    machine.raise_file_limit(8000)
    measure = "instructions" if counters.available() else "cpu_seconds"
    check = Check(
        Comparison(base.name[:12], UNITS[measure]),
        base,
        measure,
        QUICK if options.quick else SIZES,
        options.output,
    )
    for scenario in options.scenarios:
        check.run(scenario, options.pairs)
    titles = {key: scenario.title.partition(":")[0] for key, scenario in SCENARIOS.items()}
    report = check.comparison.markdown(titles)
    (options.output / "check.md").write_text(report)
    (options.output / "check.json").write_text(json.dumps(check.comparison.as_json(), indent=1) + "\n")
    sys.stdout.write(report)
    return 0 if check.comparison.passed else 1


@dataclass
class Check:
    """Runs both versions in turn, and collects their costs."""

    comparison: Comparison
    base: Path
    measure: str
    sizes: Sizes
    output: Path

    def run(self, scenario: str, pairs: int) -> None:
        """Run all pairs of one scenario."""
        for number in range(pairs):
            before = self._run(scenario, self.base)
            after = self._run(scenario, ROOT)
            if not before.complete:
                _say(f"{scenario}, pair {number + 1}: the base failed: {_problem(before)}")
                if number == 0:
                    self.comparison.left_out[scenario] = f"the base could not run it: {_problem(before)}"
                    return
                continue
            if not after.complete:
                self.comparison.failures.setdefault(scenario, []).append(_problem(after))
                _say(f"{scenario}, pair {number + 1}: the working tree failed: {_problem(after)}")
                continue
            base, head = before.cost[self.measure], after.cost[self.measure]
            self.comparison.add(scenario, base, head)
            _say(f"{scenario}, pair {number + 1}: {base:,.4g} and {head:,.4g}, ratio {head / base:.3f}")

    def _run(self, scenario: str, root: Path) -> Outcome:
        logs = self.output / f"check-{scenario}-{'tree' if root == ROOT else 'base'}"
        logs.mkdir(exist_ok=True)
        try:
            with Running(PEERS["ours"], scenario, logs, root) as running:
                return load.apply(running, self.sizes, lambda done, total: None)
        except (load.LoadFailed, RuntimeError) as error:
            return Outcome(missing=1, notes=[str(error)[-1500:]])


def _problem(outcome: Outcome) -> str:
    counted = f"{outcome.missing} missing, {outcome.doubled} duplicated of {outcome.expected}"
    return "; ".join([counted, *outcome.notes])


def _newest() -> str:
    """Return the newest tag, or the parent of HEAD."""
    return _git("describe", "--tags", "--abbrev=0") or "HEAD~"


def _copy(reference: str) -> Path:
    """Return a folder with the files of a commit. It uses the same virtual environment. Raises `Unusable`."""
    commit = _git("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    if not commit:
        raise Unusable(f"BASE: expected a commit, a tag or a branch, got {reference!r}")
    folder = COPIES / commit
    if not folder.exists():
        unpacked = folder.with_suffix(".part")
        unpacked.mkdir(parents=True, exist_ok=True)
        command = ["git", "archive", commit]
        archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)  # noqa: S603
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(unpacked, filter="data")
        unpacked.rename(folder)
    _must_run_its_own_code(folder)
    return folder


def _must_run_its_own_code(folder: Path) -> None:
    """Raise `Unusable` if Python would import the package from elsewhere, such as an editable installation."""
    command = [sys.executable, "-c", "import realtime; print(realtime.__file__)"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)  # noqa: S603
    if not done.stdout.startswith(f"{folder}{os.sep}"):
        raise Unusable(f"{folder} does not run its own code, but {done.stdout.strip() or done.stderr[-500:]}")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else ""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.check", description="The working tree beside an earlier commit."
    )
    parser.add_argument("--base", help="commit, tag or branch (default: the newest tag, or HEAD~)")
    parser.add_argument(
        "--scenarios", type=choice(SCENARIOS), default=os.environ.get("BENCH_SCENARIOS") or list(SCENARIOS),
        help=f"comma-separated, of {','.join(SCENARIOS)} (BENCH_SCENARIOS)",
    )  # fmt: skip
    parser.add_argument(
        "--pairs", type=_pairs, default=os.environ.get("BENCH_RUNS") or 10,
        help="runs of each version, at least 2 (BENCH_RUNS; default: 10)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="functional test with small numbers")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for results and logs")
    return parser.parse_args(arguments)


def _pairs(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a number of 2 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
