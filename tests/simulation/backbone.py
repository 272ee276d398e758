"""The backbone publishes, and its operators order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from realtime.layers.direct import direct
from realtime.protocol.rooms import group_name
from tests.simulation.checker.orders import Order
from tests.simulation.clients import Client
from tests.simulation.clock import EPOCH
from tests.simulation.host import Host
from tests.simulation.stage import DAMAGED, PREFIX, THREADS
from tests.simulation.system import System


class Backbone(System):
    """What is added to the bus."""

    def publish(self) -> None:
        """The backbone publishes one message, or a burst."""
        for _ in range(self.random.choice((1, 1, 1, 2, 5, 12))):
            self.publish_in(self.random.choice(THREADS), durable=self.random.random() < 0.85)

    def publish_in(self, thread: str, *, durable: bool = True) -> None:
        if not self.redis.is_up:
            return
        self.messages += 1
        number = self.messages
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
        if self.has_refusals and number % 6 == 0:
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
        found = direct([raw]) if self.is_direct and self.random.random() < 0.5 else None
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

    def order(self) -> None:
        """An operator grants, revokes, expels, disconnects; mostly what concerns a user who is there."""
        if not self.redis.is_up:
            return
        client = self.random.choice(self.clients)
        thread = self.random.choice(
            sorted(room[7:] for room in client.joined if room[:7] == "thread:") or THREADS
        )
        if self.is_blind and client.socket is not None and self.random.random() < 0.4:
            self._cut_subscription(client.socket.host)
        self._order(client, thread)
        # Perhaps at the moment at which the order comes: then its turn is taken, or there is something to write.
        for _ in range(self.random.choice((0, 2, 6))):
            enter = self.random.choice((client.join, client.come_back))
            self._soon(self.publish_in, thread)
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
        self.has_broken = True
        for link in self.subscriptions(host):
            link.cut()
