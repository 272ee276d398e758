"""A process on a machine: one event loop, which may be late, stand still, or be killed between any two callbacks."""

from __future__ import annotations

import asyncio
import heapq
import sys
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context
from random import Random
from typing import Any

from tests.simulation.clock import Clock, Event

CALLBACK_SECONDS = 20e-6
"""What a callback takes of the loop's time."""


class Numbered:
    """Hashed by number, not by address: what iterates over a set of them does so in the same order every time."""

    numbers = 0

    def __hash__(self) -> int:
        try:
            return self._number
        except AttributeError:
            Numbered.numbers += 1
            self._number = Numbered.numbers
            return self._number


class Task(Numbered, asyncio.Task):  # type: ignore[type-arg]
    """A task of a host."""


class Future(Numbered, asyncio.Future):  # type: ignore[type-arg]
    """A future of a host."""


class Host(asyncio.BaseEventLoop):
    """An asyncio event loop on the simulated clock. `connect` makes its connections."""

    _is_turning = False

    def __init__(self, name: str, clock: Clock, random: Random, connect: Callable[..., Any]) -> None:
        super().__init__()
        self.name = name
        self.clock = clock
        self.skew = 0.0
        """How far ahead of the true time its clock is."""
        self.is_dead = False
        self.on_error: Callable[[Host, dict[str, Any]], None] = lambda host, context: None
        self._random = random
        self._connect = connect
        self._busy_until = 0.0
        self._turn_at = float("inf")
        self._next: Event | None = None
        self._callbacks_left = float("inf")
        """After so many callbacks it is killed."""
        self._remains: list[Any] = []
        self._on_killed: Callable[[Host], None] = lambda host: None
        self.set_task_factory(self._new_task)

    def __repr__(self) -> str:
        return self.name

    # --- What the world does with it -------------------------------------------------------------

    def spend(self, seconds: float) -> None:
        """The callback that runs now takes so long."""
        self._busy_until = max(self._busy_until, self.clock.now) + seconds

    def pause(self, seconds: float) -> None:
        """It stands still."""
        self.spend(seconds)
        self._arrange()

    def wake(self) -> None:
        """It goes on at once."""
        self._busy_until = 0.0
        self._arrange()

    def kill(self, callbacks: int, on_killed: Callable[[Host], None]) -> None:
        """kill -9 after so many more callbacks."""
        self._on_killed = on_killed
        self._callbacks_left = callbacks
        if not callbacks:
            self._die()

    def _die(self) -> None:
        self.is_dead = True
        # Kept until the end: what is forgotten runs its `finally`, and a process that was killed does not.
        self._remains += [*self._ready, *self._scheduled]
        self._ready.clear()
        self._scheduled.clear()
        if self._next is not None:
            self._next.cancel()
        self._on_killed(self)

    def bury(self) -> None:
        """The simulation is over."""
        self.is_dead = True
        if not self.is_closed():
            self._ready.clear()
            self._scheduled.clear()
            self.close()

    # --- Turns -----------------------------------------------------------------------------------

    def _arrange(self) -> None:
        """Have a turn as soon as there is something to do."""
        if self._is_turning or self.is_dead:
            return
        if self._ready:
            wanted = self.clock.now
        elif self._scheduled:
            wanted = self._scheduled[0].when()
        else:
            return
        wanted = max(wanted, self._busy_until, self.clock.now)
        if wanted < self._turn_at or self._busy_until > self._turn_at:
            if self._next is not None:
                self._next.cancel()
            self._turn_at = wanted
            self._next = self.clock.at(wanted, self._turn)

    def _turn(self) -> None:
        self._turn_at, self._next = float("inf"), None
        self._collect_timers()
        self._is_turning = True
        self.clock.skew = self.skew
        events._set_running_loop(self)  # noqa: SLF001
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._asyncgen_firstiter_hook, self._asyncgen_finalizer_hook)
        try:
            done = self._run_ready()
        finally:
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(None)  # noqa: SLF001
            self.clock.skew = 0.0
            self._is_turning = False
        if self._callbacks_left <= 0:
            self._die()
        self.spend(CALLBACK_SECONDS * done * (0.5 + self._random.random()))
        self._arrange()

    def _collect_timers(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        if self._timer_cancelled_count > 100 and self._timer_cancelled_count * 2 > len(scheduled):
            for handle in scheduled:
                if handle.cancelled():
                    handle._scheduled = False  # noqa: SLF001
            scheduled[:] = [handle for handle in scheduled if not handle.cancelled()]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        end = self.clock.now + 1e-9
        while scheduled and (scheduled[0].cancelled() or scheduled[0].when() <= end):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False  # noqa: SLF001
            if handle.cancelled():
                self._timer_cancelled_count -= 1
            else:
                ready.append(handle)

    def _run_ready(self) -> int:
        """What is ready now; what becomes ready meanwhile has the next turn."""
        ready, done = self._ready, 0
        for _ in range(len(ready)):
            if self._callbacks_left <= 0:
                break  # what is left is kept (`_die`)
            handle = ready.popleft()
            if handle.cancelled():
                continue
            self._callbacks_left -= 1
            done += 1
            handle._run()  # noqa: SLF001
        self.clock.steps += done
        return done

    # --- asyncio ---------------------------------------------------------------------------------

    def time(self) -> float:
        return self.clock.now

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> Any:
        handle = super()._call_soon(callback, args, context)  # type: ignore[misc]
        self._arrange()
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        timer = super().call_at(when, callback, *args, context=context)
        self._arrange()
        return timer

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_soon(callback, *args, context=context)

    def create_future(self) -> Any:
        return Future(loop=self)

    @staticmethod
    def _new_task(loop: Any, work: Coroutine[Any, Any, Any], **options: Any) -> Task:
        return Task(work, loop=loop, **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.is_dead:
            self.on_error(self, context)

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return await self._connect(self, protocol_factory, host, port)

    def is_running(self) -> bool:
        return self._is_turning

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: Any) -> None:
        if handle._scheduled:  # noqa: SLF001
            self._timer_cancelled_count += 1

    def _process_events(self, event_list: Any) -> None:
        raise NotImplementedError

    def _write_to_self(self) -> None:
        """It has no thread to wake."""
