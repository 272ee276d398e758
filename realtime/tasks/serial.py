"""The serial executor: frames, timers and signals of a connection are handled one at a time, in turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

from realtime.tasks.running import running_loop
from realtime.tasks.task_set import TaskSet
from realtime.telemetry.logs import speak_for, spelled

logger = logging.getLogger(__name__)

_running = TaskSet()

Action = Callable[..., Awaitable[None] | None]


class SerialExecutor:
    """Mixin: actions wait for each other, so that none sees the state in which another one is half-way."""

    __slots__ = ("_timers", "ended", "turn")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turn = asyncio.Lock()
        self.ended = False
        """Once true, actions that still wait for their turn are left out."""
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def facts(self) -> dict[str, str]:
        """The fields of every log line about this object."""
        return {}

    def soon(self, action: Action, *args: Any) -> None:
        """Run `action(*args)` in its turn."""
        _running.spawn(self._in_turn(action, *args))

    def after(self, seconds: float, name: str, action: Action, *args: Any) -> None:
        """Run `action(*args)` in its turn after `seconds`, instead of an earlier timer of this name."""
        self.cancel(name)
        self._timers[name] = running_loop().call_later(seconds, self.soon, action, *args)

    def cancel(self, name: str) -> None:
        """Cancel a timer, if it is set."""
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def cancel_all(self) -> None:
        """Cancel every timer."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    async def _in_turn(self, action: Action, *args: Any) -> None:
        speak_for(self)
        async with self.turn:
            if self.ended:
                return
            try:
                if (waiting := action(*args)) is not None:
                    await waiting
            except (RedisError, OSError) as error:
                logger.warning("action failed", extra={"error": spelled(error)})
            except Exception:
                logger.exception("action failed")
