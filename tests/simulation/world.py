"""All of it together: hosts, clients and a backbone, and what a seed makes happen to them."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

import msgspec
from channels.layers import channel_layers

from realtime.layers.direct import direct
from realtime.protocol.namespaces import namespaces
from realtime.protocol.rooms import group_name
from realtime.tasks.per_loop import PerLoop
from tests.simulation.checker.checker import Checker, Violation
from tests.simulation.checker.orders import Order
from tests.simulation.clients import Client
from tests.simulation.clock import EPOCH, Clock, simulated
from tests.simulation.host import Host, Numbered
from tests.simulation.network import Link, Network
from tests.simulation.redis.server import RedisServer
from tests.simulation.redis.session import Session
from tests.simulation.sockets import Socket

PREFIX = "sim"
REDIS = ("redis", 6379)
HISTORY_SIZE = 60
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
THREADS = ("1", "2", "3")
DAMAGED = "thread:13"
LEASE_SECONDS = 0.3
SETTLE_SECONDS = 25.0
QUIET_SECONDS = 9.0


@dataclass
class Part:
    """A process of the system, and how to start another one like it."""

    kind: str
    name: str
    host: Host
    main: Callable[[], Coroutine[Any, Any, None]]


async def instance(*, embeds_bridge: bool = False) -> None:
    """A socket process, without its port; or with `EMBEDDED_BRIDGE`."""
    from realtime.inline.life import EMBEDDED_BRIDGE, life

    async def receive() -> Any:
        if started:
            await asyncio.get_running_loop().create_future()
        started.append(True)
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        """Nobody waits for it."""

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


class World:
    """One simulation. `run` it once."""

    def __init__(self, seed: int, *, calm: bool = False, say: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self._is_direct = seed % 4 == 0
        self._has_bridges = seed % 3 != 0
        """Else every instance has one inside."""
        self._has_refusals = seed % 5 == 0
        """Some messages are for a room, too, whose key another program has overwritten."""
        self._has_clock_jumps = seed % 7 == 6
        """Redis' clock is set forward now and then."""
        self.calm = calm
        """Nothing breaks."""
        self._say = say
        Socket.numbers = Numbered.numbers = 0
        self.clock = Clock()
        self.network = Network(self.clock, self.random)
        self.redis = RedisServer(self.clock)
        self.network.servers[REDIS] = self.redis
        self.checker = Checker(PREFIX, HISTORY_SIZE, lambda: self.clock.now, self.fail)
        self.redis.on_add = self._on_add
        self.redis.on_new_field = self.checker.entered
        self.redis.on_push = self._on_push
        self.redis.on_publish = self.checker.broadcast
        self.redis.on_subscribed = self._on_subscribed
        self.parts: list[Part] = []
        self.clients: list[Client] = []
        self.sockets: dict[Socket, None] = {}
        self.happened: Counter[str] = Counter()
        self._buried: list[Any] = []
        """Hosts that were killed, and what was theirs."""
        self._messages = 0
        self._replica: tuple[Any, Any, float] | None = None
        self._is_over = False
        self._has_broken = False
        """A connection, or Redis, has."""
        self.network.on_abort = self._on_abort
        self._trace = hashlib.sha256()

        self._weights = self._weigh()
        self.network.slowness = self.random.choice((0.0002, 0.0005, 0.003))
        self.write_seconds = self.random.choice((4e-6, 4e-6, 3e-4, 2e-3))
        """What a write to a client takes of its host's time."""
        self.slice = self.random.choice((1, 2, 3))
        self._crowd = self.random.choice((0.5, 0.9))
        """How likely a client gets to the first instance rather than to another one."""

        self._is_blind = not calm and self.random.random() < 0.3
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
            **({self.set_clock_forward: 1.0} if self._has_clock_jumps else {}),
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
                backlog = self._messages * len(self.clients) * self.write_seconds
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

    @property
    def trace(self) -> str:
        """The same for the same seed, always."""
        return self._trace.hexdigest()[:16]

    def fail(self, why: str) -> None:
        if self.clock.failure is None:
            self.note("VIOLATION", why)
            self.clock.failure = Violation(
                f"seed {self.seed}, {self.clock.now:.6f} s, step {self.clock.steps}: {why}"
            )

    def note(self, what: str, *about: Any) -> None:
        self._trace.update(f"{self.clock.now:.9f} {self.clock.steps} {what} {about}".encode())
        if self._say is not None:
            self._say(" ".join([f"{self.clock.now:10.6f} {self.clock.steps:7} {what}", *map(str, about)]))

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
        for each in self._buried:
            if isinstance(each, Host):
                each.bury()
        self.parts.clear()
        self._buried.clear()
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

    # --- Parts -----------------------------------------------------------------------------------

    def _populate(self) -> None:
        for number in range(2):
            main = partial(instance, embeds_bridge=not self._has_bridges)
            self._start("instance", f"instance-{number}", main)
        for number in range(2 if self._has_bridges else 0):
            self._start("bridge", f"bridge-{number}", bridge)
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

    def _start(self, kind: str, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
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
            self._has_refusals and key == f"{PREFIX}:dead".encode() and DAMAGED.encode() in fields[-1]
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
        if is_subscribed and link.host.name.startswith("instance") and not self._has_broken:
            self.fail(f"{link.host} cuts its own subscription, which was never broken")

    def any_instance(self) -> Host | None:
        hosts = [part.host for part in self.parts if part.kind == "instance" and not part.host.is_dead]
        if hosts and self.random.random() < self._crowd:
            return min(hosts, key=lambda host: host.name)
        return self.random.choice(hosts) if hosts else None

    def open(self, client: Client, host: Host, query: bytes) -> None:
        socket = client.socket = Socket(self, host, client, query)
        self.sockets[socket] = None
        self.checker.opened(socket)
        declared = namespaces()[client.namespace]
        socket.start(declared.consumer_class.as_asgi(declared=declared))

    # --- What happens ----------------------------------------------------------------------------

    def _act(self) -> None:
        if self._is_over:
            return
        action = self.random.choices(list(self._weights), list(self._weights.values()))[0]
        self.happened[action.__name__] += 1
        action()
        self.clock.after(self.random.expovariate(40), self._act)

    def publish(self) -> None:
        """The backbone publishes one message, or a burst."""
        for _ in range(self.random.choice((1, 1, 1, 2, 5, 12))):
            self._publish(self.random.choice(THREADS), durable=self.random.random() < 0.85)

    def _publish(self, thread: str, *, durable: bool = True) -> None:
        if not self.redis.is_up:
            return
        self._messages += 1
        number = self._messages
        connected = [
            client.socket for client in self.clients if client.socket and client.socket.connection_id
        ]
        message: dict[str, Any] = {
            "event": "thread:message",
            "data": {"thread_id": thread, "message_id": f"m{number}", "number": number, "durable": durable},
        }
        if self.random.random() < 0.3:
            message["data"]["text"] = "x" * self.random.choice((20, 300, 1500))
        if self.random.random() < 0.3:
            message["id"] = f"id{number}"
        if self.random.random() < 0.2 and connected:
            message["except"] = self.random.choice(connected).connection_id
        if self._has_refusals and number % 6 == 0:
            self._damage(message)
        raw = msgspec.json.encode(message)
        if durable:
            self._submit(raw)
            for namespace in ("hub", "portal"):
                self.checker.expect(group_name(namespace, f"thread:{thread}"), number)
            if "id" in message and self.random.random() < 0.3:
                self._submit(raw)
        else:
            self.redis.run(None, [b"PUBLISH", f"{PREFIX}:events".encode(), raw])

    def _damage(self, message: dict[str, Any]) -> None:
        """One of its rooms will refuse a message."""
        damaged = f"{PREFIX}:{{{group_name('hub', DAMAGED)}}}:room".encode()
        self.redis.run(None, [b"DEL", damaged])
        self.redis.run(None, [b"SET", damaged, b"not ours"])
        rooms = [DAMAGED, f"thread:{message['data']['thread_id']}"]
        message["rooms"] = self.random.choice((rooms, rooms[::-1]))

    def _submit(self, raw: bytes) -> None:
        """By one of the two ways that a backbone has; with most seeds always by the stream, where more can go wrong."""
        found = direct([raw]) if self._is_direct and self.random.random() < 0.5 else None
        if DAMAGED.encode() in raw:
            found = None  # Redis refuses all of it, and the backbone takes the stream
        if found is None:
            self._add(raw)
        else:
            _, whole = found.commands()
            self.redis.run(None, [word if isinstance(word, bytes) else str(word).encode() for word in whole])

    def _add(self, raw: bytes) -> float:
        """To the bus; returns Redis' clock then."""
        id = self.redis.run(None, [b"XADD", f"{PREFIX}:stream".encode(), b"*", b"message", raw])
        return int(id.partition(b"-")[0]) / 1000

    def ask(self) -> None:
        """A client joins, leaves or comes back into a thread."""
        client, thread = self.random.choice(self.clients), self.random.choice(THREADS)
        if client.socket is None or not client.socket.connection_id:
            return
        match self.random.random():
            case chance if chance < 0.45:
                client.join(thread)
            case chance if chance < 0.7:
                client.rejoin(thread)
            case chance if chance < 0.8:
                client.leave(thread)
            case chance if chance < 0.88:
                client.leave(thread)
                client.rejoin(thread)
            case _:
                client.resume()

    def say(self) -> None:
        """Somebody types."""
        client = self.random.choice(self.clients)
        threads = sorted(room[7:] for room in client.joined if room.startswith("thread:"))
        if threads:
            client.tell(
                self.random.choice(("typing:start", "typing:stop")),
                {"thread_id": self.random.choice(threads)},
            )

    def move(self) -> None:
        """A client goes away and comes back."""
        self.random.choice(self.clients).vanish()

    def slow_down(self) -> None:
        """A client reads slowly, not at all for a while, or quickly again."""
        client = self.random.choice(self.clients)
        client.pause, client.appetite = self.random.choice(
            ((0.0, 1 << 30), (0.0, 1 << 30), (0.005, 400), (0.05, 800), (1.0, 2000), (8.0, 5000))
        )

    def order(self) -> None:
        """An operator grants, revokes, expels, disconnects; mostly what concerns a user who is there."""
        if not self.redis.is_up:
            return
        client = self.random.choice(self.clients)
        thread = self.random.choice(
            sorted(room[7:] for room in client.joined if room[:7] == "thread:") or THREADS
        )
        if self._is_blind and client.socket is not None and self.random.random() < 0.4:
            self._cut_subscription(client.socket.host)
        self._order(client, thread)
        # Perhaps at the moment at which the order comes: then its turn is taken, or there is something to write.
        for _ in range(self.random.choice((0, 2, 6))):
            enter = self.random.choice((client.join, client.come_back))
            self._soon(self._publish, thread)
            self._soon(enter, self.random.choice((thread, *THREADS)))

    def _soon(self, action: Callable[[str], None], thread: str) -> None:
        self.clock.after(self.random.random() * 20 * self.network.slowness, action, thread)

    def _order(self, client: Client, thread: str) -> None:
        right = {"thread_id": thread, "user_id": client.user_id}
        taking = "thread:expel" if client.namespace == "hub" else "thread:revoke"
        event, data = self.random.choice(
            (
                ("thread:grant", right),
                ("thread:grant", right),
                (taking, right),
                (taking, right),
                (taking, right),
                ("user:disconnect", {"user_id": client.user_id, "namespace": client.namespace}),
                ("token:revoke", {"jti": client.jti, "exp": int(EPOCH + self.clock.now + 3600)}),
            )
        )
        at = self._add(msgspec.json.encode({"event": event, "data": data}))
        self.checker.orders.append(Order(event, data, at, EPOCH + self.clock.now))
        self.note(event, data)

    def _cut_subscription(self, host: Host) -> None:
        """Just before an order, so that it is missed."""
        self._has_broken = True
        for link in self._subscriptions(host):
            link.cut()

    def _subscriptions(self, host: Host) -> list[Link]:
        links = self.network.links_of(host)
        return [link for link in links if isinstance(link.peer, Session) and link.peer.channels]

    # --- Faults ----------------------------------------------------------------------------------

    def _any_link(self) -> Link | None:
        """Every other time one with a subscription."""
        links = list(self.network.links)
        if self.random.random() < 0.5:
            links = [link for link in links if isinstance(link.peer, Session) and link.peer.channels] or links
        return self.random.choice(links) if links else None

    def cut_link(self) -> None:
        """A connection to Redis breaks; now and then all of a host's."""
        self._has_broken = True
        if link := self._any_link():
            links = self.network.links_of(link.host) if self.random.random() < 0.2 else [link]
            self.note("cut", links)
            for each in links:
                each.cut()

    def stall_link(self) -> None:
        """A connection carries nothing for a while, or never again."""
        self._has_broken = True
        if link := self._any_link():
            self.note("stall", link)
            link.stall()
            if self.random.random() < 0.7:
                self.clock.after(self.random.choice((0.05, 0.5, 3.0, 10.0)), link.go_on)

    def pause(self) -> None:
        """A host stands still."""
        if not self.parts:
            return  # all were killed, and none is back yet
        part, seconds = self.random.choice(self.parts), self.random.choice((0.05, 0.3, 1.0, 4.0, 90.0))
        if seconds == 90.0 and self.random.random() < 0.8:
            return
        self.note("pause", part.name, seconds)
        part.host.pause(seconds)

    def hand_over(self) -> None:
        """A bridge stands still, or hears nothing, for longer than a lease; it goes on while another stands still."""
        bridges = [part.host for part in self.parts if part.kind == "bridge" or not self._has_bridges]
        if len(bridges) < 2:
            return
        first, second = self.random.sample(bridges, 2)
        turn = 2 * LEASE_SECONDS + self.random.random() / 2
        self.note("hand over", first, second)
        self.clock.after(turn, second.pause, 4 * LEASE_SECONDS)
        if self.random.random() < 0.5:
            first.pause(turn + 2 * LEASE_SECONDS)
            return
        self._has_broken = True
        for link in self._subscriptions(first):
            link.stall()
            self.clock.after(turn + 2 * LEASE_SECONDS, link.go_on)

    def kill(self) -> None:
        """kill -9, between any two callbacks; another one is started in its place."""
        if not self.parts:
            return
        part = self.random.choice(self.parts)
        self.note("kill", part.name)
        part.host.kill(self.random.randrange(30), lambda host: self._on_killed(part))

    def _on_killed(self, part: Part) -> None:
        if part not in self.parts:
            return
        self.parts.remove(part)
        self._buried += [part.host, *self.network.links_of(part.host)]
        self.network.host_died(part.host)
        for socket in list(self.sockets):
            if socket.host is part.host:
                del self.sockets[socket]
                self._buried.append(socket)
                socket.host_died()
        self.clock.after(0.1 + self.random.random(), self._start, part.kind, part.name, part.main)

    def restart_redis(self) -> None:
        """Redis is away for a moment and comes back with everything, or with nothing."""
        if not self.redis.is_up:
            return
        database = self.redis.database if self.random.random() < 0.7 else None
        self.note("redis stops", "keeps everything" if database else "loses everything")
        self._redis_stops(database, self.checker.state() if database else {}, float("inf"))

    def _redis_stops(self, database: Any, kept: Any, since: float) -> None:
        self.redis.stop(database)
        self._has_broken = True
        if since != float("inf") or database is None:
            self.checker.lose(kept, since)
        self._replica = None
        self.clock.after(self.random.choice((0.01, 0.3, 2.0)), self._redis_starts)

    def _redis_starts(self) -> None:
        if not self.redis.is_up:
            self.note("redis starts")
            self.redis.start()

    def fail_over(self) -> None:
        """A replica takes over that has not got what was written last."""
        if self._replica is None and self.redis.is_up:
            self._replica = self.redis.database.copy(), self.checker.state(), EPOCH + self.clock.now
            self.clock.after(
                self.random.choice((0.0, 0.003, 0.05, 0.5)), self._replica_takes_over, self._replica
            )

    def _replica_takes_over(self, replica: Any) -> None:
        if replica is not self._replica or not self.redis.is_up:
            return
        self.note("failover")
        for link in list(self.network.links):
            if self.random.random() < 0.3:
                link.cut()  # what it was sent last was not sent to all
        database, kept, since = replica
        self._redis_stops(database, kept, since)

    def flush(self) -> None:
        """FLUSHALL, on an open connection."""
        if self.redis.is_up:
            self.note("flush")
            self.redis.run(None, [b"FLUSHALL"])
            self.checker.lose({}, 0.0)
            self._replica = None

    def set_clock_forward(self) -> None:
        """Redis' clock is set forward, by less than histories last."""
        seconds = self.random.choice((1.0, 60.0))
        self.note("clock", seconds)
        self.redis.skew += seconds

    def hang_redis(self) -> None:
        """Redis takes what it is sent and does nothing."""
        self.note("redis hangs")
        self._has_broken = True
        self.redis.hang()
        self.clock.after(self.random.choice((0.1, 1.0, 7.0)), self.redis.go_on)

    # --- The end ---------------------------------------------------------------------------------

    def _heal(self, settle_seconds: float) -> None:
        """Nothing breaks any more."""
        self.note("heal")
        self._is_over = True
        self._redis_starts()
        self.redis.go_on()
        for link in list(self.network.links):
            link.go_on()
        self._replica = None
        for part in self.parts:
            part.host.wake()
        for client in self.clients:
            client.pause, client.appetite = 0.0, 1 << 30
            self.clock.after(settle_seconds - 13.0, client.enter_wanted)

    def _probe(self) -> None:
        """One last message to each room."""
        self.note("probe")
        self.clock.after(1.0, lambda: [self._publish(thread) for thread in THREADS])


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
