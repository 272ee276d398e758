"""From entering a client's block to leaving it: one connection after the other."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from websockets.exceptions import InvalidStatus, ProtocolError, WebSocketException

from .connection import Answer, Connect, Connection
from .errors import CallFailed, Denied, NoToken
from .event import Event
from .limits import Limits, positive
from .names import payload
from .options import address
from .retries import NORMAL, TOKEN_EXPIRED, Loss, Retries
from .rooms import Rooms
from .tokens import Tokens
from .unread import Unread
from .verdict import Refused, verdict
from .waiting import Queue, Waiting

STABLE_SECONDS = 10.0
"""After a connection that lasted this long, the first wait is short again."""

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
        self._queue = Queue(queue_size)
        self._user: tuple[Any, Any] | None = None
        """The namespace and the user of the last connection."""
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
        self.connected.clear()
        self._retries.reset()
        self._life = asyncio.create_task(self._live(), name="client")
        self._life.add_done_callback(self._end)

    async def stop(self) -> None:
        """Close the connection, and end every task."""
        try:
            if self._life is not None:
                self._life.cancel()
                # Unlike `wait` it returns only then also if the caller is cancelled: that cuts the close short.
                await asyncio.gather(self._life, return_exceptions=True)
        finally:
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
            except (WebSocketException, OSError, NoToken) as error:
                cause = self._tokens.quotable(error)  # TimeoutError is an OSError, too
                loss = error.loss if isinstance(error, Refused) else Loss.of(error)
            loss = replace(loss, reason=self._tokens.scrub(loss.reason))
            if loss.code == NORMAL:
                return
            if not self._retries.is_at_once(loss):
                self._report(loss)
                if loss.code == TOKEN_EXPIRED:
                    self._tokens.forget()
                await self._pause(loss, cause)

    def _report(self, loss: Loss) -> None:
        """Tell why a handshake was refused."""
        if loss.status is not None:
            refused = {"status": loss.status, "code": loss.error, "message": loss.message}
            self.unread.put(Event("connection:refused", refused))

    async def _pause(self, loss: Loss, cause: BaseException | None) -> None:
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
        self._tokens.forget()
        self._queue.clear("the connection is closed for good")
        self.rooms.forget_all()
        self.connected.set()
        self.unread.end()

    # --- One connection --------------------------------------------------------------------------

    async def _visit(self) -> NoReturn:
        """Connect, and read until the connection is lost."""
        token = await (self._tokens.fresh() if self._retries.needs_fresh_token else self._tokens.get())
        url = address(self._url())
        if self.rooms.can_resume:
            url += "&resume=1" if "?" in url else "?resume=1"
        async with asyncio.timeout(self._connect_timeout) as patience:
            try:
                connection = await Connection.open(self._connect, url, token, self._tokens.scrub)
            except InvalidStatus as error:
                raise Refused(await verdict(error, url, token)) from error
            except (LookupError, ValueError) as error:
                # `websockets` could not read its Location, or found a host in it that no name server can be asked for.
                if isinstance(error.__context__, InvalidStatus) or isinstance(error, UnicodeError):
                    raise ProtocolError("the server redirects to an address that is none") from error
                raise
            try:
                while True:
                    await self._read(connection)
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

    async def _read(self, connection: Connection) -> None:
        """Read a frame. Raises `ProtocolError`, as for any other server that is not right, if it makes no sense."""
        try:
            if (event := await connection.receive()) is not None:
                self._take(connection, event)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError("the server sent a frame that is not of this protocol") from error

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
        connection.keep_to(Limits.of(ready))
        self._recognise(ready)
        connection.spawn(connection.beat(positive(ready.get("heartbeat_interval"))))
        self.rooms.begin(connection, ready["rooms"])
        for waiting in self._queue.take_all():
            try:
                waiting.put(connection)
            except CallFailed as error:
                self.unread.put(Event("error", {"code": error.code, "message": error.message}))

    def _recognise(self, ready: Mapping[str, Any]) -> None:
        """Forget what belongs to the user before this one, if it is another."""
        user = ready.get("namespace"), ready.get("user_id")
        if self._user not in {None, user}:
            self.rooms.forget_positions(ready["rooms"])
            if lost := self._queue.clear("another user has connected"):
                logger.warning("another user has connected: %d events of the last one were not sent", lost)
        self._user = user

    async def _refresh(self, connection: Connection) -> None:
        def take(answer: Answer) -> None:
            if isinstance(answer, CallFailed):
                # The connection ends with 4401, and the next one asks for a token again.
                logger.warning("the token was not refreshed: %s", answer.code)

        try:
            token = await self._tokens.fresh()
        except (NoToken, Denied):
            return  # 4401 follows, and the next attempt raises it
        connection.ask("auth:refresh", {"token": token}, take)

    # --- Sending ---------------------------------------------------------------------------------

    async def send(self, event: str, data: Mapping[str, Any]) -> None:
        """Write an event, or keep it for the next connection. Raises `CallFailed`."""
        self._put(Waiting(event, payload(event, data)))
        if self.connection is not None:
            await self.connection.written()

    def _put(self, waiting: Waiting) -> None:
        if self.connection is not None and not self.connection.is_closed:
            waiting.put(self.connection)
        elif self.is_over:
            raise CallFailed("closed", f"{waiting.event} was not sent: the connection is closed for good")
        else:
            self._queue.add(waiting)

    async def call(self, event: str, data: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Write an event now or over the next connection, and return its acknowledgement. Raises `CallFailed`."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def take(answer: Answer) -> None:
            if not answered.done():  # the caller may have given up
                answered.set_result(answer)

        waiting = Waiting(event, payload(event, data), take)
        self._put(waiting)
        try:
            async with asyncio.timeout(timeout):
                answer = await answered
        except TimeoutError as error:
            raise CallFailed("timeout", f"{event} was not answered within {timeout:g} s") from error
        finally:
            self._queue.discard(waiting)
            if self.connection is not None:
                self.connection.withdraw(take)
        if isinstance(answer, CallFailed):
            raise answer
        return answer
