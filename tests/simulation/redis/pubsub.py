"""Channels and their subscribers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.clock import Clock
from tests.simulation.redis.keys import Keys
from tests.simulation.redis.resp import Push
from tests.simulation.redis.session import NOTHING, Session


class PubSub(Keys):
    """Pub/Sub."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.channels: dict[bytes, dict[Session, None]] = {}
        self.on_publish: Callable[[bytes, bytes], None] = lambda channel, payload: None
        self.on_subscribed: Callable[[Session, bytes], None] = lambda session, channel: None
        """Told when a subscription was confirmed."""
        self.on_push: Callable[[Session, bytes, bytes], None] = lambda session, channel, payload: None
        """Told of everything that was sent to a subscriber."""

    def session_subscribe(self, session: Session, *channels: bytes) -> Any:
        for channel in channels:
            session.channels[channel] = None
            self.channels.setdefault(channel, {})[session] = None
            session.send(Push([b"subscribe", channel, len(session.channels)]))
            self.on_subscribed(session, channel)
        return NOTHING

    def session_unsubscribe(self, session: Session, *channels: bytes) -> Any:
        for channel in channels or [*session.channels]:
            session.channels.pop(channel, None)
            self.channels.get(channel, {}).pop(session, None)
            session.send(Push([b"unsubscribe", channel, len(session.channels)]))
        return NOTHING

    def do_publish(self, channel: bytes, payload: bytes) -> Any:
        self.on_publish(channel, payload)
        sessions = self.channels.get(channel, {})
        for session in sessions:
            session.send(Push([b"message", channel, payload]))
            self.on_push(session, channel, payload)
        return len(sessions)

    def do_pubsub(self, what: bytes, *channels: bytes) -> Any:
        assert what.upper() == b"NUMSUB", what
        return [part for channel in channels for part in (channel, len(self.channels.get(channel, {})))]
