"""The processes of the system, and what they do with Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.host import Host
from tests.simulation.network import Link
from tests.simulation.redis.session import Session
from tests.simulation.stage import DAMAGED, PREFIX, Part, Stage


async def instance(*, embeds_bridge: bool = False) -> None:
    """A socket process, without its port; or with `EMBEDDED_BRIDGE`."""
    from realtime.inline.life import EMBEDDED_BRIDGE, life

    async def receive() -> Any:
        if started:
            await asyncio.get_running_loop().create_future()
        started.append(True)
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        """No code waits for it."""

    started: list[bool] = []
    await life().run({"type": "lifespan"}, receive, send, EMBEDDED_BRIDGE if embeds_bridge else ())


async def bridge() -> None:
    """What `runbridge` runs."""
    from presence.sweeper import Sweeper
    from realtime.bridge.bridge import Bridge
    from realtime.bridge.bus_entry import BUS
    from realtime.inline.delivery import PRESENCE

    bridge = Bridge([BUS, PRESENCE])
    await asyncio.gather(bridge.run(), Sweeper().run())


class System(Stage):
    """Instances and bridges, which the checker watches."""

    def __init__(self, seed: int, *, calm: bool = False, say: Callable[[str], None] | None = None) -> None:
        super().__init__(seed, calm=calm, say=say)
        self.redis.on_add = self._on_add
        self.redis.on_new_field = self.checker.entered
        self.redis.on_push = self._on_push
        self.redis.on_publish = self.checker.broadcast
        self.redis.on_subscribed = self._on_subscribed
        self.network.on_abort = self._on_abort

    def start(self, kind: str, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        host = Host(name, self.clock, self.random, self.network.connect)
        host.skew = self.random.choice((0.0, 0.0, -2.0, 2.0, 30.0)) if not self.calm else 0.0
        host.on_error = self._on_error
        part = Part(kind, name, host, main)
        self.parts.append(part)
        host.create_task(main()).add_done_callback(lambda task: self._on_main_done(part, task))
        self.note("started", name)

    def _on_main_done(self, part: Part, task: Any) -> None:
        if not task.cancelled() and task.exception() is not None and not part.host.is_dead:
            self.fail(f"{part.name} ended with {task.exception()!r}")

    def _on_error(self, host: Host, context: dict[str, Any]) -> None:
        self.fail(f"{host}: {context.get('message')}: {context.get('exception')!r}")

    def _on_add(self, key: bytes, id: tuple[int, int], fields: list[bytes]) -> None:
        self.note("added", key.decode(), id, fields[1])
        is_expected = (
            self.has_refusals and key == f"{PREFIX}:dead".encode() and DAMAGED.encode() in fields[-1]
        )
        if not is_expected:
            self.checker.added(key, id, fields)

    def _on_push(self, session: Session, channel: bytes, payload: bytes) -> None:
        host = session.link.host
        self.checker.watch(session.link, host.name.startswith("instance"), channel, payload)

    def _on_subscribed(self, session: Session, channel: bytes) -> None:
        if session.link.host.name.startswith("instance"):
            self.checker.subscribed(session.link, channel)

    def _on_abort(self, link: Link) -> None:
        """A host gives up a connection that delivers."""
        is_subscribed = isinstance(link.peer, Session) and bool(link.peer.channels)
        if is_subscribed and link.host.name.startswith("instance") and not self.has_broken:
            self.fail(f"{link.host} cuts its own subscription, which was never broken")

    def any_instance(self) -> Host | None:
        hosts = [part.host for part in self.parts if part.kind == "instance" and not part.host.is_dead]
        if hosts and self.random.random() < self.crowd:
            return min(hosts, key=lambda host: host.name)
        return self.random.choice(hosts) if hosts else None

    def subscriptions(self, host: Host) -> list[Link]:
        links = self.network.links_of(host)
        return [link for link in links if isinstance(link.peer, Session) and link.peer.channels]
