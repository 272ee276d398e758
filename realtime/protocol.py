"""uvicorn's protocols, made calm about what a client can send, and light for who stays connected.

`HttpToolsProtocol` and `WebSocketsSansIOProtocol` are no public API: uvicorn's minor version is pinned, and a test
fails when what is relied on here changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import (  # type: ignore[attr-defined]
    Frame,
    apply_mask,  # compiled, where it can be
)
from websockets.http11 import Request
from websockets.protocol import OPEN

from realtime import metrics
from realtime.closing import LOST, REASONS, By, CloseCode
from realtime.conf import conf
from realtime.outlet import BEHIND_SECONDS, EXTENSION
from realtime.supervision import report

PING_SECONDS = 15
"""Between two looks at a connection: one that has vanished is noticed within three times that."""
CUT_SECONDS = 2.0
"""A peer that is cut off has so long to read the close frame."""
MOST_OPEN = 8
"""With so many frames of a connection not dealt with, no more are read from it."""
PING_FRAME = b"\x89\x00"
"""A ping without payload (RFC 6455 §5.5.2), as a server sends it."""

Take = Callable[[dict[str, Any]], Awaitable[None]]

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, that does not wait for ever for the rest of a request.

    `HttpToolsProtocol` is no public API either.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_request()

    def on_message_complete(self) -> None:
        self._forget_deadline()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._forget_deadline()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        patience = conf().limits.handshake_seconds
        if patience and self._deadline is None:
            self._deadline = self.loop.call_later(patience, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Gate:
    """`asyncio.Event` without the 600 bytes of a queue for waiters that hardly ever wait."""

    __slots__ = ("_closed",)

    def __init__(self) -> None:
        self._closed: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Let everybody through."""
        if self._closed is not None:
            if not self._closed.done():
                self._closed.set_result(None)
            self._closed = None

    def clear(self) -> None:
        """Let nobody through."""
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()

    def is_set(self) -> bool:
        """Whether it is open."""
        return self._closed is None

    async def wait(self) -> None:
        """Return once it is open."""
        while self._closed is not None:
            await asyncio.shield(self._closed)


class Inbox:
    """Takes the place of a connection's queue: an event starts a task of its own, which ends with it."""

    __slots__ = ("_protocol", "_take", "open")

    def __init__(self, protocol: WebSocketProtocol, take: Take) -> None:
        self._protocol = protocol
        self._take = take
        self.open = 0
        """Events that are not done with yet."""

    def put_nowait(self, message: dict[str, Any]) -> None:
        """Deal with an event, after those before it (`take` sees to the order)."""
        self.open += 1
        task = self._protocol.loop.create_task(self._deal_with(message))
        self._protocol.tasks.add(task)
        task.add_done_callback(self._protocol.tasks.discard)

    async def _deal_with(self, message: dict[str, Any]) -> None:
        try:
            await self._take(message)
        except ClientDisconnected:
            pass
        except Exception:
            self._protocol.logger.exception("Exception in ASGI application")
            self._protocol.transport.close()
        finally:
            self.open -= 1
            if self.open <= MOST_OPEN / 2:
                self._protocol.read_on()


