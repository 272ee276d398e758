"""From entering a client's block to leaving it: one connection after the other."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from .connection import Answer, Connect, Connection, frame
from .errors import CallFailed, Denied, NoToken
from .event import Event
from .retries import NORMAL, TOKEN_EXPIRED, Loss, Retries
from .rooms import Rooms
from .tokens import Tokens
from .unread import Unread
from .verdict import Refused, verdict

STABLE_SECONDS = 10.0
"""After a connection that lasted this long, the first wait is short again."""
EPHEMERAL = frozenset({"typing:start", "typing:stop", "cursor:move", "heartbeat"})
"""Events that are worth nothing later: they never wait for a connection."""

logger = logging.getLogger(__name__)


class Session:
    """Connects, hands on what arrives, and connects again, until there is no point in it."""

    def __init__(
        self,
        url: Callable[[], str],
        tokens: Tokens,
        retries: Retries,
        *,
        connect: Connect,
        connect_timeout: float,
        queue_size: int,
        max_unread: int,
    ) -> None:
        self._url = url
        self._tokens = tokens
        self._retries = retries
        self._connect = connect
        self._connect_timeout = connect_timeout
        self._queue: list[str] = []
        """Frames that wait for a connection."""
        self._queue_size = queue_size
        self._hurry = asyncio.Event()
        """There is reason to believe that the next attempt succeeds."""
        self._ready_at = math.inf
        """When the connection was ready, by the clock of the loop."""
        self._life: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()
        """There is a connection, or there will be none any more."""
        self.connection: Connection | None = None
        """From `connection:ready` to the end of the connection."""
        self.connection_id: str | None = None
        self.unread = Unread(max_unread)
        self.rooms = Rooms(self.unread.put)

    # --- Life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect from now on."""
        self._life = asyncio.create_task(self._live(), name="client")
        self._life.add_done_callback(self._end)

    async def stop(self) -> None:
        """Close the connection, and end every task."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        await self._tokens.close()

    @property
    def is_over(self) -> bool:
        """Whether there will be no connection any more."""
        return self._life is not None and self._life.done()

    def raise_reason(self) -> None:
        """Raise why there will be no connection any more; after a normal close nothing."""
        if self._life is not None and not self._life.cancelled():
            self._life.result()

    def reconnect(self) -> None:
        """Drop the connection if there is one, and make the next attempt soon."""
        self._hurry.set()
        if self.connection is not None:
            self.connection.abort()

    async def _live(self) -> None:
        while True:
            await self.unread.room()
            self._ready_at = math.inf
            try:
                await self._visit()
            except (ConnectionClosed, InvalidHandshake, OSError, NoToken) as error:
                cause = error  # TimeoutError is an OSError, too
                loss = error.loss if isinstance(error, Refused) else Loss.of(error)
            if loss.code == NORMAL:
                return
            if not self._retries.is_at_once(loss):
                if loss.code == TOKEN_EXPIRED:
                    self._tokens.forget()
                await self._pause(loss, cause)

    async def _pause(self, loss: Loss, cause: Exception) -> None:
        """Let the time until the next attempt pass. Raises when there is no point in one."""
        is_urgent = self._hurry.is_set()
        self._hurry.clear()
        if is_urgent or asyncio.get_running_loop().time() - self._ready_at >= STABLE_SECONDS:
            self._retries.reset()
        wait = self._retries.next_wait(loss, cause, is_urgent=is_urgent)
        lost = {"code": loss.code, "reason": loss.reason, "retry_in": loss.wait + wait}
        self.unread.put(Event("connection:lost", lost))
        await asyncio.sleep(loss.wait)
        try:
            async with asyncio.timeout(wait):
                await self._hurry.wait()
        except TimeoutError:
            return
        self._hurry.clear()
        self._retries.reset()
        await asyncio.sleep(self._retries.first_wait())  # a whole office may have its network back

    def _end(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled() and (error := life.exception()):
            logger.warning("there is no connection, and there will be none: %s", error)
        self.connected.set()
        self.unread.end()

    # --- One connection --------------------------------------------------------------------------

    async def _visit(self) -> NoReturn:
        """Connect, and read until the connection is lost."""
        token = await (self._tokens.fresh() if self._retries.needs_fresh_token else self._tokens.get())
        url = self._url()
        if self.rooms.can_resume:
            url += "&resume=1" if "?" in url else "?resume=1"
        async with asyncio.timeout(self._connect_timeout) as patience:
            try:
                connection = await Connection.open(self._connect, url, token)
            except InvalidStatus as error:
                raise Refused(await verdict(error, url, token, self._connect_timeout)) from error
            try:
                while True:
                    if (event := await connection.receive()) is not None:
                        self._take(connection, event)
                    if self.connection is not None:
                        patience.reschedule(None)
                    # Until the program reads, nothing is read from the network. What does not fit here waits in the
                    # server, and in the histories of the rooms after the server has lost patience (4413).
                    await self.unread.room()
            finally:
                self.connection = self.connection_id = None
                self.connected.clear()
                self.rooms.end()
                await connection.close()

    def _take(self, connection: Connection, event: Event) -> None:
        if event.room and event.offset and not self.rooms.accept(event.room, event.offset):
            return
        match event.name:
            case "connection:ready":
                self._begin(connection, event.data)
            case "room:left":
                self.rooms.forget(event.data["room"])
            case "auth:expiring":
                connection.spawn(self._refresh(connection))
        self.unread.put(event)

    def _begin(self, connection: Connection, ready: Mapping[str, Any]) -> None:
        self.connection = connection
        self.connection_id = ready["connection_id"]
        self._ready_at = asyncio.get_running_loop().time()
        self.connected.set()
        self._hurry.clear()
        connection.spawn(connection.beat(ready["heartbeat_interval"]))
        self.rooms.begin(connection, ready["rooms"])
        for text in self._queue:
            connection.put(text)
        self._queue.clear()

    async def _refresh(self, connection: Connection) -> None:
        def take(answer: Answer) -> None:
            if isinstance(answer, CallFailed):
                # The connection ends with 4401, and the next one asks for a token again.
                logger.warning("the token was not refreshed: %s", answer)

        try:
            token = await self._tokens.fresh()
        except (NoToken, Denied):
            return  # 4401 follows, and the next attempt raises it
        connection.ask("auth:refresh", {"token": token}, take)

    # --- Sending ---------------------------------------------------------------------------------

    async def send(self, event: str, data: Mapping[str, Any]) -> None:
        """Write an event, or keep it for the next connection. Raises `CallFailed`."""
        text = frame(event, data)
        if self.connection is not None and not self.connection.is_closed:
            self.connection.put(text)
            await self.connection.written()
        elif self.is_over:
            raise CallFailed("closed", f"{event} was not sent: the connection is closed for good")
        elif len(self._queue) >= self._queue_size and event not in EPHEMERAL:
            raise CallFailed("queue_full", f"{event} was not sent: {len(self._queue)} events wait already")
        elif event not in EPHEMERAL:
            self._queue.append(text)

    async def call(self, event: str, data: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Write an event, and return its acknowledgement. Raises `CallFailed`."""
        if self.connection is None:
            raise CallFailed("closed", f"{event} was not sent: there is no connection")
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def take(answer: Answer) -> None:
            if not answered.done():  # the caller may have given up
                answered.set_result(answer)

        self.connection.ask(event, data, take)
        try:
            async with asyncio.timeout(timeout):
                answer = await answered
        except TimeoutError as error:
            raise CallFailed("timeout", f"{event} was not answered within {timeout:g} s") from error
        if isinstance(answer, CallFailed):
            raise answer
        return answer
