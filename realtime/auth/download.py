"""Downloading a small document over HTTP, within bounds that hold whatever the server sends."""

from __future__ import annotations

import socket
import time
import urllib.request
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any, cast
from urllib.error import HTTPError


def download(url: str, *, timeout: float, most: int) -> bytes:
    """Download a document, in a thread. Redirects are refused: one could lead from https to http.

    Args:
        url: the address.
        timeout: the longest wait for a complete answer, in seconds.
        most: the longest answer, in bytes, with its head.

    Raises:
        OSError: There was no complete answer in time, or one of failure.
        ValueError: It was longer.
        http.client.HTTPException: It was not HTTP.
    """
    opener = urllib.request.build_opener(_NoRedirects, _Bounded(timeout, most))
    try:
        with cast(HTTPResponse, opener.open(url, timeout=timeout)) as response:
            return response.read()
    except HTTPError as error:
        error.close()  # it holds the connection
        raise


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Bounded(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Bounds what is read of an answer."""

    def __init__(self, timeout: float, most: int) -> None:
        super().__init__()
        self._response = partial(_BoundedResponse, until=time.monotonic() + timeout, most=most)

    def do_open(self, http_class: Any, req: urllib.request.Request, **more: Any) -> HTTPResponse:
        return super().do_open(partial(self._connection, http_class), req, **more)

    def _connection(self, http_class: type[HTTPConnection], host: str, **more: Any) -> HTTPConnection:
        connection = http_class(host, **more)
        connection.response_class = self._response  # type: ignore[assignment]
        return connection


class _BoundedResponse(HTTPResponse):
    """A time-out bounds one read only: a head, an interim answer or a trailer could trickle in for ever."""

    def __init__(self, sock: socket.socket, *args: Any, until: float, most: int, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp = BufferedReader(_BoundedReader(sock, self.fp.detach(), until, most))


class _BoundedReader(RawIOBase):
    """Reads from a socket up to a time (of `time.monotonic`), and a number of bytes at most."""

    def __init__(self, sock: socket.socket, raw: RawIOBase, until: float, most: int) -> None:
        self._sock = sock
        self._raw = raw
        self._until = until
        self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the answer was not complete in time")
        self._sock.settimeout(seconds)
        count = cast(int, self._raw.readinto(buffer))
        self._left -= count
        if self._left < 0:
            raise ValueError("the answer is too long")
        return count

    def close(self) -> None:
        self._raw.close()  # it keeps the socket open
        super().close()
