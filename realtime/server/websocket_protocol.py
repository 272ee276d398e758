"""uvicorn's WebSocket protocol, made calm about what a client can send, and light for clients that stay connected.

`WebSocketsSansIOProtocol` is no public API: uvicorn's minor version is pinned, and a test fails when what is relied on
here changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.frames import (  # type: ignore[attr-defined]
    Frame,
    Opcode,
    apply_mask,  # compiled, where it can be
)
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol

from realtime.conf import conf
from realtime.connections.frame_outlet import BEHIND_SECONDS, EXTENSION
from realtime.connections.rate_limit import PAUSE_SECONDS, Bucket
from realtime.protocol.close_codes import LOST, REASONS, By, CloseCode
from realtime.tasks.supervision import report
from realtime.telemetry import metrics

PING_SECONDS = 15
"""Between two looks at a connection: one that has vanished is noticed within three times that."""
CUT_SECONDS = 2.0
"""A peer that is cut off has so long to read the close frame."""
MOST_OPEN = 8
"""With so many frames of a connection not dealt with, no more are read from it."""
WEIGHT_BYTES = 8 * 1024
"""A large frame counts as one more for each so many bytes."""
FRAMES_A_TURN = 16
"""So many frames of a connection are parsed in one turn of the event loop."""
LONGEST_HOLD = PAUSE_SECONDS / 2
"""A connection that is over its limit is not read for so long at most: what it sends after that still is no pause."""
PING_FRAME = b"\x89\x00"
"""A ping without payload (RFC 6455 §5.5.2), as a server sends it."""

_RESERVED = frozenset({*range(3, 8), *range(11, 16)})
"""Opcodes that no frame may have (RFC 6455 §5.2)."""
_CONTROL = 0x08
"""This bit of an opcode tells control frames."""

Take = Callable[[dict[str, Any]], Awaitable[None]]
Charge = Callable[[], float]


def frame_size(data: bytes | bytearray, most: int) -> int:
    """How many bytes the frame has with which `data` begins, or at least has; all of `data` if the frame is wrong.

    (The parser then says what is wrong: reserved opcode, not masked, more than `most` bytes of payload.)
    """
    if len(data) < 2:
        return 2
    if not data[1] & 0x80 or data[0] & 0x0F in _RESERVED:
        return len(data)
    length, head = data[1] & 0x7F, 6
    if length == 126:
        length, head = int.from_bytes(data[2:4]), 8
    elif length == 127:
        length, head = int.from_bytes(data[2:10]), 14
    if len(data) < head:
        return head
    return len(data) if length > most else head + length


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

    __slots__ = ("_protocol", "_take", "charge", "open")

    def __init__(self, protocol: WebSocketProtocol, take: Take, charge: Charge) -> None:
        self._protocol = protocol
        self._take = take
        self.charge = charge
        """Counts a frame, and tells how many seconds it came too early."""
        self.open = 0
        """Events that are not done with yet, large ones counted several times."""

    def put_nowait(self, message: dict[str, Any], weight: int = 1) -> None:
        """Deal with an event, after those before it (`take` sees to the order)."""
        self.open += weight
        task = self._protocol.loop.create_task(self._deal_with(message, weight))
        self._protocol.tasks.add(task)
        task.add_done_callback(self._protocol.tasks.discard)

    async def _deal_with(self, message: dict[str, Any], weight: int) -> None:
        try:
            await self._take(message)
        except ClientDisconnected:
            pass
        except Exception:
            self._protocol.logger.exception("Exception in ASGI application")
            self._protocol.transport.close()
        finally:
            self.open -= weight
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
        self._received = bytearray()
        """What is not parsed yet."""
        self._held: asyncio.Handle | None = None
        """Goes on parsing; until then nothing is parsed."""
        self._refusals: Bucket | None = None
        """How fast frames that are over the limit may still be parsed, to be refused."""
        self._early = 0.0
        """Seconds by which the frame that is being parsed came too early."""
        self._too_early = 0.0
        """Seconds by which a frame of the message that is being received came too early."""

    def handshake_received(self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Answer a request for a WebSocket, whose head was read."""
        try:
            named = Headers([(name.decode("ascii"), value.decode("latin-1")) for name, value in headers])
            request = Request(target.decode("ascii"), named, method)
        except ValueError:
            # Bytes outside ASCII in the request line or a header's name.
            self.send_400_response()
            return
        self.conn.parser = Protocol.parse(self.conn)  # it need not parse the head again
        next(self.conn.parser)
        self.handle_connect(request)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.handshake_complete:
            extensions: Any = self.scope["extensions"]
            extensions[EXTENSION] = self

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
        # Behind much that is not parsed yet the peer's close frame would come late, if ever.
        patience = CUT_SECONDS if self._received else self.close_timeout
        self.close_timer = self.loop.call_later(patience, self._close_at_last)
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

    def hand_over(self, take: Take, charge: Charge) -> None:
        """From now on every event goes to `take`; the ASGI application may return without ending the connection.

        `charge` is called for every frame before it is parsed.

        What waits on `receive()` for the life of a connection (a task, a queue, the frames of all middleware,
        scopes with their headers) is most of its memory, and none of it is needed any more.
        """
        before: Any = self.queue
        inbox: Any = Inbox(self, take, charge)
        self.queue = inbox
        while not before.empty():
            inbox.put_nowait(before.get_nowait())
        nothing: Any = None
        self.scope = self.request = self.response = self.app_state = nothing
        if self._received:
            self._parse()

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

    # --- What a client can send ------------------------------------------------------------------------

    def send_400_response(self) -> None:
        """Refuse a request that is not HTTP."""
        self.conn.send_response(self.conn.reject(400, "Bad Request"))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.handshake_complete = self.close_sent = True
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if (
            not self._received
            and len(data) == frame_size(data, self.config.ws_max_size)
            and self._may_parse()
        ):
            self._take(data)
        else:
            self._received += data
            self._parse()

    def read_on(self) -> None:
        """Frames have been dealt with: go on with those behind them."""
        if self.read_paused:
            self._parse()

    def _parse(self) -> None:
        """Parse what was received, but not too much in one turn. Nothing is read while there are frames left."""
        received, most = self._received, self.config.ws_max_size
        for _ in range(FRAMES_A_TURN):
            if self.transport.is_closing():
                received.clear()
            if len(received) < (size := frame_size(received, most)):
                self._read()
                return
            if not self._may_parse():
                self._read_nothing()
                return
            frame = bytes(received[:size])
            del received[:size]
            self._take(frame)
        self._read_nothing()
        self._hold(0)

    def _may_parse(self) -> bool:
        """Whether one more frame may be parsed now. If not, `_parse` is called again when it may."""
        inbox: Any = self.queue
        if self._held is not None or not isinstance(inbox, Inbox) or inbox.open >= MOST_OPEN:
            return False
        self._early = inbox.charge()
        if self._early and (pause := self._take_refusal()):
            self._hold(min(pause, LONGEST_HOLD))
            return False
        return True

    def _take_refusal(self) -> float:
        """0 when one more frame that is over the limit may be refused now, else the seconds to wait."""
        if self._refusals is None:
            self._refusals = Bucket()
        limits = conf().limits
        return self._refusals.take(self.loop.time(), limits.rate, limits.burst)

    def _hold(self, seconds: float) -> None:
        if self._held is None:
            self._held = self.loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._held = None
        self._parse()

    def _read(self) -> None:
        if self.read_paused:
            self.read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _read_nothing(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _take(self, frame: bytes) -> None:
        """Deal with one frame. Behind our close frame only the peer's own matters."""
        if self.close_sent and frame[0] & 0x0F != Opcode.CLOSE:
            return
        if self._early and not frame[0] & _CONTROL:
            self._too_early = max(self._too_early, self._early)
        if not self._take_short_text(frame):
            self.conn.receive_data(frame)
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
            else:
                self.handle_events()

    def _take_short_text(self, frame: bytes) -> bool:
        """Deal with a whole, short text frame, as nearly all that clients send is (RFC 6455 §5.2).

        `websockets` is ready for everything, which costs several times what the rest of a typing event costs.
        Whatever is not just this is left to it.
        """
        conn = self.conn
        if (
            frame[0] != 0x81
            or not 0x80 <= frame[1] < 0xFE
            or len(frame) - 6 > self.config.ws_max_size
            or conn.current_size is not None
            or conn.state is not OPEN
        ):
            return False
        try:
            text = apply_mask(frame[6:], frame[2:6]).decode()
        except UnicodeDecodeError:
            return False
        self._put("text", text)
        return True

    def _put(self, kind: str, content: str | bytes) -> None:
        """Give a message to the application, and tell it whether that came too early."""
        inbox: Any = self.queue
        message = {"type": "websocket.receive", "retry_after": self._too_early, kind: content}
        self._too_early = 0.0
        inbox.put_nowait(message, 1 + len(content) // WEIGHT_BYTES)

    def handle_ping(self) -> None:
        self.write_frames(b"".join(self.conn.data_to_send()))

    def handle_cont(self, event: Frame) -> None:
        """Join the fragments as they come: one by one they would take a hundred times the memory."""
        frames: Any = self.frames
        if not isinstance(frames[0], bytearray):
            frames[0] = bytearray(frames[0])
        frames[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        (data,), self.frames = self.frames, []
        if self.curr_msg_data_type == "bytes":
            self._put("bytes", bytes(data))
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            # uvicorn does the same, and writes a stack trace into the log.
            self.conn.send_close(CloseCode.INVALID_UTF8)
            self.handle_parser_exception()
        else:
            self._put("text", text)
