"""Takes the steps of a page, one after the other, and says where one of them does not lead where the page says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from tests.adopt.browser import Window
from tests.adopt.page import Interrupt, Run, See, Step, Watch, WriteFile, steps
from tests.adopt.workshop import Stopped, Workshop
from tests.asking import PATIENCE

INSTALL_SECONDS = 600.0
"""A command may take this long: it may install packages over a slow network."""
_SHOWN = 4000
"""Characters of an output that a message shows, from its end."""


class Terminal:
    """A terminal that stays open, and how far its output was read."""

    def __init__(self, workshop: Workshop, name: str, command: str) -> None:
        self.name = name
        self._log = workshop.folder / f"terminal-{name}.log"
        self._read = 0
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                workshop.bash(command),
                cwd=workshop.project, env=workshop.env, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, expected: Sequence[str]) -> None:
        """Wait for these lines after those that were read. Raises `Stopped` with the output."""
        deadline = time.monotonic() + PATIENCE
        while (end := _end_of(expected, self.output[self._read :])) is None:
            has_ended = self._process.poll() is not None
            if has_ended or time.monotonic() > deadline:
                why = f"ended with status {self._process.returncode}" if has_ended else "never wrote it"
                raise Stopped(
                    f"expected {_quoted(expected)}; the terminal {self.name!r} {why}:\n{self.output[-_SHOWN:]}"
                )
            time.sleep(0.05)
        self._read += end

    def stop(self) -> None:
        """End it as Ctrl-C does, and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
            try:
                self._process.wait(PATIENCE / 4)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


class Walk:
    """A context manager: it closes what the steps opened."""

    def __init__(self, workshop: Workshop, say: Callable[[str], None] = lambda _: None) -> None:
        self._workshop = workshop
        self._say = say
        self._window: Window | None = None
        self._terminals: dict[str, Terminal] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._window is not None:
            self._window.close()
        for terminal in reversed(self._terminals.values()):
            terminal.stop()

    def through(self, page: Path) -> None:
        """Take every step of a page. Raises `Stopped` with its line."""
        for step in steps(page):
            started = time.monotonic()
            self._say(f"{step.where:<17} {_summary(step)}")
            try:
                self._take(step)
            except Stopped as error:
                raise Stopped(f"{step.where}: {error}") from error
            self._say(f" ({time.monotonic() - started:.1f} s)\n")

    def _take(self, step: Step) -> None:
        match step:
            case WriteFile():
                self._write(step)
            case Run():
                self._run(step)
            case Watch():
                self._watch(step)
            case Interrupt():
                self._terminal(step.terminal).stop()
                del self._terminals[step.terminal]
            case See():
                self._see(step)

    def _write(self, step: WriteFile) -> None:
        path = self._workshop.project / step.path
        path.parent.mkdir(parents=True, exist_ok=True)
        before = f"{path.read_text()}\n" if step.at_the_end else ""
        path.write_text(before + self._workshop.here(step.text))

    def _run(self, step: Run) -> None:
        ended = self._workshop.run(step.command, INSTALL_SECONDS)
        if ended.status:
            raise Stopped(f"$ {step.command} ended with status {ended.status}:\n{ended.output[-_SHOWN:]}")
        if _end_of(step.expected, ended.output) is None:
            raise Stopped(
                f"$ {step.command}: expected {_quoted(step.expected)}, got:\n{ended.output[-_SHOWN:]}"
            )

    def _watch(self, step: Watch) -> None:
        if step.command is not None:
            if step.terminal in self._terminals:
                raise Stopped(f"the terminal {step.terminal!r} is already open")
            self._terminals[step.terminal] = Terminal(self._workshop, step.terminal, step.command)
        self._terminal(step.terminal).wait_for([*map(self._workshop.here, step.expected)])

    def _terminal(self, name: str) -> Terminal:
        if name not in self._terminals:
            raise Stopped(f"no terminal {name!r} is open")
        return self._terminals[name]

    def _see(self, step: See) -> None:
        if self._window is None:
            self._window = Window()
        self._window.see(self._workshop.here(step.address), step.expected)


def _end_of(expected: Iterable[str], output: str) -> int | None:
    """Where the output has all of these lines, in their order, with `…` for any text; None: one is missing."""
    end = 0
    for line in expected:
        pattern = ".*".join(map(re.escape, line.split("…")))
        found = re.compile(rf"^[ \t]*{pattern}[ \t]*$\n?", re.MULTILINE).search(output, end)
        if found is None:
            return None
        end = found.end()
    return end


def _quoted(lines: Iterable[str]) -> str:
    return " / ".join(map(repr, lines))


def _summary(step: Step) -> str:
    match step:
        case WriteFile():
            return f"{'add to' if step.at_the_end else 'write'} {step.path}"
        case Run():
            return f"$ {step.command.splitlines()[0]}"
        case Watch():
            return f"[{step.terminal}] {f'$ {step.command}' if step.command else step.expected[0]}"
        case Interrupt():
            return f"[{step.terminal}] Ctrl-C"
        case See():
            return f"in the browser: {step.expected[0]}"
    raise TypeError(type(step))
