"""The processes of `make run`: honcho starts them, stops them together, and prints what they print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

from honcho.manager import Manager
from honcho.printer import Message, Printer
from honcho.process import Popen, Process

from realtime.testing.embedded_redis import die_with

PROCESSES = {
    "sockets": "runsockets",
    "bridge": "runbridge",
    "recorder": "runrecorder",
    "outbox": "runoutbox",
    "web": "runweb",
}
"""By name, the management command of each process. Each prints `ready`."""


class ForegroundProcess(Process):  # type: ignore[misc]
    """honcho's watcher of one child. Both end soon after `make run`, even if it is killed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._manager = os.getpid()
        self._child_ctor = self._start

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        # Ctrl-C in a terminal reaches the watchers too. They end when their child does.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        die_with(self._manager, signal.SIGKILL)
        super().run(events, ignore_signals)

    def _start(self, command: list[str], **named: Any) -> Popen:
        prepare = partial(_prepare_child, os.getpid())
        return Popen(command, shell=False, stdin=subprocess.DEVNULL, preexec_fn=prepare, **named)


def _prepare_child(watcher: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    die_with(watcher)


class ForegroundManager(Manager):  # type: ignore[misc]
    """honcho's manager without its messages. `culprit` names the process that ended by itself, and how it ended."""

    def __init__(self, printer: Printer) -> None:
        super().__init__(printer)
        self._process_ctor = ForegroundProcess
        self._stop_wanted = False
        self.culprit = ""

    def terminate(self) -> None:
        if not self._all_started():
            self._stop_wanted = True  # honcho cannot stop a process before it knows its id
            return
        if not self._terminating:
            self.culprit = next(
                (
                    f"{name} {_how(process['returncode'])}"
                    for name, process in self._processes.items()
                    if process.get("returncode") is not None
                ),
                "",
            )
        super().terminate()

    def _system_print(self, data: str) -> None:
        if self._stop_wanted and self._all_started():
            self.terminate()


def _how(status: int) -> str:
    return (
        f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    )


class ReadyPrinter(Printer):  # type: ignore[misc]
    """Prints the banner once every process is ready."""

    def __init__(self, banner: str) -> None:
        super().__init__(sys.stdout, time_format="")  # log lines have their own time
        self._banner = banner
        self._expected = set(PROCESSES)

    def write(self, message: Message) -> None:
        try:
            super().write(message)
            if message.data.strip() == b"ready" and message.name in self._expected:
                self._expected.remove(message.name)
                if not self._expected:
                    print(self._banner, flush=True)  # noqa: T201
        except OSError:
            # The terminal, or the program at the other end of the pipe, is gone.
            signal.raise_signal(signal.SIGTERM)
