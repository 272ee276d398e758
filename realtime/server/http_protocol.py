"""uvicorn's HTTP protocol, bounded in what one connection can make it read, keep and wait for.

`runsockets` and `runweb` serve with it. `HttpToolsProtocol` is no public API: a test fails when what is relied on here
changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from django.conf import settings
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from realtime.conf import conf
from realtime.connections import admission

HEAD_BYTES = 64 * 1024
"""The longest request head."""
HEAD_LINES = 100
"""The most lines of a request head, the request line included."""
MOST_ITEMS = 100
"""About the most items in all lists of a head that say what a connection becomes: each is parsed in Python."""
MOST_ESCAPES = 1000
"""The most backslashes in the cookies of a head: before 3.11.10 and 3.12.6 Python takes quadratic time for them."""
PIECE_BYTES = 256
"""A piece of a body that is smaller than this counts as this much more, so that there cannot be many."""
LINGER_SECONDS = 2.0
"""The time that a client has to read why its request was refused. Nothing more is read from it."""
READ_SECONDS = 30.0
"""The time that a client has to read the end of its last response, and to send each piece of a body."""
_BOUNDS = (
    (frozenset({b"connection", b"upgrade", b"sec-websocket-protocol"}), b",", MOST_ITEMS),
    (frozenset({b"cookie"}), b"\\", MOST_ESCAPES),
)
"""Names of headers, a byte, and how often it may be in all of these headers together."""


def _takes_long(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether parsing these headers would take long for their size."""
    return any(
        sum([value.count(byte) for name, value in headers if name in names]) > most
        for names, byte, most in _BOUNDS
    )


