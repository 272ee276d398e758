"""All of it together: hosts, clients and a backbone, and what a seed makes happen to them."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from channels.layers import channel_layers

from realtime.tasks.per_loop import PerLoop
from tests.simulation.backbone import Backbone
from tests.simulation.clients import Client
from tests.simulation.clock import simulated
from tests.simulation.faults import LEASE_SECONDS, Faults
from tests.simulation.host import Host
from tests.simulation.stage import HISTORY_SIZE, PREFIX, THREADS
from tests.simulation.system import bridge, instance
from tests.simulation.visits import Visits

SETTINGS: dict[str, Any] = {
    "NAMESPACES": ["realtime.namespaces.hub.HUB", "realtime.namespaces.portal.PORTAL"],
    "REDIS_URL": "redis://redis:6379/0",
    "PREFIX": PREFIX,
    "PUBLISH_DIRECTLY": True,
    "HISTORY_SIZE": HISTORY_SIZE,
    "NODE_LEASE": 2.0,
    "GRACE_PERIOD": 3.0,
    "LIMITS": {"RATE": 0, "HANDSHAKES": 0, "HANDSHAKE_SECONDS": 5.0},
}
SETTLE_SECONDS = 25.0
QUIET_SECONDS = 9.0


@contextmanager
def small(size: int) -> Iterator[None]:
    """Slices, batches, bounds and terms so small that everything takes several and meets its bound."""
    sizes = {
        "realtime.layers.fanout.SLICE": size,
        "realtime.layers.group.BATCH_BYTES": 1000,
        "realtime.layers.fanout.WAITING_BYTES": 2000,
        "realtime.layers.history_reader.READ_COUNT": size + 1,
        "realtime.layers.gap_repair.COMPARE_BATCH": 2,
        "realtime.layers.history.READ_BYTES": 1000,
        "realtime.bridge.bridge.LEASE_SECONDS": LEASE_SECONDS,
    }
    with ExitStack() as stack:
        for name, value in sizes.items():
            stack.enter_context(patch(name, value))
        yield


class World(Backbone, Visits, Faults):
    """One simulation. `run` it once."""

    def __init__(self, seed: int, *, calm: bool = False, say: Callable[[str], None] | None = None) -> None:
        super().__init__(seed, calm=calm, say=say)
        self._weights = self._weigh()
        self.network.slowness = self.random.choice((0.0002, 0.0005, 0.003))
        self.write_seconds = self.random.choice((4e-6, 4e-6, 3e-4, 2e-3))
        """What a write to a client takes of its host's time."""
        self.slice = self.random.choice((1, 2, 3))
        self.crowd = self.random.choice((0.5, 0.9))
        """How likely a client gets to the first instance rather than to another one."""

        self.is_blind = not calm and self.random.random() < 0.3
        """Instances are cut off right before orders come."""

    def _weigh(self) -> dict[Callable[[], None], float]:
        """How often what happens. Each seed leaves out some faults and has more of others, so that none hides another
        (A. Groce et al., "Swarm Testing", 2012).
        """
        ordinary = {
            self.publish: 30,
            self.ask: 16,
            self.move: 3,
            self.order: self.random.choice((1, 3, 8)),
            self.say: 2,
        }
        faults = {
            self.cut_link: 1.2,
            self.stall_link: 0.3,
            self.pause: 0.5,
            self.hand_over: 0.5,
            self.kill: 0.25,
            self.restart_redis: 0.1,
            self.fail_over: 0.15,
            self.flush: 0.1,
            self.hang_redis: 0.1,
            self.slow_down: 1.5,
        }
        if self.calm:
            return {**ordinary}
        return {
            **ordinary,
            **{fault: weight * self.random.choice((0, 0, 1, 1, 3)) for fault, weight in faults.items()},
            **({self.set_clock_forward: 1.0} if self.has_clock_jumps else {}),
        }

    # --- Running ---------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Let things happen and break for so many steps; then let everything heal. Raises `Violation`."""
        gc.disable()
        try:
            with simulated(self.clock, self.seed), small(self.slice), self._layer(), self._watching_logs():
                self._populate()
                self.clock.run(steps=steps)
                # A slow host may still have everything to write.
                backlog = self.messages * len(self.clients) * self.write_seconds
                settle_seconds = max(SETTLE_SECONDS, backlog)
                self._heal(settle_seconds)
                self.clock.run(until=self.clock.now + settle_seconds)
                self.checker.settled(self.clients)
                self._probe()
                self.clock.run(until=self.clock.now + QUIET_SECONDS)
                self.checker.settled(self.clients)
                if self.clock.failure is not None:
                    raise self.clock.failure
        finally:
            self._clean_up()

    @contextmanager
    def _layer(self) -> Iterator[None]:
        from django.test import override_settings

        layers = {"default": {"BACKEND": "realtime.layers.RoomChannelLayer"}}
        with override_settings(REALTIME=SETTINGS, CHANNEL_LAYERS=layers):
            channel_layers.backends = {}
            yield

    @contextmanager
    def _watching_logs(self) -> Iterator[None]:
        """What the code logs as an error is one."""
        handler = _Errors(self.fail, self.note)
        root = logging.getLogger()
        before = root.handlers[:], root.level
        root.handlers = [handler]
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.handlers, level = before
            root.setLevel(level)

    def _clean_up(self) -> None:
        """Leave nothing behind, and let nothing of it run."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        logging.disable()
        for each in gc.get_objects():
            if isinstance(each, PerLoop):
                each.clear()
        for part in self.parts:
            part.host.bury()
        for each in self.buried:
            if isinstance(each, Host):
                each.bury()
        self.parts.clear()
        self.buried.clear()
        self.clock.stop()
        self.clients.clear()
        self.checker.views.clear()
        self.redis.sessions.clear()
        self.redis.channels.clear()
        self.network.links.clear()
        self.sockets.clear()
        gc.collect()
        logging.disable(logging.NOTSET)
        sys.unraisablehook = hook
        gc.enable()

    # --- What happens ----------------------------------------------------------------------------

    def _populate(self) -> None:
        for number in range(2):
            main = partial(instance, embeds_bridge=not self.has_bridges)
            self.start("instance", f"instance-{number}", main)
        for number in range(2 if self.has_bridges else 0):
            self.start("bridge", f"bridge-{number}", bridge)
        for number in range(20):
            is_hub = number % 2 == 0
            client = Client(
                world=self,
                random=self.random,
                name=f"{'hub' if is_hub else 'portal'}-{number}",
                namespace="hub" if is_hub else "portal",
                user_id=f"u{number // 4}",
                role=("attendant" if number % 4 == 0 else "admin") if is_hub else "customer",
                groups=("attendants",) if number % 4 == 0 else (),
                threads=frozenset(THREADS[: 1 + number % 3]),
            )
            self.clients.append(client)
            self.clock.after(0.2 + self.random.random(), client.connect)
        self.clock.after(0.5, self._act)

    def _act(self) -> None:
        if self.is_over:
            return
        action = self.random.choices(list(self._weights), list(self._weights.values()))[0]
        self.happened[action.__name__] += 1
        action()
        self.clock.after(self.random.expovariate(40), self._act)

    # --- The end ---------------------------------------------------------------------------------

    def _heal(self, settle_seconds: float) -> None:
        """Nothing breaks any more."""
        self.note("heal")
        self.is_over = True
        self.redis_starts()
        self.redis.go_on()
        for link in list(self.network.links):
            link.go_on()
        self.replica = None
        for part in self.parts:
            part.host.wake()
        for client in self.clients:
            client.pause, client.appetite = 0.0, 1 << 30
            self.clock.after(settle_seconds - 13.0, client.enter_wanted)

    def _probe(self) -> None:
        """One last message to each room."""
        self.note("probe")
        self.clock.after(1.0, lambda: [self.publish_in(thread) for thread in THREADS])


class _Errors(logging.Handler):
    def __init__(self, fail: Callable[[str], None], note: Callable[..., None]) -> None:
        super().__init__()
        self._fail = fail
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        extra = getattr(record, "error", "") or (repr(record.exc_info[1]) if record.exc_info else "")
        self._note("log", record.getMessage(), extra)
        if record.levelno >= logging.ERROR:
            self._fail(f"logged: {record.getMessage()} {record.exc_info and record.exc_info[1]!r}")
