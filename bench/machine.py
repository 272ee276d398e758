"""Queries the operating system: cores, CPU time, memory, limits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

PAGE = resource.getpagesize()
_CPUCLOCK_SCHED = 2


def cores() -> tuple[int, int]:
    """Return the core of the server, and that of everything else (the same if there is only one)."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def pin(pid: int, core: int) -> None:
    """Pin a process, with all its present threads, to one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system time that the kernel has accounted to these processes, ended threads included.

    This reads the clock of another process, in nanoseconds (clock_getcpuclockid(3)); /proc/PID/stat has steps of 10 ms.
    """
    return sum(time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) for pid in pids)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def core_times(core: int) -> tuple[float, float]:
    """Return the seconds since boot that a core was busy, and the seconds in all."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            values = [int(tick) / os.sysconf("SC_CLK_TCK") for tick in ticks[:8]]
            idle = values[3] + values[4]
            return sum(values) - idle, sum(values)
    raise LookupError(f"/proc/stat has no cpu{core}")


def raise_file_limit(needed: int) -> None:
    """Raise the limit of open files as far as the system allows. Raises `OSError` if that is fewer than `needed`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(f"{needed} open files are needed, ulimit -Hn allows {hard}")


def describe() -> dict[str, str | int]:
    """Return a description of the machine and the software, without which a result means nothing."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "node": _version("node"),
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }


def _version(command: str) -> str:
    path = shutil.which(command)
    if path is None:
        return "not installed"
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
