"""Connections as TCP makes them: in order and complete up to where they end, and nothing else is certain."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from tests.simulation.clock import Clock
from tests.simulation.host import Host


class Peer(Protocol):
    """The server's side of a connection."""

    def receive(self, data: bytes) -> None:
        """Bytes have arrived."""

    def lost(self) -> None:
        """The connection is over."""


class Server(Protocol):
    """Takes connections."""

    is_up: bool

    def accept(self, link: Link) -> Peer:
        """A new one."""


class Stream:
    """One direction of a connection."""

    __slots__ = ("_arrive", "_clock", "_network", "arrives_at", "held", "is_stalled", "sent")

    def __init__(self, network: Network, arrive: Callable[[bytes], None]) -> None:
        self._network = network
        self._clock = network.clock
        self._arrive = arrive
        self.arrives_at = 0.0
        self.held: deque[bytes] = deque()
        """What has been sent into a connection that carries nothing just now."""
        self.is_stalled = False
        self.sent = 0
        """Bytes ever."""

    def send(self, data: bytes) -> None:
        self.sent += len(data)
        if self.is_stalled:
            self.held.append(data)
        else:
            self._carry(data)

    def _carry(self, data: bytes) -> None:
        for chunk in self._network.chunks(data):
            self.arrives_at = max(self.arrives_at, self._clock.now + self._network.latency())
            self._clock.at(self.arrives_at, self._arrive, chunk)

    def stall(self) -> None:
        self.is_stalled = True

    def go_on(self) -> None:
        self.is_stalled = False
        while self.held:
            self._carry(self.held.popleft())


