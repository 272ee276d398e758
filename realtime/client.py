"""A client for Python: reconnects, resumes, and says what was missed, by the rules of docs/protocol.md.

It needs `websockets` and nothing else of this project:

    async with Client("wss://example.com/hub/", get_token) as client:
        client.join("42")
        async for event in client:
            print(event.name, event.data)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import itertools
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

GetToken = Callable[[], str | Awaitable[str]]

logger = logging.getLogger(__name__)

SKEW_SECONDS = 10.0
"""A token that ends so soon counts as over: it has a way to go."""
NORMAL = 1000
TOKEN_EXPIRED = 4401
STOP = frozenset({1002, 1007, 1009, 4400, 4403, 4409})
"""Close codes after which trying again would change nothing."""
STABLE_SECONDS = 10.0
"""After so long the next loss starts with a short wait again."""
UNREAD = 1000
"""So many events may wait for the reader; then no more is read from the network."""


class Denied(Exception):
    """The server does not want this client: the status of the handshake, or the close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code


class CallFailed(Exception):
    """A call was refused (`code` is one of the protocol), timed out (`timeout`), or lost (`closed`)."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Event:
    """What the server said. `room:gap` also comes for a room that could not be recovered: fetch it anew."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    room: str | None = None
    offset: str | None = None


def backoff(attempt: int, first: float, most: float) -> float:
    """Seconds to wait: full jitter after the cap (M. Brooker, "Exponential Backoff And Jitter")."""
    return random.uniform(0, min(most, first * 2 ** min(attempt, 30)))  # noqa: S311


class _NoToken(Exception):
    """`get_token` failed; what it raised is the cause."""


class _Tokens:
    """Asks for one token at a time, and keeps it until shortly before it ends."""

    def __init__(self, get_token: GetToken) -> None:
        self._get_token = get_token
        self._token: str | None = None
        self._asking: asyncio.Task[str] | None = None

    async def get(self) -> str:
        """The token there is, or a new one. Raises `_NoToken`."""
        if self._token is not None and time.time() < end_of(self._token) - SKEW_SECONDS:
            return self._token
        return await self.fresh()

    async def fresh(self) -> str:
        """A new token; who asks while one is under way gets the same. Raises `_NoToken`."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="client: get_token")
        asking = self._asking
        # Not awaited itself: who gives up waiting does not end a request that others may need.
        await asyncio.wait([asking])
        if asking.cancelled() or (error := asking.exception()):
            cause = None if asking.cancelled() else error
            raise _NoToken(f"get_token failed: {cause!r}") from cause
        return asking.result()

    def forget(self) -> None:
        """The token is no good any more."""
        self._token = None

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> str:
        token = self._get_token()
        self._token = await token if inspect.isawaitable(token) else token
        return self._token


def end_of(token: str) -> float:
    """When a JWT ends, in seconds since the epoch; 0 when it does not say."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (LookupError, TypeError, ValueError):
        return 0.0  # not one that we can read: the server will say what it thinks of it


