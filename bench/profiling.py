"""Profiles Python processes with py-spy, which must be on PATH."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

_TITLE = re.compile(r'(<text id="title"[^>]*>)[^<]*<')
_LINE = re.compile(r":\d+\)$")
RATE = 400
"""Samples per second."""


@dataclass(frozen=True, slots=True)
class Profiles:
    """Where profiles of the measured phase go, and whether they are flame graphs."""

    folder: Path
    flames: bool = False


@contextmanager
def profiled(pids: Mapping[str, int], profiles: Profiles) -> Iterator[None]:
    """Write for each process `<name>.svg`, a flame graph; or else `<name>.profile`, folded stacks, and `<name>.txt`.

    Raises `FileNotFoundError` without py-spy.
    """
    program = shutil.which("py-spy")
    if program is None:
        raise FileNotFoundError("py-spy is not installed: pip install py-spy")
    recorders = {}
    for name, pid in pids.items():
        output = profiles.folder / f"{name}.{'svg' if profiles.flames else 'profile'}"
        form = ("--format", "flamegraph", "--function") if profiles.flames else ("--format", "raw")
        recorders[output] = subprocess.Popen(  # noqa: S603
            [program, "record", "--pid", str(pid), "--rate", str(RATE), *form, "--output", output],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        for output, recorder in recorders.items():
            recorder.send_signal(signal.SIGINT)
            recorder.wait(60)
            if not output.exists():
                continue
            if profiles.flames:
                output.write_text(titled(output.read_text(), f"{profiles.folder.name}: {output.stem}"))
            else:
                output.with_suffix(".txt").write_text(summary(output.read_text()))


def titled(graph: str, title: str) -> str:
    """Replace the title of a flame graph, which is the command that drew it."""
    return _TITLE.sub(lambda found: f"{found[1]}{escape(title)}<", graph, count=1)


def summary(folded: str, lines: int = 40) -> str:
    """Summarize the time spent in functions, and below them. C code counts for the Python function that called it."""
    own: Counter[str] = Counter()
    under: Counter[str] = Counter()
    total = 0
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_LINE.sub(")", frame) for frame in stack.split(";")]
        total += int(count)
        own[frames[-1]] += int(count)
        under.update(dict.fromkeys(frames, int(count)))
    parts = [f"{total} samples"]
    for title, counter in (("in the function itself", own), ("in it and what it calls", under)):
        parts.append(f"\n{title}")
        parts += [f"{count / max(total, 1):6.1%}  {name}" for name, count in counter.most_common(lines)]
    return "\n".join(parts) + "\n"
