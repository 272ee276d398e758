"""The client, as a program uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, Self

from websockets.asyncio.client import connect

from .connection import Connect
from .event import Event
from .options import address, count, function, seconds
from .retries import Retries
from .session import Session
from .tokens import GetToken, Tokens


class Client:
    """A connection to one namespace, made again whenever it is lost, for as long as the block runs.

    It is iterated over once, in the block, and yields every event in order::

        async with Client("wss://example.com/hub/", get_token) as client:
            client.join("42")
            async for event in client:
                print(event.name, event.data)

    The loop ends when the server closes the connection normally (1000). It raises `Denied` when another attempt would
    change nothing, and `ConnectionError` when `reconnection_attempts` are used up.

    Args:
        url: The namespace's address, or a function that returns it before every attempt, for several servers.
        get_token: Returns an access token, or an awaitable of one. It is called once at a time, and only when the last
            token is about to expire. It may raise `Denied` when no user is logged in.
        reconnection_delay: The longest first wait before a reconnect, in seconds.
        reconnection_delay_max: The longest wait of all, in seconds.
        reconnection_attempts: Attempts in a row before it gives up; None: it never does.
        connect_timeout: Seconds until a handshake, or a request for a token, counts as failed.
        ack_timeout: Seconds until a call without an answer fails.
        queue_size: Events that may wait for a connection.
        max_unread: Events that may wait for the loop; beyond that nothing is read from the network.
        connect: Makes a connection, as `websockets.connect` does; with `functools.partial` for options of its own.

    Raises:
        TypeError, ValueError: An option is of the wrong type or out of its range, or `url` is not that of a WebSocket.
            The message names the option, what was expected and what was given.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        get_token: GetToken,
        *,
        reconnection_delay: float = 0.5,
        reconnection_delay_max: float = 20.0,
        reconnection_attempts: int | None = None,
        connect_timeout: float = 10.0,
        ack_timeout: float = 10.0,
        queue_size: int = 100,
        max_unread: int = 1000,
        connect: Connect = connect,
    ) -> None:
        self._ack_timeout = seconds("ack_timeout", ack_timeout)
        patience = seconds("connect_timeout", connect_timeout)
        self._session = Session(
            url if callable(url) else partial(str, address(url)),
            Tokens(function("get_token", get_token), patience),
            Retries(
                *_delays(reconnection_delay, reconnection_delay_max),
                _attempts(reconnection_attempts),
            ),
            connect=function("connect", connect),
            connect_timeout=patience,
            queue_size=count("queue_size", queue_size, least=0),
            max_unread=count("max_unread", max_unread, least=1),
        )

    async def __aenter__(self) -> Self:
        self._session.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.stop()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while (event := self._session.unread.take()) is not None:
                yield event
            if self._session.is_over:
                self._session.raise_reason()
                return
            await self._session.unread.arrival()

    @property
    def rooms(self) -> AbstractSet[str]:
        """The rooms that the client is in now."""
        return self._session.rooms.entered

    @property
    def connection_id(self) -> str | None:
        """The server's name for the connection (`except` leaves it out); None while there is none."""
        return self._session.connection_id

    async def connected(self) -> None:
        """Return once there is a connection.

        Raises:
            Denied: There will be none, because the server refuses this client.
            ConnectionError: There will be none for another reason.
        """
        await self._session.connected.wait()
        if self._session.is_over:
            self._session.raise_reason()
            raise ConnectionError("the connection was closed for good")

    def join(self, name: str | int) -> None:
        """Enter a room, and enter it again after every reconnect. `room:joined` or `room:left` tells the result.

        Args:
            name: A thread's id (`"42"` or 42), or the name of any room that clients may join (`"board:7"`).

        Raises:
            TypeError, ValueError: The server would not take this name.
        """
        self._session.rooms.join(name)

    def leave(self, name: str | int) -> None:
        """Leave a room, once this has been called as often as `join`. It takes and raises what `join` does."""
        self._session.rooms.leave(name)

    def reconnect(self) -> None:
        """Drop the connection and make another soon: the network has changed, or the machine was asleep.

        The pause that a server has asked for is kept all the same.
        """
        self._session.reconnect()

    async def send(self, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Send an event without waiting for an answer. It is lost if the connection breaks at this moment.

        Without a connection the event waits for the next one, unless it is worth nothing later (typing, cursors).

        Args:
            event: Its name in the catalogue.
            data: Its payload.

        Raises:
            CallFailed: `queue_full`, `too_large` or `closed`. An event that waited and turns out to be larger
                than the server allows is reported as an event `error`.
            TypeError, ValueError: The payload cannot be written as JSON, or an id in it is none.
        """
        await self._session.send(event, {} if data is None else data)

    async def call(self, event: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send an event, and return what its acknowledgement says. Without a connection it waits for the next one.

        The events have to be read meanwhile: with `max_unread` of them waiting, no answer is read either. So a call
        that takes long belongs in a task of its own, and not in the loop over the events.

        Args:
            event: Its name in the catalogue.
            data: Its payload.

        Raises:
            CallFailed: An error code of the protocol, `timeout`, `queue_full`, `too_large`, or `closed`.
            TypeError, ValueError: The payload cannot be written as JSON, or an id in it is none.
        """
        return await self._session.call(event, {} if data is None else data, self._ack_timeout)


def _attempts(most: int | None) -> int | None:
    return None if most is None else count("reconnection_attempts", most, least=0)


def _delays(first: float, most: float) -> tuple[float, float]:
    delays = seconds("reconnection_delay", first), seconds("reconnection_delay_max", most)
    if delays[0] > delays[1]:
        raise ValueError(
            f"reconnection_delay_max: expected at least reconnection_delay ({first:g}), got {most:g}"
        )
    return delays
