"""The load of this instance, and what it runs on."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import metadata

from realtime.survey.messages import Load
from realtime.survey.results import Connection, slices


async def load(connections: Sequence[Connection], *, cpu: float, stall: float) -> Load:
    """The load of this instance. `cpu` and `stall` are as in `Load`."""
    by_namespace: Counter[str] = Counter()
    rooms: set[tuple[str, str]] = set()
    waiting: list[int] = []
    async for part in slices(connections):
        for connection in part:
            namespace = connection.user[0]
            by_namespace[namespace] += 1
            rooms.update([(namespace, room) for room in connection.rooms])
            if unsent := connection.unsent:
                waiting.append(unsent)
    return Load(
        connections=dict(by_namespace),
        rooms=len(rooms),
        behind=len(waiting),
        unsent=sum(waiting),
        cpu=cpu,
        memory=_memory(),
        stall=stall,
    )


class Meter:
    """The CPU time of this process between two surveys."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> float:
        """Seconds of CPU time a second, since the previous call."""
        wall, cpu = time.monotonic(), time.process_time()
        used = (cpu - self._cpu) / max(wall - self._wall, 1e-3)
        self._wall, self._cpu = wall, cpu
        return used


def _memory() -> int:
    """Resident bytes, or their peak on a system that does not tell the current value."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  (a tenth of what pathlib takes)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


@cache
def host() -> str:
    """The name of the machine, or of the container."""
    return platform.node()


@cache
def version() -> str:
    """The installed version of this project; empty when it is not installed as a package."""
    try:
        return metadata.version("realtime-sockets")
    except metadata.PackageNotFoundError:
        return ""
