"""What breaks: connections, hosts, and Redis."""

from __future__ import annotations

from typing import Any

from tests.simulation.clock import EPOCH
from tests.simulation.network import Link
from tests.simulation.redis.session import Session
from tests.simulation.stage import Part
from tests.simulation.system import System

LEASE_SECONDS = 0.3


class Faults(System):
    """Breaks things; whatever is restarted comes back by itself."""

    def _any_link(self) -> Link | None:
        """Every other time one with a subscription."""
        links = list(self.network.links)
        if self.random.random() < 0.5:
            links = [link for link in links if isinstance(link.peer, Session) and link.peer.channels] or links
        return self.random.choice(links) if links else None

    def cut_link(self) -> None:
        """A connection to Redis breaks; now and then all of a host's."""
        self.has_broken = True
        if link := self._any_link():
            links = self.network.links_of(link.host) if self.random.random() < 0.2 else [link]
            self.note("cut", links)
            for each in links:
                each.cut()

    def stall_link(self) -> None:
        """A connection carries nothing for a while, or never again."""
        self.has_broken = True
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
        bridges = [part.host for part in self.parts if part.kind == "bridge" or not self.has_bridges]
        if len(bridges) < 2:
            return
        first, second = self.random.sample(bridges, 2)
        turn = 2 * LEASE_SECONDS + self.random.random() / 2
        self.note("hand over", first, second)
        self.clock.after(turn, second.pause, 4 * LEASE_SECONDS)
        if self.random.random() < 0.5:
            first.pause(turn + 2 * LEASE_SECONDS)
            return
        self.has_broken = True
        for link in self.subscriptions(first):
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
        self.buried += [part.host, *self.network.links_of(part.host)]
        self.network.host_died(part.host)
        for socket in list(self.sockets):
            if socket.host is part.host:
                del self.sockets[socket]
                self.buried.append(socket)
                socket.host_died()
        self.clock.after(0.1 + self.random.random(), self.start, part.kind, part.name, part.main)

    def restart_redis(self) -> None:
        """Redis is away for a moment and comes back with everything, or with nothing."""
        if not self.redis.is_up:
            return
        database = self.redis.database if self.random.random() < 0.7 else None
        self.note("redis stops", "keeps everything" if database else "loses everything")
        self._redis_stops(database, self.checker.state() if database else {}, float("inf"))

    def _redis_stops(self, database: Any, kept: Any, since: float) -> None:
        self.redis.stop(database)
        self.has_broken = True
        if since != float("inf") or database is None:
            self.checker.lose(kept, since)
        self.replica = None
        self.clock.after(self.random.choice((0.01, 0.3, 2.0)), self.redis_starts)

    def redis_starts(self) -> None:
        if not self.redis.is_up:
            self.note("redis starts")
            self.redis.start()

    def fail_over(self) -> None:
        """A replica takes over that has not got what was written last."""
        if self.replica is None and self.redis.is_up:
            self.replica = self.redis.database.copy(), self.checker.state(), EPOCH + self.clock.now
            self.clock.after(
                self.random.choice((0.0, 0.003, 0.05, 0.5)), self._replica_takes_over, self.replica
            )

    def _replica_takes_over(self, replica: Any) -> None:
        if replica is not self.replica or not self.redis.is_up:
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
            self.replica = None

    def set_clock_forward(self) -> None:
        """Redis' clock is set forward, by less than histories last."""
        seconds = self.random.choice((1.0, 60.0))
        self.note("clock", seconds)
        self.redis.skew += seconds

    def hang_redis(self) -> None:
        """Redis takes what it is sent and does nothing."""
        self.note("redis hangs")
        self.has_broken = True
        self.redis.hang()
        self.clock.after(self.random.choice((0.1, 1.0, 7.0)), self.redis.go_on)
