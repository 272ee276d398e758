"""Profiles Python processes with py-spy, which must be on PATH."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_LINE = re.compile(r":\d+\)$")
RATE = 400
"""Samples per second."""


@contextmanager
def profiled(pids: Mapping[str, int], folder: Path) -> Iterator[None]:
    """Write `<name>.profile`, folded stacks (for a flame graph), for each process, and a summary as `.txt`.

    Raises `FileNotFoundError` without py-spy.
    """
    program = shutil.which("py-spy")
    if program is None:
        raise FileNotFoundError("py-spy is not installed: pip install py-spy")
    recorders = {}
    for name, pid in pids.items():
        stacks = folder / f"{name}.profile"
        recorders[stacks] = subprocess.Popen(  # noqa: S603
            [
                program,
                "record",
                "--pid",
                str(pid),
                "--rate",
                str(RATE),
                "--format",
                "raw",
                "--output",
                stacks,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        for stacks, recorder in recorders.items():
            recorder.send_signal(signal.SIGINT)
            recorder.wait(30)
            if stacks.exists():
                stacks.with_suffix(".txt").write_text(summary(stacks.read_text()))


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
