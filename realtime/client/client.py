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
import math
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

GetToken = Callable[[], str | Awaitable[str]]
Connect = Callable[..., Awaitable[ClientConnection]]

logger = logging.getLogger(__name__)

SKEW_SECONDS = 10.0
"""A token that ends so soon counts as over: it has a way to go."""
NORMAL = 1000
ABNORMAL = 1006
TOKEN_EXPIRED = 4401
RATE_LIMITED = 4429
UNAUTHORIZED = 401
DENIED = frozenset({UNAUTHORIZED, 403, 404, 1002, 1007, 1009, 4400, 4403, 4409})
"""Statuses of a handshake and close codes after which trying again would change nothing."""
PAUSE_SECONDS = 5.0
"""Who was too fast stays away for so long at least."""
LONGEST_SECONDS = 600.0
"""For how long a server can ask to be left alone at most."""
CLOSE_SECONDS = 1.0
"""A server that does not answer a close is not waited for any longer."""
NOT_NOW = frozenset({"unavailable", "rate_limited", "internal"})
"""Errors after which the same may be granted a little later."""
EPHEMERAL = frozenset({"typing:start", "typing:stop", "cursor:move", "heartbeat"})
"""Events that are worth nothing later: they never wait for a connection."""
STABLE_SECONDS = 10.0
"""After so long the next loss starts with a short wait again."""


class Denied(Exception):
    """The server does not want this client: the status of the handshake, or the close code.

    A `get_token` may raise it, too: nobody is logged in, and trying again would not change that.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason


class CallFailed(Exception):
    """A call was refused (`code` is one of the protocol), timed out (`timeout`), or lost (`closed`).

    Or an event was not sent, because too many wait for a connection (`queue_full`), or there will be none (`closed`).
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Event:
    """What the server said, or what this client says by itself:

    `room:joined {room}`: a thread was entered, and what comes in it from here on is passed on. `room:left` for one
    that was refused and `room:gap` for one that could not be recovered, with the same `data` as the server's.
    `connection:lost {code, reason, retry_in}`: a connection, or an attempt to get one, has ended, and another attempt
    follows in so many seconds. `code` is a close code, the HTTP status of a refused handshake, or None.
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    room: str | None = None
    offset: str | None = None


def backoff(attempt: int, first: float, most: float) -> float:
    """Seconds to wait: full jitter after the cap (M. Brooker, "Exponential Backoff And Jitter")."""
    return random.uniform(0, min(most, first * 2 ** min(attempt, 30)))  # noqa: S311


@dataclass(frozen=True, slots=True)
class _Loss:
    """Why there is no connection. `wait`: how long the server wants to be left alone, in seconds."""

    code: int | None
    reason: str
    wait: float = 0.0

    @classmethod
    def of(cls, error: Exception) -> Self:
        match error:
            case InvalidStatus(response=response):
                wait = _seconds(response.headers.get("Retry-After", ""))
                return cls(response.status_code, _reason(response), wait)
            case ConnectionClosed(rcvd=Close(code=code, reason=reason)):
                return cls(code, reason, PAUSE_SECONDS if code == RATE_LIMITED else 0.0)
            case ConnectionClosed():
                return cls(ABNORMAL, str(error))
            case _:
                return cls(None, ": ".join(filter(None, (type(error).__name__, str(error)))))

    def __str__(self) -> str:
        return self.reason if self.code is None else f"{self.code} {self.reason}"


def _seconds(retry_after: str) -> float:
    """A Retry-After in seconds. The other form, a date, counts as none: the clocks may differ."""
    return min(float(retry_after), LONGEST_SECONDS) if retry_after.isdecimal() else 0.0


def _reason(response: Response) -> str:
    """Why a handshake was refused: the server's own words, or those of whatever stands before it."""
    try:
        error = json.loads(response.body)["error"]
        return f"{error['code']}: {error['message']}"
    except (LookupError, TypeError, ValueError):
        return response.reason_phrase


class _NoToken(Exception):
    """`get_token` failed; what it raised is the cause."""


