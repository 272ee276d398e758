"""`python -m tests.simulation`: run seeds, or one again."""

from __future__ import annotations

import argparse
import os
import sys
import time

import django

from tests.simulation import mutations


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--steps", type=int, default=20_000, help="of each, before everything heals")
    parser.add_argument(
        "--total", type=int, default=sys.maxsize, help="no more seeds after so many steps altogether"
    )
    parser.add_argument("--calm", action="store_true", help="nothing breaks")
    parser.add_argument("--mutation", help="break the code first (mutations.py)")
    parser.add_argument("--verbose", action="store_true", help="say everything that happens")
    options = parser.parse_args()
    # The order of sets hangs on it.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    if options.mutation:
        mutations.apply(options.mutation)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    return simulate(options)


def simulate(options: argparse.Namespace) -> int:
    from tests.simulation.checker.checker import Violation
    from tests.simulation.world import World

    done, started = 0, time.perf_counter()
    for seed in range(options.seed, options.seed + options.seeds):
        if done >= options.total:
            break
        world = World(seed, calm=options.calm, say=say if options.verbose else None)
        try:
            world.run(options.steps)
        except Violation as violation:
            say(f"VIOLATION {violation}\nagain: {_again(options, seed)}")
            return 1
        finally:
            done += world.clock.steps
        checker = world.checker
        say(
            f"seed {seed}: {world.clock.steps} steps, {world.clock.now:.0f} s, {checker.frames} frames, "
            f"{checker.recoveries} recoveries, {checker.gaps} gaps, {checker.losses} losses, trace {world.trace}"
        )
    say(f"{done} steps, {done / (time.perf_counter() - started):.0f} a second")
    return 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _again(options: argparse.Namespace, seed: int) -> str:
    words = ["python -m tests.simulation", f"--seed {seed}", f"--steps {options.steps}"]
    if options.calm:
        words.append("--calm")
    if options.mutation:
        words.append(f"--mutation {options.mutation!r}")
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
