"""Clients for tests: connected by one line, from tests with an event loop and from tests without."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Self

from realtime.conf import conf
from realtime.testing.background import BackgroundLoop
from realtime.testing.connection import QUIET, TIMEOUT, Connection, Received
from realtime.testing.tokens import issue_token, namespace_of
from realtime.testing.transports import Headers, Open


class _Client:
    def __init__(self, connection: Connection, loop: BackgroundLoop) -> None:
        self._connection = connection
        self._loop = loop

    @property
    def ready(self) -> Mapping[str, Any]:
        """The data of `connection:ready`."""
        return self._connection.ready

    @property
    def connection_id(self) -> str:
        """The server's name for the connection: `publish(..., exclude=client.connection_id)` leaves it out."""
        return str(self.ready["connection_id"])


class Client(_Client):
    """A connected client for synchronous tests; also a context manager that closes it.

    Whatever is not read stays unread, so the order in which a test expects events of different kinds does not matter.
    """

    def send(self, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Send an event without waiting for an answer."""
        self._loop.run(self._connection.send(event, data or {}))

    def call(
        self, event: str, data: Mapping[str, Any] | None = None, *, timeout: float = TIMEOUT
    ) -> Mapping[str, Any]:
        """Send an event, and return the data of its acknowledgement.

        Raises:
            CallFailed: The server has answered with an error; `code` is the protocol's.
            AssertionError: It has not answered within `timeout` seconds.
        """
        __tracebackhide__ = True
        return self._loop.run(self._connection.call(event, data or {}, timeout))

    def expect(self, event: str, /, *, timeout: float = TIMEOUT, **fields: Any) -> Received:
        """Return the next unread event of this name whose data has these fields; those before it stay unread.

        Raises `AssertionError` when none comes within `timeout` seconds. The text lists what came.
        """
        __tracebackhide__ = True
        return self._loop.run(self._connection.expect(event, fields, timeout))

    def expect_nothing(self, *events: str, within: float = QUIET) -> None:
        """Assert that none of these events (none at all, if none is named) is unread, or comes within some seconds."""
        __tracebackhide__ = True
        self._loop.run(self._connection.expect_nothing(events, within))

    def expect_close(self, *, timeout: float = TIMEOUT) -> tuple[int, str]:
        """Wait until the server closes the connection; return the code and the reason."""
        __tracebackhide__ = True
        return self._loop.run(self._connection.expect_close(timeout))

    def close(self) -> None:
        """Close the connection."""
        self._loop.run(self._connection.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Client):
    """A connected client for asynchronous tests, in whatever event loop; also an asynchronous context manager.

    Its methods are those of `Client`.
    """

    async def send(self, event: str, data: Mapping[str, Any] | None = None) -> None:
        """As `Client.send`."""
        await self._loop.arun(self._connection.send(event, data or {}))

    async def call(
        self, event: str, data: Mapping[str, Any] | None = None, *, timeout: float = TIMEOUT
    ) -> Mapping[str, Any]:
        """As `Client.call`."""
        __tracebackhide__ = True
        return await self._loop.arun(self._connection.call(event, data or {}, timeout))

    async def expect(self, event: str, /, *, timeout: float = TIMEOUT, **fields: Any) -> Received:
        """As `Client.expect`."""
        __tracebackhide__ = True
        return await self._loop.arun(self._connection.expect(event, fields, timeout))

    async def expect_nothing(self, *events: str, within: float = QUIET) -> None:
        """As `Client.expect_nothing`."""
        __tracebackhide__ = True
        await self._loop.arun(self._connection.expect_nothing(events, within))

    async def expect_close(self, *, timeout: float = TIMEOUT) -> tuple[int, str]:
        """As `Client.expect_close`."""
        __tracebackhide__ = True
        return await self._loop.arun(self._connection.expect_close(timeout))

    async def close(self) -> None:
        """As `Client.close`."""
        await self._loop.arun(self._connection.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Clients:
    """Connects clients, and closes at the end those that are still open.

        client = await clients(user=7, role="attendant")  # in an asynchronous test
        client = clients.sync(user=7, role="attendant")  # in a synchronous one

    Both take the same arguments:

    Args:
        user: The user's id.
        role: The user's role.
        namespace: Where to connect to; None: the only namespace that lets the role in.
        token: A token to be used as it is, in place of `user`, `role` and the other claims; name the `namespace`.
        claims: What `issue_token` takes besides: `name`, `groups`, `threads`, `ttl`, and any claim of your own.

    Raises:
        Denied: The handshake is refused. `code` is the HTTP status, `reason` says why.
    """

    def __init__(self, loop: BackgroundLoop, open_: Open) -> None:
        self._loop = loop
        self._open = open_
        self._connections: list[Connection] = []

    async def __call__(
        self,
        *,
        user: object = None,
        role: str | None = None,
        namespace: str | None = None,
        token: str | None = None,
        **claims: Any,
    ) -> AsyncClient:
        """Connect from an asynchronous test."""
        __tracebackhide__ = True
        where = _where(user, role, namespace, token, claims)
        return AsyncClient(await self._loop.arun(self._connect(*where)), self._loop)

    def sync(
        self,
        *,
        user: object = None,
        role: str | None = None,
        namespace: str | None = None,
        token: str | None = None,
        **claims: Any,
    ) -> Client:
        """Connect from a synchronous test."""
        __tracebackhide__ = True
        where = _where(user, role, namespace, token, claims)
        return Client(self._loop.run(self._connect(*where)), self._loop)

    async def _connect(self, namespace: str, token: str) -> Connection:
        connection = Connection(await self._open(f"/{namespace}/", _headers(token)))
        self._connections.append(connection)
        await connection.begin()
        return connection

    def close(self) -> None:
        """Close all clients."""
        while self._connections:
            with contextlib.suppress(OSError):
                self._loop.run(self._connections.pop().close())


def _where(
    user: object, role: str | None, namespace: str | None, token: str | None, claims: Mapping[str, Any]
) -> tuple[str, str]:
    """Namespace and token."""
    if token is not None:
        if namespace is None or user is not None or role is not None or claims:
            raise TypeError("with a token, name the namespace and no claims")
        return namespace, token
    if user is None or role is None:
        raise TypeError("expected user and role, or token and namespace")
    return namespace or namespace_of(role), issue_token(user=user, role=role, **claims)


def _headers(token: str) -> Headers:
    origins = conf().allowed_origins if conf().require_origin else ()
    return [("Authorization", f"Bearer {token}"), *[("Origin", origin) for origin in origins[:1]]]
