"""The open connections of this instance, by id, by user and by token."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from realtime.connections.interface import Connection
from realtime.telemetry import metrics

Key = TypeVar("Key", bound=Hashable)


class ConnectionIndex:
    """Finds connections."""

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        self._by_user: _ByKey[tuple[str, str]] = _ByKey()
        self._by_token: _ByKey[str] = _ByKey()
        """By the `jti` of the token that opened a connection, or that it was refreshed with."""

    def add(self, connection: Connection) -> None:
        """From now on signals reach this connection."""
        self.connections[connection.connection_id] = connection
        self._by_token.add(connection.principal.jti, connection)
        if self._by_user.add(connection.user, connection):
            metrics.users(connection.user[0]).inc()

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.pop(connection.connection_id, None)
        self._by_token.discard(connection.principal.jti, connection)
        if self._by_user.discard(connection.user, connection):
            metrics.users(connection.user[0]).dec()

    def refreshed(self, connection: Connection, previous: str) -> None:
        """The connection has exchanged the token with the `jti` `previous` for another."""
        self._by_token.discard(previous, connection)
        self._by_token.add(connection.principal.jti, connection)

    def connections_of(self, namespace: str, user_id: str) -> Sequence[Connection]:
        """The connections of a user to this instance."""
        return self._by_user.get((namespace, user_id))

    def connections_with(self, jti: str) -> Sequence[Connection]:
        """The connections that a token opened, or was last refreshed with."""
        return self._by_token.get(jti)


class _ByKey(Generic[Key]):
    """The connections under each key. Most keys have one, which takes no set: a set takes 230 bytes."""

    def __init__(self) -> None:
        self._first: dict[Key, Connection] = {}
        self._others: dict[Key, set[Connection]] = {}

    def get(self, key: Key) -> Sequence[Connection]:
        first = self._first.get(key)
        return () if first is None else (first, *self._others.get(key, ()))

    def add(self, key: Key, connection: Connection) -> bool:
        """True when it is the first one under its key."""
        if self._first.setdefault(key, connection) is connection:
            return True
        self._others.setdefault(key, set()).add(connection)
        return False

    def discard(self, key: Key, connection: Connection) -> bool:
        """True when it was the last one under its key."""
        others = self._others.get(key, set())
        if self._first.get(key) is connection:
            if not others:
                del self._first[key]
                return True
            self._first[key] = others.pop()
        others.discard(connection)
        if not others:
            self._others.pop(key, None)
        return False