class Client:
    """One connection to one namespace, for as long as the block runs. Iterate over it once."""

    def __init__(
        self,
        url: str,
        get_token: GetToken,
        *,
        reconnection_delay: float = 0.5,
        reconnection_delay_max: float = 20.0,
        reconnection_attempts: int | None = None,
        ack_timeout: float = 10.0,
    ) -> None:
        self.url = url
        self.connection_id: str | None = None
        self._tokens = _Tokens(get_token)
        self._delays = reconnection_delay, reconnection_delay_max
        self._attempts = reconnection_attempts
        self._ack_timeout = ack_timeout
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue(UNREAD)
        self._connected = asyncio.Event()
        self._websocket: ClientConnection | None = None
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._threads: set[str] = set()
        self._offsets: dict[str, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._life: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._life = asyncio.create_task(self._live(), name="client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        tasks = [self._life, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._tokens.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Everything the server says, in order.

        Raises `Denied`. Ends after a normal close, or when attempts were limited and are used up.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, StopAsyncIteration):
                return
            if isinstance(event, BaseException):
                raise event
            yield event

    async def connected(self) -> None:
        """Return once there is a connection."""
        await self._connected.wait()

    # --- What one can do ---------------------------------------------------------------------------

    def join(self, thread_id: str) -> None:
        """Be in a thread from now on, also after every reconnect."""
        self._threads.add(thread_id)
        if self._connected.is_set():
            self._spawn(self._enter(thread_id))

    def leave(self, thread_id: str) -> None:
        """Not any more."""
        self._forget(f"thread:{thread_id}")
        if self._connected.is_set():
            self._spawn(self.send("leave:thread", {"thread_id": thread_id}))

    async def send(self, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Send without waiting for an answer; lost when there is no connection."""
        await self._write({"event": event, "data": data or {}})

    async def call(self, event: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send, and return what the acknowledgement says. Raises `CallFailed`.

        While it waits, somebody has to read the events: with `UNREAD` of them waiting, no answer is read either.
        """
        call_id = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = answer
        try:
            if not await self._write({"event": event, "data": data or {}, "id": call_id}):
                raise CallFailed("closed", "there is no connection")
            async with asyncio.timeout(self._ack_timeout):
                return await answer
        except TimeoutError as error:
            raise CallFailed("timeout", f"no answer to {event} within {self._ack_timeout:g} s") from error
        finally:
            self._calls.pop(call_id, None)

    async def _write(self, frame: Mapping[str, Any]) -> bool:
        if self._websocket is None:
            return False
        with contextlib.suppress(ConnectionClosed):
            await self._websocket.send(json.dumps(frame))
            return True
        return False

    # --- Life --------------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            await self._reconnect()
        except Denied as denied:
            await self._events.put(denied)
        else:
            await self._events.put(StopAsyncIteration())

    async def _reconnect(self) -> None:
        loop = asyncio.get_running_loop()
        attempt, fresh = 0, False
        while self._attempts is None or attempt <= self._attempts:
            began, wait = loop.time(), 0.0
            try:
                await self._visit(fresh=fresh)
            except InvalidStatus as error:
                status = error.response.status_code
                if status == 401 and not fresh:
                    fresh = True  # perhaps the token was only too old
                    continue
                if status in {401, 403, 404}:
                    raise Denied(status, error.response.body.decode(errors="replace")) from error
                wait = float(error.response.headers.get("Retry-After", 0))
            except ConnectionClosed as error:
                code = error.rcvd.code if error.rcvd else 1006
                if code == NORMAL:
                    return
                if code in STOP:
                    raise Denied(code, error.rcvd.reason if error.rcvd else "") from error
                if code == TOKEN_EXPIRED:
                    self._tokens.forget()
                if loop.time() - began > STABLE_SECONDS:
                    attempt = 0
            except _NoToken as error:
                logger.warning("no connection: %s", error, exc_info=error.__cause__)
            except (InvalidHandshake, OSError):  # TimeoutError is an OSError
                pass
            fresh = False
            await asyncio.sleep(wait + backoff(attempt, *self._delays))
            attempt += 1

    async def _visit(self, *, fresh: bool) -> None:
        """One connection, until it is lost; `fresh`: with a new token, whatever the old one says of itself."""
        token = await (self._tokens.fresh() if fresh else self._tokens.get())
        resuming = dict(self._offsets)
        async with connect(
            f"{self.url}?resume=1" if resuming else self.url,
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,
        ) as websocket:
            self._websocket = websocket
            try:
                async for text in websocket:
                    await self._take(json.loads(text), resuming)
                raise ConnectionClosed(websocket.protocol.close_rcvd, websocket.protocol.close_sent)
            finally:
                self._websocket = None
                self.connection_id = None
                self._connected.clear()
                for answer in self._calls.values():
                    if not answer.done():
                        answer.set_exception(CallFailed("closed", "the connection was lost"))
                for task in self._tasks:
                    task.cancel()

    async def _take(self, frame: dict[str, Any], resuming: dict[str, str]) -> None:
        event, data = frame["event"], frame["data"]
        if event in {"ack", "error"} and frame.get("id") is not None:
            self._answer(frame["id"], event, data)
            return
        if "offset" in frame and "room" in frame:
            self._offsets[frame["room"]] = frame["offset"]
        match event:
            case "connection:ready":
                self._start(data, resuming)
            case "room:gap":
                self._offsets.pop(data["room"], None)
            case "room:left":
                self._forget(data["room"])
            case "auth:expiring":
                self._spawn(self._refresh())
        await self._events.put(Event(event, data, frame.get("room"), frame.get("offset")))

    def _answer(self, call_id: int, event: str, data: dict[str, Any]) -> None:
        answer = self._calls.get(call_id)
        if answer is None or answer.done():
            return
        if event == "ack":
            answer.set_result(data)
        else:
            answer.set_exception(CallFailed(data["code"], data["message"], data.get("retry_after")))

    def _start(self, ready: dict[str, Any], resuming: dict[str, str]) -> None:
        self.connection_id = ready["connection_id"]
        self._offsets = {**ready["rooms"], **resuming}
        self._connected.set()
        self._spawn(self._beat(ready["heartbeat_interval"]))
        if resuming:
            self._spawn(self._resume(resuming))
        for thread_id in self._threads:
            if f"thread:{thread_id}" not in resuming:
                self._spawn(self._enter(thread_id))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(self._quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _quietly(work: Awaitable[None]) -> None:
        with contextlib.suppress(CallFailed):
            await work

    async def _beat(self, interval: float) -> None:
        await asyncio.sleep(interval * random.uniform(0.5, 1))  # noqa: S311  (not all clients together)
        while True:
            await self.send("heartbeat")
            await asyncio.sleep(interval)

    async def _refresh(self) -> None:
        try:
            await self.call("auth:refresh", {"token": await self._tokens.fresh()})
        except (CallFailed, _NoToken) as error:
            # The connection ends with 4401, and the next one asks again.
            logger.warning("the token was not refreshed: %s", error, exc_info=error.__cause__)

    async def _resume(self, rooms: dict[str, str]) -> None:
        answer = await self.call("resume", {"rooms": rooms})
        for room, found in answer["rooms"].items():
            if "error" in found:
                self._forget(room)
                await self._events.put(Event("room:left", {"room": room, "reason": found["error"]}))
            elif not found["recovered"]:
                self._offsets.setdefault(room, found["offset"])
                await self._events.put(Event("room:gap", {"room": room, "reason": "not recovered"}))

    async def _enter(self, thread_id: str) -> None:
        room = f"thread:{thread_id}"
        try:
            answer = await self.call("join:thread", {"thread_id": thread_id})
        except CallFailed as failed:
            if failed.code in {"forbidden", "limit_exceeded", "invalid_payload"}:
                self._forget(room)
                await self._events.put(Event("room:left", {"room": room, "reason": failed.code}))
            elif failed.code != "closed" and thread_id in self._threads:
                await asyncio.sleep(failed.retry_after or 1)
                await self._enter(thread_id)
            return
        self._offsets.setdefault(room, answer["offset"])

    def _forget(self, room: str) -> None:
        self._offsets.pop(room, None)
        self._threads.discard(room.removeprefix("thread:"))
