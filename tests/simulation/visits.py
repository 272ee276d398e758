"""What clients do: they come, join and leave threads, type, go away, read slowly."""

from __future__ import annotations

from realtime.protocol.namespaces import namespaces
from tests.simulation.clients import Client
from tests.simulation.host import Host
from tests.simulation.sockets import Socket
from tests.simulation.stage import THREADS, Stage


class Visits(Stage):
    """The connections of clients, and what is sent through them."""

    def open(self, client: Client, host: Host, query: bytes) -> None:
        socket = client.socket = Socket(self, host, client, query)
        self.sockets[socket] = None
        self.checker.opened(socket)
        declared = namespaces()[client.namespace]
        socket.start(declared.consumer_class.as_asgi(declared=declared))

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
        """A client types."""
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
