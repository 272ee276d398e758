"""The running event loop, for what asks often."""

from __future__ import annotations

import asyncio
import os
import sys
import threading


class _Here(threading.local):
    loop: asyncio.AbstractEventLoop | None = None
    """The loop that ran in this thread when it was last asked for."""


_here = _Here()
os.register_at_fork(after_in_child=lambda: setattr(_here, "loop", None))


def _remembered_loop() -> asyncio.AbstractEventLoop:
    loop = _here.loop
    if loop is None or not loop.is_running():
        loop = _here.loop = asyncio.get_running_loop()
    return loop


running_loop = asyncio.get_running_loop if sys.version_info >= (3, 12) else _remembered_loop
"""`asyncio.get_running_loop`, which before Python 3.12 makes a system call each time, to notice a fork.

A loop has to stay in the thread that it first ran in.
"""
