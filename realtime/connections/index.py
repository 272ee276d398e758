"""The open connections of this instance, by id, by user and by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from realtime.connections.interface import Connection
from realtime.telemetry import metrics


class ConnectionIndex:
    """Finds connections."""

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        self._by_user: dict[tuple[str, str], set[str]] = {}
        self._by_token: dict[str, set[str]] = {}
        """By the `jti` of the token that opened a connection, or that it was refreshed with."""

    def add(self, connection: Connection) -> None:
        """From now on signals reach this connection."""
        connection_id, user = connection.connection_id, connection.user
        self.connections[connection_id] = connection
        if user not in self._by_user:
            self._by_user[user] = set()
            metrics.users(user[0]).inc()
        self._by_user[user].add(connection_id)
        self._by_token.setdefault(connection.principal.jti, set()).add(connection_id)

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.pop(connection.connection_id, None)
        _discard(self._by_token, connection.principal.jti, connection.connection_id)
        if _discard(self._by_user, connection.user, connection.connection_id):
            metrics.users(connection.user[0]).dec()

    def refreshed(self, connection: Connection, previous: str) -> None:
        """The connection has exchanged the token with the `jti` `previous` for another."""
        _discard(self._by_token, previous, connection.connection_id)
        self._by_token.setdefault(connection.principal.jti, set()).add(connection.connection_id)

    def connections_of(self, namespace: str, user_id: str) -> Iterator[Connection]:
        """The connections of a user to this instance."""
        for connection_id in tuple(self._by_user.get((namespace, user_id), ())):
            yield self.connections[connection_id]

    def connections_with(self, jti: str) -> Iterator[Connection]:
        """The connections that a token opened, or was last refreshed with."""
        for connection_id in tuple(self._by_token.get(jti, ())):
            yield self.connections[connection_id]


def _discard(index: dict[Any, set[str]], key: object, connection_id: str) -> bool:
    """Take a connection out of an index; True when it was the last one under its key."""
    if (found := index.get(key)) is None:
        return False
    found.discard(connection_id)
    if found:
        return False
    del index[key]
    return True
