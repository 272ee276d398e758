"""Calls that end in time, whatever Redis, the network or the resolver of names does.

The time-out of a socket bounds one read, not a whole exchange, and nothing bounds `getaddrinfo`. So what may hang runs
in a thread of its own (`call`), which is left behind when the time is over, and connections that are open are cut then
(`cutting`).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

MOST = 32
"""Calls that may hang at the same time; a further one is refused at once."""
TICK = 0.05
"""Seconds after which a connection that should be cut is found at the latest."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine is suspended

T = TypeVar("T")
_Call = tuple[Callable[[], Any], Future[Any]]
"""A function, and the future that gets its result."""


def now() -> float:
    """Seconds of a clock that is never set. It belongs to this machine, and counts the time that it is suspended."""
    return time.clock_gettime(_CLOCK)


def left(until: float) -> float:
    """The seconds that are left until a time of `now`. Raises `redis.TimeoutError` when none are."""
    seconds = until - now()
    if seconds <= 0:
        raise RedisTimeoutError("Redis did not answer in time")
    return seconds


# --- Calls in a thread of their own ------------------------------------------------------------------


class Threads:
    """Daemon threads that run one call after another; one that hangs keeps neither a caller nor the process waiting."""

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[_Call]] = []
        self._free = threading.Semaphore(MOST)

    def start(self, call: _Call) -> None:
        """Raises `redis.TimeoutError` when too many calls hang, and `RuntimeError` at the end of the process."""
        try:
            calls = self._idle.pop()
        except IndexError:
            if not self._free.acquire(blocking=False):
                raise RedisTimeoutError(f"Redis does not answer: {MOST} calls wait for it") from None
            calls = SimpleQueue()
            self._start_thread(calls)
        calls.put(call)

    def _start_thread(self, calls: SimpleQueue[_Call]) -> None:
        try:
            _start(threading.Thread(target=self._work, args=[calls], name="redis", daemon=True))
        except BaseException:
            self._free.release()
            raise

    def _work(self, calls: SimpleQueue[_Call]) -> None:
        while True:
            function, future = calls.get()
            try:
                future.set_result(function())
            except BaseException as error:  # (it belongs to the caller)
                future.set_exception(error)
            del function, future
            self._idle.append(calls)


def _start(thread: threading.Thread) -> None:
    """Raises `redis.ConnectionError` when no thread is left, and `RuntimeError` at the end of the process."""
    try:
        thread.start()
    except RuntimeError as error:
        if sys.is_finalizing() or "shutdown" in str(error):
            raise
        raise RedisConnectionError(f"Redis cannot be asked: {error}") from error


def call(function: Callable[[], T], until: float) -> T:
    """Call a function that may hang, and wait for it until a time of `now`; afterwards it goes on by itself.

    Raises what the function raises, and `redis.TimeoutError` when the time is over.
    """
    seconds = left(until)
    future: Future[T] = Future()
    try:
        threads.start((partial(copy_context().run, function), future))
    except RuntimeError:  # the interpreter ends, and starts no threads any more
        return function()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise RedisTimeoutError("Redis did not answer in time") from None
    finally:
        del future  # its error refers to this frame


# --- Connections that are cut when their time is over ------------------------------------------------


class _Watchdog:
    """Shuts down the sockets whose time is over, so that a thread that reads from them or writes to them goes on."""

    def __init__(self) -> None:
        self._until: dict[socket.socket, float] = {}
        self._is_needed = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, watched: socket.socket, until: float) -> None:
        if self._thread is None:
            self._start()
        self._until[watched] = until
        if not self._is_needed.is_set():
            self._is_needed.set()

    def remove(self, watched: socket.socket) -> None:
        self._until.pop(watched, None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name="redis time-outs", daemon=True)
                _start(thread)
                self._thread = thread

    def _watch(self) -> None:
        while True:
            self._is_needed.wait()
            seconds = self._cut_late()
            if seconds is None:
                self._is_needed.clear()
                if self._until:  # added in between
                    self._is_needed.set()
            else:
                time.sleep(seconds)

    def _cut_late(self) -> float | None:
        """Cut what is late; returns the seconds until the next look, None when nothing is watched."""
        watched = self._until.copy()
        current = now()
        for each, until in watched.items():
            if until <= current and self._until.pop(each, None) is not None:
                shut_down(each)
        return min(TICK, *(max(until - current, 0.001) for until in watched.values())) if watched else None


def shut_down(connected: socket.socket) -> None:
    """End a connection under the thread that uses it, which then reads its end. The descriptor stays its own."""
    with suppress(OSError):  # it has ended
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # (an SSLSocket's own would pull its state away)


@contextmanager
def cutting(connected: socket.socket, until: float) -> Iterator[None]:
    """Cut the connection if the context has not ended by a time of `now`. Raises `redis.TimeoutError` if it is over."""
    left(until)
    _watchdog.add(connected, until)
    try:
        yield
    finally:
        _watchdog.remove(connected)


threads = Threads()
_watchdog = _Watchdog()


def forget_all() -> None:
    """After a fork: the threads stayed in the parent."""
    global threads, _watchdog
    threads, _watchdog = Threads(), _Watchdog()


os.register_at_fork(after_in_child=forget_all)