class _Tokens:
    """Asks for one token at a time, and keeps it until shortly before it ends."""

    def __init__(self, get_token: GetToken, patience: float) -> None:
        self._get_token = get_token
        self._patience = patience
        self._token: str | None = None
        self._asking: asyncio.Task[str] | None = None

    async def get(self) -> str:
        """The token there is, or a new one. Raises `_NoToken`, or `Denied` if `get_token` does."""
        if self._token is not None and time.time() < end_of(self._token) - SKEW_SECONDS:
            return self._token
        return await self.fresh()

    async def fresh(self) -> str:
        """A new token; who asks while one is under way gets the same. Raises what `get` raises."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="client: get_token")
        asking = self._asking
        # Not awaited itself: who gives up waiting does not end a request that others may need.
        await asyncio.wait([asking])
        cause = None if asking.cancelled() else asking.exception()
        if isinstance(cause, Denied):
            raise cause
        if asking.cancelled() or cause is not None:
            logger.warning("get_token failed", exc_info=cause)
            raise _NoToken(f"get_token failed: {cause!r}") from cause
        return asking.result()

    def forget(self) -> None:
        """The token is no good any more."""
        self._token = None

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> str:
        async with asyncio.timeout(self._patience):
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


Answer = dict[str, Any] | CallFailed


class _Link:
    """One connection: what is to be written to it, in order, and who waits for an answer from it."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self._outbox: asyncio.Queue[str] = asyncio.Queue()
        self._waiting: dict[int, Callable[[Answer], None]] = {}
        self._ids = itertools.count(1)
        self.closed = False

    async def write(self) -> None:
        """Write what is posted, until the connection is closed."""
        try:
            while True:
                text = await self._outbox.get()
                try:
                    await self.websocket.send(text)
                finally:
                    self._outbox.task_done()
        except ConnectionClosed:
            pass  # who reads from it hears of that, too
        finally:
            self.close()

    def post(self, event: str, data: Mapping[str, Any]) -> None:
        """Have a frame written after those before it."""
        self.put(_frame(event, data))

    def ask(self, event: str, data: Mapping[str, Any], take: Callable[[Answer], None]) -> None:
        """The same with an id. `take` gets the answer before anything that comes after it."""
        frame_id = next(self._ids)
        text = _frame(event, data, id=frame_id)
        if self.closed:
            take(_lost())
        else:
            self._waiting[frame_id] = take
            self.put(text)

    def put(self, text: str) -> None:
        if not self.closed:
            self._outbox.put_nowait(text)

    def answer(self, frame_id: Any, answer: Answer) -> None:
        """An answer has come."""
        if take := self._waiting.pop(frame_id, None):
            take(answer)

    async def written(self) -> None:
        """Return once all that was posted is on its way, or the connection is closed."""
        await self._outbox.join()

    def close(self) -> None:
        """Nothing is written any more, and no answer comes."""
        self.closed = True
        while not self._outbox.empty():
            self._outbox.get_nowait()
            self._outbox.task_done()
        for frame_id in list(self._waiting):
            self.answer(frame_id, _lost())


def _frame(event: str, data: Mapping[str, Any], **more: Any) -> str:
    return json.dumps({"event": event, "data": data, **more})


def _lost() -> CallFailed:
    return CallFailed("closed", "there is no connection any more")


