"""uvicorn's WebSocket protocol, bounded in what a client can make it do, and light for clients that stay connected.

`WebSocketsSansIOProtocol` is no public API: a test fails when what is relied on here changes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN

from realtime.conf import conf
from realtime.connections.frame_outlet import BEHIND_SECONDS, Receiver
from realtime.protocol.close_codes import LOST, REASONS, By, CloseCode
from realtime.server import backlog
from realtime.server.dispatcher import Dispatcher
from realtime.server.frame_reader import FrameReader
from realtime.server.frames import CONTROL, PING_FRAME, is_short_pong, short_text
from realtime.server.keepalive import keepalive
from realtime.server.websocket_beginning import WebSocketBeginning

CUT_SECONDS = 2.0
"""The time that a peer has to read the close frame before it is cut off."""
WEIGHT_BYTES = 8 * 1024
"""A large message counts as one more event for each of this many bytes."""


class WebSocketProtocol(WebSocketBeginning):
    """One connection: what is written to it, its end, and the messages of its client."""

    __slots__ = ("_too_early", "_was_active", "_was_pinged", "reader")

    _has_vanished = False
    """Whether the peer did not answer a ping."""
    _behind_since = 0.0
    """Loop time since which the transport holds more than it wants to; 0: it does not."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._was_active = False
        """Whether the peer has sent anything since the last check."""
        self._was_pinged = False
        """Whether the last check sent a ping."""
        self._too_early = 0.0
        """Seconds by which a frame of the message that is being received came too early."""
        self.reader = FrameReader(self, self.config.ws_max_size)

    # --- The application -------------------------------------------------------------------------

    def hand_over(self, receiver: Receiver) -> None:
        """Give every further event to `receiver`, so that the ASGI application may return and the connection goes on.

        What waits on `receive()` for the life of a connection (a task, a queue, the stack frames of all middleware,
        scopes with their headers) is most of its memory, and none of it is needed any more.
        """
        before: Any = self.queue
        dispatcher = Dispatcher(self, receiver)
        self.queue = dispatcher  # type: ignore[assignment]
        while not before.empty():
            dispatcher.put_nowait(before.get_nowait())
        nothing: Any = None
        self.scope = self.app_state = nothing
        self.reader.start(dispatcher)

    @property
    def is_handed_over(self) -> bool:
        """Whether the ASGI application is no longer needed."""
        return isinstance(self.queue, Dispatcher)

    async def run_asgi(self) -> None:
        scope = self.scope
        self.scope = {**scope, "query_string": b""}  # uvicorn logs a refusal with it, and it may hold a token
        try:
            await self.app(scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:  # the server stops, and waits no longer for a handshake
            self.send_500_response()
        except BaseException:
            self.logger.exception("Exception in ASGI application")
            self.send_500_response()
        if self.close_timer is None and not self.is_handed_over:
            self.transport.close()

    async def send(self, message: Any) -> None:
        if self.handshake_complete and self.close_sent:
            # The server has closed because of a wrong frame, while the frames before it are still being answered.
            raise ClientDisconnected
        if message["type"] == "websocket.accept" and not (self.handshake_complete or self.initial_response):
            if self.transport.is_closing():
                raise ClientDisconnected
            self.accept(message)
        else:
            self.write_head()
            await super().send(message)

    # --- Writing ---------------------------------------------------------------------------------

    def write_frames(self, frames: bytes) -> None:
        """Write whole frames as they are, unless too much waits already."""
        if self.handshake_complete and not (
            self.close_sent or self.disconnected or self.transport.is_closing()
        ):
            if self._behind_since and self.unsent > conf().limits.unsent_bytes > 0:
                self.cut(CloseCode.TOO_SLOW)
            else:
                self.transport.write(self.head + frames if self.head else frames)
                self.head = b""

    @property
    def unsent(self) -> int:
        """Bytes that wait for a peer that reads too slowly; 0 for one that does not."""
        # One turn of the loop may write much to a peer that reads fast enough.
        is_behind = self._behind_since and self.loop.time() - self._behind_since >= BEHIND_SECONDS
        return self.transport.get_write_buffer_size() if is_behind and not self.disconnected else 0

    def pause_writing(self) -> None:
        self._behind_since = self.loop.time()
        backlog.behind.add(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._behind_since = 0.0
        backlog.behind.discard(self)
        super().resume_writing()

    async def drained(self) -> None:
        """Return once the transport holds no more than it wants to."""
        await self.writable.wait()

    # --- The end ---------------------------------------------------------------------------------

    @property
    def ending(self) -> tuple[By, int, str]:
        """Which side has ended the connection, with which code and reason."""
        parser = self.parser
        received, sent = (parser.close_rcvd, parser.close_sent) if parser else (None, None)
        if received is not None and (sent is None or self.conn.close_rcvd_then_sent):
            return By.CLIENT, received.code, received.reason
        if sent is not None and not self._has_vanished:
            return By.SERVER, sent.code, sent.reason
        return By.LOST, LOST, "keepalive ping timeout" if self._has_vanished else ""

    def cut(self, code: CloseCode) -> None:
        """Close, and give the peer `CUT_SECONDS` to read what is on its way, the close frame with it."""
        self.write_head()
        self.conn.send_close(code, REASONS[code])
        self.handle_parser_exception()
        self.loop.call_later(CUT_SECONDS, self.transport.abort)

    def close(self, code: int, reason: str) -> None:
        """What `send` does with `websocket.close`, at once and however much waits to be written."""
        if not self.handshake_complete or self.close_sent or self.disconnected or self.conn.state is not OPEN:
            return
        self.write_head()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        # Behind much that is not parsed yet, the peer's close frame would come late, if ever.
        patience = CUT_SECONDS if self.reader.unparsed else self.close_timeout
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

    # --- Keepalive -------------------------------------------------------------------------------

    def start_keepalive(self) -> None:
        if self.ping_interval:
            keepalive().add(self)

    def stop_keepalive(self) -> None:
        keepalive().discard(self)

    def check_alive(self) -> None:
        """Ping a peer that has sent nothing since the last check, and give up one that did not answer a ping."""
        if self._was_active or self.read_paused:  # what is not read cannot show that a peer is gone
            self._was_active = self._was_pinged = False
        elif self._was_pinged:
            self._has_vanished = True
            self.keepalive_timeout()
            self._give_up_soon()
        else:
            self._was_pinged = True
            self.write_frames(PING_FRAME)

    # --- What the client sends -------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._was_active = True
        self.reader.feed(data)

    def read_on(self) -> None:
        """Go on reading: events have been handled."""
        self.reader.read_on()

    def frame_received(self, frame: bytes, early: float) -> None:
        """Handle one frame, which came `early` seconds too early. After our close frame only the peer's own matters."""
        if self.head:
            self.write_head()
        if self.close_sent and frame[0] & 0x0F != Opcode.CLOSE:
            return
        if early and not frame[0] & CONTROL:
            self._too_early = max(self._too_early, early)
        # `websockets` parses everything, which costs several times what the rest of a typing event costs.
        parser = self.parser
        is_between_messages = parser is None or (parser.current_size is None and parser.state is OPEN)
        if is_between_messages and (text := short_text(frame, self.config.ws_max_size)) is not None:
            self._put("text", text)
            return
        if parser is None and is_short_pong(frame):
            return
        self.conn.receive_data(frame)
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
        else:
            self.handle_events()

    def _put(self, kind: str, content: str | bytes) -> None:
        """Give a message to the application, with the seconds that it came too early."""
        dispatcher: Any = self.queue
        message = {"type": "websocket.receive", "retry_after": self._too_early, kind: content}
        self._too_early = 0.0
        dispatcher.put_nowait(message, 1 + len(content) // WEIGHT_BYTES)

    def handle_ping(self) -> None:
        self.write_frames(b"".join(self.conn.data_to_send()))

    def handle_pong(self, event: Frame) -> None:
        """Nothing has to be done: any frame shows that the peer is there."""

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