class Keepalive:
    """Pings for all connections of a loop from one timer; who was heard from lately is not asked.

    uvicorn's own costs two timers and two frame objects a connection and ping, more than all heartbeats together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: list[set[WebSocketProtocol]] = [set() for _ in range(PING_SECONDS)]
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, protocol: WebSocketProtocol) -> None:
        """Look after a connection. It joins the bucket that was just done, and so has its whole time."""
        self._buckets[self._next - 1].add(protocol)
        if self._timer is None:
            self._timer = self._loop.call_later(1, self._tick)

    def discard(self, protocol: WebSocketProtocol) -> None:
        """Look after it no longer."""
        for bucket in self._buckets:
            bucket.discard(protocol)

    def _tick(self) -> None:
        bucket = self._buckets[self._next]
        self._next = (self._next + 1) % PING_SECONDS
        for protocol in tuple(bucket):
            try:
                protocol.check_alive()
            except Exception:
                report("keepalive")
        self._timer = self._loop.call_later(1, self._tick) if any(self._buckets) else None


_behind: WeakSet[WebSocketProtocol] = WeakSet()
"""Connections for which more waits than their transport likes to hold."""


def measure_backlog() -> None:
    """Tell what waits for clients that do not keep up."""
    unsent = [size for protocol in _behind if (size := protocol.unsent)]
    metrics.BEHIND.set(len(unsent))
    metrics.QUEUE_BYTES.set(sum(unsent))


_keepalives: WeakKeyDictionary[asyncio.AbstractEventLoop, Keepalive] = WeakKeyDictionary()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, made calm about what a client can send.

    `WebSocketsSansIOProtocol` is no public API: uvicorn's minor version is pinned, and a test fails when it
    changes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writable = Gate()  # type: ignore[assignment]
        self._heard = self._asked = self._has_vanished = False
        self._behind_since = 0.0
        """Loop time from which on more waits to be sent than the transport likes to hold; 0: it does not."""

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if isinstance(self.queue, Inbox) and self._take_short_text(data):
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # The headers are too long or too many. uvicorn would wait for a request that never comes.
            self.transport.write(b"".join(self.conn.data_to_send()) or BAD_REQUEST)
            self.handshake_complete = self.close_sent = True
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        try:
            super().handle_connect(event)
            if self.handshake_initiated and not self.handshake_complete:
                extensions: Any = self.scope["extensions"]
                extensions[EXTENSION] = self
        except UnicodeError:
            # Bytes outside ASCII in the request line or a header's name.
            self.send_400_response()

    # --- Alive? ----------------------------------------------------------------------------------

    def start_keepalive(self) -> None:
        if self.ping_interval:
            if self.loop not in _keepalives:
                _keepalives[self.loop] = Keepalive(self.loop)
            _keepalives[self.loop].add(self)

    def stop_keepalive(self) -> None:
        if keepalive := _keepalives.get(self.loop):
            keepalive.discard(self)

    def check_alive(self) -> None:
        """Nothing heard since the last look: ask. Asked, and still nothing: it is gone."""
        if self._heard or self.read_paused:  # what we do not read cannot tell that a peer is gone
            self._heard = self._asked = False
        elif self._asked:
            self._has_vanished = True
            self.keepalive_timeout()
            self._give_up_soon()
        else:
            self._asked = True
            self.write_frames(PING_FRAME)

    # --- The extension `realtime.frames` -------------------------------------------------------------

    def write_frames(self, frames: bytes) -> None:
        """Finished frames go out as they are, unless too much waits already."""
        if self.handshake_complete and not (
            self.close_sent or self.disconnected or self.transport.is_closing()
        ):
            if self._behind_since and self.unsent > conf().limits.unsent_bytes > 0:
                self.cut(CloseCode.TOO_SLOW)
            else:
                self.transport.write(frames)

    @property
    def unsent(self) -> int:
        # One turn of the loop may write much to a peer that keeps up.
        if (
            self.disconnected
            or not self._behind_since
            or self.loop.time() - self._behind_since < BEHIND_SECONDS
        ):
            return 0
        return self.transport.get_write_buffer_size()

    @property
    def ending(self) -> tuple[By, int, str]:
        """Who has ended the connection, with which code and reason."""
        received, sent = self.conn.close_rcvd, self.conn.close_sent
        if received is not None and (sent is None or self.conn.close_rcvd_then_sent):
            return By.CLIENT, received.code, received.reason
        if sent is not None and not self._has_vanished:
            return By.SERVER, sent.code, sent.reason
        return By.LOST, LOST, "keepalive ping timeout" if self._has_vanished else ""

    def pause_writing(self) -> None:
        self._behind_since = self.loop.time()
        _behind.add(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._behind_since = 0.0
        _behind.discard(self)
        super().resume_writing()

    def cut(self, code: CloseCode) -> None:
        """Close, and do not wait for ever until the peer has read what is on its way, the close frame with it."""
        self.conn.send_close(code, REASONS[code])
        self.handle_parser_exception()
        self.loop.call_later(CUT_SECONDS, self.transport.abort)

    def close(self, code: int, reason: str) -> None:
        """What `send` does with `websocket.close`, at once and whatever waits to be written."""
        if not self.handshake_complete or self.close_sent or self.disconnected or self.conn.state is not OPEN:
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.read_on()
        self.close_timer = self.loop.call_later(self.close_timeout, self._close_at_last)
        if self._behind_since:
            self._give_up_soon()

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._give_up_soon()

    def _close_at_last(self) -> None:
        """The peer has not answered our close frame."""
        self.transport.close()
        self._give_up_soon()

    def _give_up_soon(self) -> None:
        """`transport.close` waits until the peer has read everything, however slowly it does, or never."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(CUT_SECONDS, self.transport.abort)

    async def drained(self) -> None:
        """Return once the peer keeps up."""
        await self.writable.wait()

    def hand_over(self, take: Take) -> None:
        """From now on every event goes to `take`; the ASGI application may return without ending the connection.

        What waits on `receive()` for the life of a connection (a task, a queue, the frames of all middleware,
        scopes with their headers) is most of its memory, and none of it is needed any more.
        """
        before: Any = self.queue
        inbox: Any = Inbox(self, take)
        self.queue = inbox
        while not before.empty():
            inbox.put_nowait(before.get_nowait())
        nothing: Any = None
        self.scope = self.request = self.response = self.app_state = nothing

    async def run_asgi(self) -> None:
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException:
            self.logger.exception("Exception in ASGI application")
            self.send_500_response()
        if self.close_timer is None and not isinstance(self.queue, Inbox):
            self.transport.close()

    async def send(self, message: Any) -> None:
        if self.handshake_complete and self.close_sent:
            # Closed from here (a frame against the protocol) while the frames before it are still being answered.
            raise ClientDisconnected
        await super().send(message)

    def read_on(self) -> None:
        """What was read has been dealt with."""
        if self.read_paused:
            self.read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # --- What a client can send ------------------------------------------------------------------------

    def send_400_response(self) -> None:
        """Refuse a request that is not HTTP."""
        self.conn.send_response(self.conn.reject(400, "Bad Request"))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.handshake_complete = self.close_sent = True
        self.transport.close()

    def _take_short_text(self, data: bytes) -> bool:
        """Deal with exactly one whole, short text frame, as nearly all that clients send is (RFC 6455 §5.2).

        `websockets` is ready for everything, which costs several times what the rest of a typing event costs.
        Whatever is not just this is left to it.
        """
        conn = self.conn
        if (
            len(data) < 6
            or data[0] != 0x81
            or not 0x80 <= data[1] < 0xFE
            or len(data) != data[1] - 0x80 + 6
            or len(data) - 6 > self.config.ws_max_size
            or conn.reader.buffer
            or conn.current_size is not None
            or conn.state is not OPEN
            or self.close_sent
        ):
            return False
        try:
            text = apply_mask(data[6:], data[2:6]).decode()
        except UnicodeDecodeError:
            return False
        self._receive(text)
        return True

    def _receive(self, text: str) -> None:
        """uvicorn stops reading for every frame: two system calls, where a limit does."""
        inbox: Any = self.queue
        inbox.put_nowait({"type": "websocket.receive", "text": text})
        if inbox.open >= MOST_OPEN and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                text = b"".join(self.frames).decode()
            except UnicodeDecodeError:
                # uvicorn does the same, and writes a stack trace into the log.
                self.frames = []
                self.conn.send_close(CloseCode.INVALID_UTF8)
                self.handle_parser_exception()
                return
            if isinstance(self.queue, Inbox):
                self.frames = []
                self._receive(text)
                return
        super().send_receive_event_to_app()