class Client:
    """One connection to one namespace, for as long as the block runs. Iterate over it once.

    `url` may be a callable: it is asked before every attempt, for who has several addresses.
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
        self._url = url
        self._connect = connect
        self.connection_id: str | None = None
        self._tokens = _Tokens(get_token, connect_timeout)
        self._delays = reconnection_delay, reconnection_delay_max
        self._attempts = reconnection_attempts
        self._connect_timeout = connect_timeout
        self._ack_timeout = ack_timeout
        self._queue_size = queue_size
        self._queue: list[str] = []
        """Frames that wait for a connection."""
        self._max_unread = max_unread
        self._unread: deque[Event] = deque()
        self._news = asyncio.Event()
        """There may be something to read, or nothing comes any more."""
        self._read = asyncio.Event()
        """Something was read."""
        self._connected = asyncio.Event()
        """There is a connection, or there will be none any more."""
        self._hurry = asyncio.Event()
        """Somebody knows that it may be better now than it was."""
        self._ready_at = math.inf
        """When this connection was ready, by the clock of the loop."""
        self._link: _Link | None = None
        """From `connection:ready` to the end of the connection."""
        self._threads: Counter[str] = Counter()
        """Threads that are wanted, and how often."""
        self._offsets: dict[str, str] = {}
        """Up to where this client has what was published, in each room it was in."""
        self._rooms: set[str] = set()
        self._resuming: set[str] = set()
        """Rooms that were asked to go on where they stood, until there is an answer."""
        self._tasks: set[asyncio.Task[None]] = set()
        """What is done for the connection there is, and not beyond it."""
        self._life: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._life = asyncio.create_task(self._live(), name="client")
        self._life.add_done_callback(self._tell_that_it_is_over)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        await self._tokens.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Everything the server says, in order.

        Ends after a normal close. Raises `Denied`, or `ConnectionError` when attempts were limited and are used up.
        """
        while True:
            while self._unread:
                event = self._unread.popleft()
                self._read.set()
                yield event
            if self._is_over:
                self._raise_why()
                return
            self._news.clear()
            await self._news.wait()

    async def connected(self) -> None:
        """Return once there is a connection. Raises `Denied` or `ConnectionError` when there will be none any more."""
        await self._connected.wait()
        if self._is_over:
            self._raise_why()
            raise ConnectionError("the connection was closed for good")

    @property
    def rooms(self) -> AbstractSet[str]:
        """The rooms this client is in just now."""
        return self._rooms

    # --- What one can do ---------------------------------------------------------------------------

    def join(self, thread_id: str) -> None:
        """Be in a thread from now on, also after every reconnect: `room:joined` or `room:left` say what came of it."""
        self._threads[thread_id] += 1
        if self._threads[thread_id] == 1 and self._link is not None:
            self._settle(self._link, thread_id)

    def leave(self, thread_id: str) -> None:
        """Not any more, once this has been called as often as `join`."""
        if self._threads[thread_id] > 1:
            self._threads[thread_id] -= 1
        elif self._wants(f"thread:{thread_id}"):
            self._forget(f"thread:{thread_id}")
            if self._link is not None:
                self._settle(self._link, thread_id)

    def reconnect(self) -> None:
        """Come again after a short wait: for who knows that the network is another one, or that the machine was asleep.

        The connection there is, is dropped without a word: perhaps nobody is at its other end any more. A server that
        wants to be left alone is, all the same.
        """
        self._hurry.set()
        if self._link is not None:
            self._link.websocket.transport.abort()

    async def send(self, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Send without waiting for an answer; lost when the connection breaks just now.

        While there is none it waits for the next one, unless it is worth nothing later (typing). Raises `CallFailed`.
        """
        text = _frame(event, data or {})
        if self._link is not None and not self._link.closed:
            self._link.put(text)
            await self._link.written()
        elif self._is_over:
            raise CallFailed(
                "closed", f"{event} was not sent: there is no connection, and there will be none"
            )
        elif event not in EPHEMERAL:
            if len(self._queue) >= self._queue_size:
                waiting = len(self._queue)
                raise CallFailed(
                    "queue_full", f"{event} was not sent: {waiting} wait for a connection already"
                )
            self._queue.append(text)

    async def call(self, event: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send, and return what the acknowledgement says. Raises `CallFailed`.

        While it waits, somebody has to read the events: with `max_unread` of them waiting, no answer is read either.
        """
        if self._link is None:
            raise CallFailed("closed", "there is no connection")
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def take(answer: Answer) -> None:
            if not answered.done():  # given up meanwhile
                answered.set_result(answer)

        self._link.ask(event, data or {}, take)
        try:
            async with asyncio.timeout(self._ack_timeout):
                answer = await answered
        except TimeoutError as error:
            raise CallFailed("timeout", f"no answer to {event} within {self._ack_timeout:g} s") from error
        if isinstance(answer, CallFailed):
            raise answer
        return answer

    # --- Life --------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Connect again and again, until the server or the last attempt says that this is the end."""
        attempt, fresh = 0, False
        while True:
            await self._keep_pace()
            self._ready_at = math.inf
            try:
                await self._visit(fresh=fresh)
            except (ConnectionClosed, InvalidHandshake, OSError, _NoToken) as error:
                cause, loss = error, _Loss.of(error)  # TimeoutError is an OSError, too
            if loss.code == NORMAL:
                return
            if loss.code == UNAUTHORIZED and not fresh:
                fresh = True  # perhaps the token was only too old
                continue
            if loss.code in DENIED:
                raise Denied(loss.code, loss.reason) from cause
            if loss.code == TOKEN_EXPIRED:
                self._tokens.forget()
            if asyncio.get_running_loop().time() - self._ready_at >= STABLE_SECONDS:
                attempt = 0
            if self._hurry.is_set():
                self._hurry.clear()
                attempt = 0
            elif self._attempts is not None and attempt >= self._attempts:
                why = f"no connection after {attempt + 1} attempts, the last: {loss}"
                raise ConnectionError(why) from cause
            wait = backoff(attempt, *self._delays)
            lost = {"code": loss.code, "reason": loss.reason, "retry_in": loss.wait + wait}
            self._tell("connection:lost", lost)
            await asyncio.sleep(loss.wait)
            attempt, fresh = attempt + 1, False
            if await self._hurried(wait):
                attempt = 0
                await asyncio.sleep(backoff(0, *self._delays))  # a whole office may have its network back

    async def _hurried(self, wait: float) -> bool:
        """Let so many seconds pass; true, and at once, if somebody is in a hurry."""
        try:
            async with asyncio.timeout(wait):
                await self._hurry.wait()
        except TimeoutError:
            return False
        self._hurry.clear()
        return True

    @property
    def _is_over(self) -> bool:
        return self._life is not None and self._life.done()

    def _raise_why(self) -> None:
        if self._life is not None and not self._life.cancelled():
            self._life.result()

    def _tell_that_it_is_over(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled() and (error := life.exception()):
            logger.warning("there is no connection, and there will be none: %s", error)
        for waiting in (self._connected, self._news):
            waiting.set()

    async def _visit(self, *, fresh: bool) -> NoReturn:
        """One connection, until it is lost; `fresh`: with a new token, whatever the old one says of itself."""
        token = await (self._tokens.fresh() if fresh else self._tokens.get())
        url = self._url if isinstance(self._url, str) else self._url()
        if self._offsets:
            url += "&resume=1" if "?" in url else "?resume=1"
        async with asyncio.timeout(self._connect_timeout) as patience:
            websocket = await self._connect(
                url,
                additional_headers={"Authorization": f"Bearer {token}"},
                close_timeout=CLOSE_SECONDS,
                compression=None,
                max_size=None,  # the server knows: a `presence:state` is as large as its group
                open_timeout=None,
            )
            link = _Link(websocket)
            self._spawn(link.write())
            try:
                while True:
                    self._take(link, await websocket.recv())
                    if self._link is not None:
                        patience.reschedule(None)
                    await self._keep_pace()
            finally:
                await self._end(link)

    async def _end(self, link: _Link) -> None:
        """Leave nothing of a connection."""
        self._link = None
        self.connection_id = None
        self._connected.clear()
        self._rooms.clear()
        self._resuming.clear()
        link.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        try:
            await link.websocket.close()
        finally:
            link.websocket.transport.abort()  # whoever is in a hurry may have cut the goodbye short
            await asyncio.gather(*tasks, return_exceptions=True)

    def _tell(
        self, event: str, data: Mapping[str, Any], room: str | None = None, offset: str | None = None
    ) -> None:
        self._unread.append(Event(event, data, room, offset))
        self._news.set()

    async def _keep_pace(self) -> None:
        """Return once the reader keeps up. Until then nothing is read from the network, nor is a new connection made:

        what does not fit here waits in the server, and in the rooms' logs after it lost patience (4413).
        """
        while len(self._unread) >= self._max_unread:
            self._read.clear()
            await self._read.wait()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="client: connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Frames ------------------------------------------------------------------------------------

    def _take(self, link: _Link, text: str | bytes) -> None:
        try:
            frame = json.loads(text)
            event, data = frame["event"], frame.get("data") or {}
        except (LookupError, TypeError, ValueError, RecursionError):
            logger.warning("the server sent something that is no frame: %.100r", text)
            return
        if event in {"ack", "error"} and "id" in frame:
            link.answer(frame["id"], data if event == "ack" else _failed(data))
            return
        room, offset = frame.get("room"), frame.get("offset")
        if room is not None and offset is not None:
            if room in self._resuming:
                return  # the server did not wait any longer: this comes again after the answer
            if self._wants(room):
                self._offsets[room] = offset
        match event:
            case "connection:ready":
                self._start(link, data)
            case "room:left":
                self._forget(data["room"])
            case "auth:expiring":
                self._spawn(self._refresh(link))
        self._tell(event, data, room, offset)

    def _start(self, link: _Link, ready: dict[str, Any]) -> None:
        self._link = link
        self.connection_id = ready["connection_id"]
        self._ready_at = asyncio.get_running_loop().time()
        self._connected.set()
        self._hurry.clear()
        self._spawn(self._beat(link, ready["heartbeat_interval"]))
        self._resuming = set(self._offsets)
        self._rooms = set(ready["rooms"]) - self._resuming
        self._offsets = {**ready["rooms"], **self._offsets}
        self._recover(link)
        for thread_id in self._threads:
            if f"thread:{thread_id}" not in self._resuming:
                self._settle(link, thread_id)
        for text in self._queue:
            link.put(text)
        self._queue.clear()

    async def _beat(self, link: _Link, interval: float) -> None:
        await asyncio.sleep(interval * random.uniform(0.5, 1))  # noqa: S311  (not all clients together)
        while True:
            link.post("heartbeat", {})
            await asyncio.sleep(interval)

    async def _refresh(self, link: _Link) -> None:
        def take(answer: Answer) -> None:
            if isinstance(answer, CallFailed):
                # The connection ends with 4401, and the next one asks again.
                logger.warning("the token was not refreshed: %s", answer)

        with contextlib.suppress(_NoToken, Denied):  # 4401 follows, and then whoever reads hears of it
            link.ask("auth:refresh", {"token": await self._tokens.fresh()}, take)

    # --- Rooms -------------------------------------------------------------------------------------

    def _wants(self, room: str) -> bool:
        return not room.startswith("thread:") or room.removeprefix("thread:") in self._threads

    def _recover(self, link: _Link) -> None:
        """Ask for what was missed, again and again: without an answer one is in no room.

        Until then nothing of these rooms is taken: it would come again.
        """

        def take(answer: Answer) -> None:
            if not isinstance(answer, CallFailed):
                self._resuming.clear()
                for room, found in answer["rooms"].items():
                    self._recovered(room, found)
            elif answer.code != "closed":
                self._spawn(self._later(answer, lambda: self._recover(link)))

        if self._resuming:
            rooms = {room: offset for room, offset in self._offsets.items() if room in self._resuming}
            link.ask("resume", {"rooms": rooms}, take)

    def _recovered(self, room: str, found: Mapping[str, Any]) -> None:
        if "error" in found:
            self._refused(room, found["error"])
        elif self._wants(room):
            self._rooms.add(room)
            self._offsets[room] = found["offset"]
            if not found["recovered"]:
                self._tell("room:gap", {"room": room, "reason": "not recovered"})

    def _settle(self, link: _Link, thread_id: str) -> None:
        """Say that a thread is wanted, or not, until that is granted, or refused for good, or not so any more."""
        room = f"thread:{thread_id}"
        wanted = self._wants(room)

        def take(answer: Answer) -> None:
            if self._wants(room) is not wanted:
                return
            if not isinstance(answer, CallFailed):
                if wanted:
                    self._rooms.add(room)
                    self._offsets[room] = answer["offset"]
                    self._tell("room:joined", {"room": room})
            elif answer.code in NOT_NOW:
                self._spawn(self._later(answer, again))
            elif answer.code != "closed":
                self._refused(room, answer.code)

        def again() -> None:
            if self._wants(room) is wanted:
                self._settle(link, thread_id)

        link.ask("join:thread" if wanted else "leave:thread", {"thread_id": thread_id}, take)

    @staticmethod
    async def _later(failed: CallFailed, action: Callable[[], None]) -> None:
        """Do it when it may be granted; not everything at once: that was perhaps what was too fast."""
        await asyncio.sleep((failed.retry_after or 1.0) + random.uniform(0, 1))  # noqa: S311
        action()

    def _refused(self, room: str, code: str) -> None:
        if self._wants(room):
            self._forget(room)
            self._tell("room:left", {"room": room, "reason": code})

    def _forget(self, room: str) -> None:
        self._offsets.pop(room, None)
        for rooms in (self._rooms, self._resuming):
            rooms.discard(room)
        self._threads.pop(room.removeprefix("thread:"), None)


def _failed(error: Mapping[str, Any]) -> CallFailed:
    return CallFailed(str(error.get("code")), str(error.get("message")), error.get("retry_after"))