class _Lingering:
    """A transport that lets the client read what was written before it closes."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Unacceptable(Exception):
    """Stops the parser; the status that the request is refused with is set."""


class HttpProtocol(HttpToolsProtocol):
    """Reads one request at a time, with a head and a body of bounded size.

    A head that is too large, or that would take long to parse, gets 431, a body that is too large 413. A head must be
    complete `HANDSHAKE_SECONDS` after its beginning. What follows a request that is not answered yet is not read: the
    connection ends with the response.
    """

    _deadline: asyncio.TimerHandle | None = None
    _in_head = True
    _allowance = HEAD_BYTES
    """Bytes that may still be read before the head, or a piece of the body, is complete. (Trailers are no body.)"""
    _body = 0
    """Bytes of the body so far, with what its small pieces count in addition."""
    _status = HTTPStatus.BAD_REQUEST
    """A request is refused with this status."""
    _is_over = False
    """Nothing more is read from this connection."""

    @property
    def most_body(self) -> int | None:
        """The largest body that is read, in bytes; None: no limit."""
        most: int | None = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        return most

    @property
    def is_answering(self) -> bool:
        """Whether the answer to a request is not complete yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            self.flow.pause_reading()
            return
        self._unset_keepalive_if_required()
        self._expect_head()
        try:
            while data and not self._is_over:
                data = self._read_some(data)
        except (
            httptools.HttpParserError
        ):  # under a name it would keep `data` until cyclic garbage is collected
            self._refuse()

    def _read_some(self, data: bytes) -> bytes:
        """Parse as much as may be read, and return the rest. Raises `httptools.HttpParserError`."""
        if not self._allowance:
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse()
            return b""
        piece, rest = data[: self._allowance], data[self._allowance :]
        self._allowance -= len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._upgrade(piece[upgrade.args[0] :] + rest)
            else:
                self.cycle.keep_alive = False  # answered as if it had not asked
        return rest

    # --- Parser callbacks ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_answering:
            raise Unacceptable
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEAD_LINES - 1:
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise Unacceptable
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._body = 0
        self._forget_deadline()
        if _takes_long(self.headers):
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise Unacceptable
        headers = dict(self.headers)
        if not self._may_have_body(int(headers.get(b"content-length", 0))) or (
            self.most_body == 0 and b"transfer-encoding" in headers
        ):
            self._status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            raise Unacceptable
        super().on_headers_complete()
        if b"content-length" in headers or b"transfer-encoding" in headers:
            self._expect_body()

    def on_body(self, body: bytes) -> None:
        self._allowance = HEAD_BYTES
        self._forget_deadline()
        self._expect_body()
        self._body += len(body) + PIECE_BYTES * (len(body) < PIECE_BYTES)
        if not self._may_have_body(self._body):
            self._status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            raise Unacceptable
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._forget_deadline()
        self._in_head = True
        self._allowance = HEAD_BYTES
        super().on_message_complete()

    def _may_have_body(self, body: int) -> bool:
        return self.most_body is None or body <= self.most_body

    # --- The end ---------------------------------------------------------------------------------

    def _refuse(self) -> None:
        """Read no more, and answer with the status. If an earlier request is being answered, end with that answer."""
        self._is_over = True
        self._forget_deadline()
        self.flow.pause_reading()
        self.headers = []
        self.parser = None  # type: ignore[assignment]  # half a head is not kept
        if self.is_answering:
            self.cycle.keep_alive = False
            self.cycle.transport = _Lingering(self.transport, partial(self._end, READ_SECONDS))  # type: ignore[assignment]
            if self._in_head:
                return
            self.cycle.disconnected = True  # the request that is being answered is the one that is refused
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        self.transport.write(STATUS_LINE[self._status] + b"connection: close\r\ncontent-length: 0\r\n\r\n")
        self._end(LINGER_SECONDS)

    def _end(self, seconds: float) -> None:
        """Closed at once, the connection would be reset because of what the client has sent, and the answer lost."""
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._give_up_later()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._give_up_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _give_up_later(self) -> None:
        """`transport.close` waits without a limit until the client has read everything."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size() and self._deadline is None:
            self._deadline = self.loop.call_later(READ_SECONDS, self.transport.abort)

    # --- Time to send in -------------------------------------------------------------------------

    def _expect_head(self) -> None:
        patience = conf().limits.handshake_seconds
        if patience and self._in_head and self._deadline is None and not self.is_answering:
            self._deadline = self.loop.call_later(patience, self.transport.close)

    def _expect_body(self) -> None:
        self._deadline = self.loop.call_later(READ_SECONDS, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # --- WebSockets ------------------------------------------------------------------------------

    def _upgrade(self, rest: bytes) -> None:
        is_old = self.parser.get_http_version() != "1.1"  # RFC 6455 §4.2.1
        if is_old or not all(
            value.isascii() for name, value in self.headers if name.startswith(b"sec-websocket-")
        ):
            self._refuse()  # websockets 16 fails on values beyond ASCII, with 500 and a traceback
            return
        self._hand_over(rest)

    def _hand_over(self, rest: bytes) -> None:
        """Give the connection to the WebSocket protocol: the request as it was parsed, and what came behind it."""
        self._is_over = True
        self._forget_deadline()
        self.connections.discard(self)
        protocol: Any = self.ws_protocol_class
        protocol = protocol(self.config, self.server_state, self.app_state)
        protocol.connection_made(self.transport)
        protocol.handshake_received(self.scope["method"], self.url, self.headers)
        self.transport.set_protocol(protocol)
        if rest:
            protocol.data_received(rest)


class BodilessHttpProtocol(HttpProtocol):
    """Reads no body, as the socket server needs none. A handshake beyond the limits is refused by its head."""

    most_body = 0

    def take_over(
        self, transport: asyncio.Transport, deadline: asyncio.TimerHandle | None, data: bytes
    ) -> None:
        """Go on with a connection that has begun with `data`; `deadline` closes it if its head is not complete then."""
        self._deadline = deadline
        self.connection_made(transport)
        transport.set_protocol(self)
        self.data_received(data)

    def _upgrade(self, rest: bytes) -> None:
        path = self.url.partition(b"?")[0]
        if (refused := admission.refuse_handshake(self.client, self.headers, path)) is None:
            super()._upgrade(rest)
            return
        self._is_over = True
        self._forget_deadline()
        self.transport.write(admission.response(refused, self.server_state.default_headers))
        self.transport.close()
