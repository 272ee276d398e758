"""Every publication once and in order or a gap, not a byte after a revoke, one answer a request: whatever breaks.

Each run is a process of its own (`python -m tests.simulation`), since a simulation takes over time and chance, and what
it does hangs on the order of sets (`PYTHONHASHSEED`). What a failing run prints repeats it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.e2e.harness import ROOT
from tests.simulation.mutations import MUTATIONS, Mutation

STEPS = "12000"
PATIENCE = 3600.0
"""Seconds; only ends a hang."""


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not measured: coverage would take several times as long, and the code is measured elsewhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--steps", STEPS, *arguments],
        cwd=ROOT,
        env={**environment, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def traces(output: str) -> list[str]:
    return re.findall(r"trace (\w+)", output)


@pytest.mark.timeout(600)
def test_promises_hold_whatever_breaks():
    run = simulate("--seed", "1", "--seeds", "4")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.timeout(600)
def test_same_seed_is_the_same_simulation():
    first, second = simulate("--seed", "11"), simulate("--seed", "11", "--seeds", "1")
    assert traces(first.stdout), first.stdout + first.stderr
    assert traces(first.stdout) == traces(second.stdout)


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
def test_promises_hold_for_a_million_steps():
    run = simulate("--seed", "1000", "--seeds", "1000", "--total", "1000000")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_noticed(mutation: Mutation):
    run = simulate("--mutation", mutation.name, "--seed", str(mutation.seed), "--seeds", "200")
    assert run.returncode == 1, f"it was not noticed that {mutation.name}\n{run.stdout}{run.stderr}"
    assert "VIOLATION" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_fits_the_code(mutation: Mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
