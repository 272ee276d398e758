"""Counts instructions of other processes, which other load on the machine hardly changes (perf_event_open(2))."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

INSTRUCTIONS = (0, 1)
"""PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS."""
TASK_CLOCK = (1, 1)
"""PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK: nanoseconds, on machines without hardware counters too."""
_INHERIT = 1 << 1
_CALLS = {"x86_64": 298, "aarch64": 241}


class Counter:
    """One event of some processes, in user mode and in the kernel, later threads included. Context manager.

    Entering raises `OSError` where the machine has no such counter or the user may not read it.
    """

    def __init__(self, pids: Iterable[int], event: tuple[int, int] = INSTRUCTIONS) -> None:
        self._pids = pids
        self._event = event
        self._files: list[int] = []

    def __enter__(self) -> Self:
        try:
            for pid in self._pids:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with suppress(ProcessLookupError):  # a thread may have ended
                        self._files.append(_open(self._event, int(task.name)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            os.close(file)
        self._files.clear()

    def read(self) -> int:
        """Return the count since the context was entered."""
        return sum(int.from_bytes(os.read(file, 8), "little") for file in self._files)


def available() -> bool:
    """Return whether this process may count instructions, in the kernel too."""
    try:
        with Counter([os.getpid()]):
            return True
    except OSError:
        return False


def _open(event: tuple[int, int], task: int) -> int:
    kind, config = event
    # The first version of struct perf_event_attr: type, size, config, …, flags, …
    attributes = struct.pack("IIQQQQQIIQ", kind, 64, config, 0, 0, 0, _INHERIT, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    call = _CALLS.get(platform.machine(), -1)
    file = int(libc.syscall(call, ctypes.create_string_buffer(attributes, 64), task, -1, -1, 0))
    if file < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"perf_event_open: {os.strerror(code)}")
    return file