class Network:
    """Makes connections, and breaks them."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock = clock
        self.random = random
        self.slowness = 0.0005
        """Seconds that a packet takes, more or less."""
        self.splits = 0.03
        """How likely what is written at once arrives in pieces."""
        self.on_abort: Callable[[Link], None] = lambda link: None
        """Told when a host gives up a connection."""
        self.servers: dict[tuple[str, int], Server] = {}
        self.links: dict[Link, None] = {}

    def latency(self) -> float:
        chance = self.random.random()
        # Most packets are quick; a few are late by far.
        return self.slowness * (0.2 + chance) if chance < 0.97 else self.slowness * 40 * chance

    def chunks(self, data: bytes) -> list[bytes]:
        if len(data) < 2 or self.random.random() >= self.splits:
            return [data]
        cuts = sorted({self.random.randrange(1, len(data)) for _ in range(self.random.randint(1, 3))})
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    async def connect(self, host: Host, protocol_factory: Any, name: str, port: int) -> tuple[Link, Any]:
        """What `create_connection` does."""
        await asyncio.sleep(self.latency() + self.latency())
        server = self.servers[name, port]
        if not server.is_up:
            raise ConnectionRefusedError(f"{name}:{port} refuses")
        protocol = protocol_factory()
        link = Link(self, host, protocol, server)
        self.links[link] = None
        protocol.connection_made(link)
        return link, protocol

    def links_of(self, host: Host) -> list[Link]:
        return [link for link in self.links if link.host is host]

    def host_died(self, host: Host) -> None:
        """The kernel of a host closes what its process had open."""
        for link in self.links_of(host):
            link.drop()


class Link(asyncio.Transport):
    """A connection from a host to a server; to the host it is the transport."""

    def __init__(self, network: Network, host: Host, protocol: Any, server: Server) -> None:
        super().__init__()
        self.network = network
        self.host = host
        self.received = 0
        """Bytes that the host's protocol has been given."""
        self.marks: deque[tuple[int, Callable[[], None]]] = deque()
        """What to call once the host has been given so many bytes."""
        self.opened_at = network.clock.now
        self._protocol = protocol
        self._incoming: deque[bytes] = deque()
        self._is_reading = True
        self._is_read_scheduled = False
        self._is_closing = False
        """The host has closed it, or knows that it is lost."""
        self._is_cut = False
        """Nothing arrives any more."""
        self.up = Stream(network, self._arrive_at_server)
        self.down = Stream(network, self._arrive_at_host)
        self.peer: Peer | None = server.accept(self)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<link of {self.host}>"

    # --- What happens to it ----------------------------------------------------------------------

    def cut(self) -> None:
        """It breaks. What was on its way to the server may arrive or not; what was on its way back does not."""
        if self._is_cut:
            return
        self._is_cut = True
        random, clock = self.network.random, self.network.clock
        if random.random() < 0.5:
            self._lose_peer()
        else:
            clock.after(self.network.latency() * 4, self._lose_peer)
        clock.after(self.network.latency(), self._tell_host)

    def drop(self) -> None:
        """Its host is gone."""
        self._is_closing = self._is_cut = True
        self.network.clock.after(self.network.latency(), self._lose_peer)

    def stall(self) -> None:
        """It carries nothing any more, and neither end is told."""
        self.up.stall()
        self.down.stall()

    def go_on(self) -> None:
        self.up.go_on()
        self.down.go_on()

    def close_from_server(self) -> None:
        """The server closes it, after what it has sent."""
        self.peer = None
        when = max(self.down.arrives_at, self.network.clock.now + self.network.latency())
        self.network.clock.at(when, self._tell_host)

    def _lose_peer(self) -> None:
        self.network.links.pop(self, None)
        if self.peer is not None:
            peer, self.peer = self.peer, None
            peer.lost()

    def _tell_host(self) -> None:
        self._is_cut = True
        self.network.links.pop(self, None)
        if not self._is_closing and not self.host.is_dead:
            self._is_closing = True
            error = ConnectionResetError("connection reset by peer")
            self.host.call_soon(self._protocol.connection_lost, error)

    def _arrive_at_server(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.receive(data)

    def _arrive_at_host(self, data: bytes) -> None:
        if not self._is_cut and not self.host.is_dead:
            self._incoming.append(data)
            self._schedule_read()

    def _schedule_read(self) -> None:
        if self._incoming and self._is_reading and not self._is_read_scheduled and not self._is_closing:
            self._is_read_scheduled = True
            self.host.call_soon(self._read)

    def _read(self) -> None:
        """The socket can be read: everything that has arrived is."""
        self._is_read_scheduled = False
        if self._is_closing or not self._is_reading or not self._incoming:
            return
        data = b"".join(self._incoming)
        self._incoming.clear()
        if self.marks and self.received < self.marks[0][0] < self.received + len(data):
            data = self._split(data, self.marks[0][0] - self.received)
        self.received += len(data)
        self._protocol.data_received(data)
        while self.marks and self.marks[0][0] <= self.received:
            self.marks.popleft()[1]()
        self._schedule_read()

    def _split(self, data: bytes, length: int) -> bytes:
        """What is marked is the end of a packet every other time, so that one sees at once what was done about it."""
        if self.network.random.random() < 0.5:
            return data
        self._incoming.append(data[length:])
        return data[:length]

    # --- asyncio.Transport -----------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if not self._is_closing and not self._is_cut and not self.host.is_dead and data:
            self.up.send(bytes(data))

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        if not self._is_closing:
            self._close()

    def _close(self) -> None:
        self._is_closing = self._is_cut = True
        self.network.clock.at(
            max(self.up.arrives_at, self.network.clock.now + self.network.latency()), self._lose_peer
        )
        if not self.host.is_dead:
            self.host.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        if self._is_closing:
            return
        self.network.on_abort(self)
        if self.network.random.random() < 0.5:
            self._close()
        else:
            self._is_closing = self._is_cut = True
            self.network.clock.after(self.network.latency(), self._lose_peer)
            if not self.host.is_dead:
                self.host.call_soon(self._protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._schedule_read()

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: Any = None, low: Any = None) -> None:
        """It has no limits."""

    def can_write_eof(self) -> bool:
        return False
