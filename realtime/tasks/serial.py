"""One thing at a time: what happens to a connection happens in turn, whoever asks for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from redis.exceptions import RedisError

from realtime.tasks.supervision import PAUSE, report
from realtime.telemetry.logs import speak_for, spelled

logger = logging.getLogger(__name__)

_running: set[asyncio.Task[None]] = set()
"""The loop itself holds tasks by weak references only."""

Action = Callable[..., Awaitable[None]]


class SerialExecutor:
    """Mixin: frames, timers and signals wait for each other, so that none sees another one half-way."""

    LONGEST: ClassVar[float] = 86400.0
    """Seconds: a timer set for longer fires after this and must be set again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turn = asyncio.Lock()
        self.ended = False
        """Once true, whatever still waits for its turn is left out."""
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def facts(self) -> dict[str, str]:
        """What a log line about this says."""
        return {}

    def soon(self, action: Action, *args: Any) -> None:
        """Do something from outside (a timer, a signal), in its turn."""
        task = asyncio.create_task(self._in_turn(action, *args))
        _running.add(task)
        task.add_done_callback(_running.discard)

    def after(self, seconds: float, name: str, action: Action, *args: Any) -> None:
        """Do something in its turn after so many seconds; another timer of the same name replaces this one."""
        self.call_after(seconds, name, self.soon, action, *args)

    def call_after(self, seconds: float, name: str, callback: Callable[..., object], *args: Any) -> None:
        """The same, without waiting for a turn."""
        self.cancel(name)
        self._timers[name] = asyncio.get_running_loop().call_later(
            min(max(seconds, 0.0), self.LONGEST), self._fire, name, callback, args
        )

    def _fire(self, name: str, callback: Callable[..., object], args: Sequence[Any]) -> None:
        """Do what a timer is for; what fails is tried again."""
        timer = self._timers.get(name)
        try:
            callback(*args)
        except Exception:
            report("timer")
            if not self.ended and self._timers.get(name) is timer:
                self.call_after(PAUSE, name, callback, *args)

    def cancel(self, name: str) -> None:
        """Forget a timer."""
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def cancel_all(self) -> None:
        """Forget every timer."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    async def _in_turn(self, action: Action, *args: Any) -> None:
        speak_for(self)
        async with self.turn:
            if self.ended:
                return
            try:
                await action(*args)
            except (RedisError, OSError) as error:
                logger.warning("action failed", extra={"error": spelled(error)})
            except Exception:
                logger.exception("action failed")
