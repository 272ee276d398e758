"""The load generator: a separate process, on the core that the server does not use."""

from __future__ import annotations

import gc
import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import uvloop

from bench import machine
from bench.catalogue import SCENARIOS
from bench.context import Context, Outcome, Sizes
from bench.profiling import Profiles
from bench.systems import PEERS, Running


@dataclass(frozen=True, slots=True)
class Plan:
    """The work that is sent to the process."""

    scenario: str
    peer: str
    ports: tuple[int, ...]
    pids: dict[str, int]
    redis_pid: int
    redis_socket: Path
    sizes: Sizes
    profiles: Profiles | None


class LoadFailed(Exception):
    """The load generator failed; the text is its stack trace."""


def apply(
    running: Running,
    sizes: Sizes,
    tick: Callable[[int, int], None],
    profiles: Profiles | None = None,
) -> Outcome:
    """Run the scenario that a system was started for, in a new process. Raises `LoadFailed`."""
    plan = Plan(
        scenario=running.scenario,
        peer=running.peer.name,
        ports=running.ports,
        pids=running.pids,
        redis_pid=running.redis_pid,
        redis_socket=running.redis_socket,
        sizes=sizes,
        profiles=profiles,
    )
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_main, args=(plan, there), daemon=True)
    process.start()
    there.close()
    try:
        while True:
            match here.recv():
                case (int() as done, int() as total):
                    tick(done, total)
                case Outcome() as outcome:
                    return outcome
                case str() as trace:
                    raise LoadFailed(trace)
    except EOFError:
        process.join(5)
        raise LoadFailed(f"the load generator ended with {process.exitcode}") from None
    finally:
        here.close()
        process.join(30)


def _main(plan: Plan, pipe: Pipe) -> None:
    machine.pin(multiprocessing.current_process().pid or 0, machine.cores()[1])
    machine.raise_file_limit(64)
    pending = 0

    def tick(done: int, total: int) -> None:
        nonlocal pending
        pending += done
        if pending * 100 >= total:
            pipe.send((pending, total))
            pending = 0

    context = Context(
        scenario=plan.scenario,
        peer=PEERS[plan.peer],
        ports=plan.ports,
        pids=plan.pids,
        redis_pid=plan.redis_pid,
        redis_socket=plan.redis_socket,
        sizes=plan.sizes,
        tick=tick,
        profiles=plan.profiles,
    )
    gc.disable()  # all objects live until the end; a collection would look like latency
    try:
        uvloop.run(SCENARIOS[plan.scenario].run(context))  # type: ignore[arg-type]
    except BaseException:
        pipe.send(traceback.format_exc())
        raise SystemExit(1) from None
    pipe.send(context.outcome)
