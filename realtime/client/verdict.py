"""Asking the server in plain HTTP why a handshake was refused: some servers, such as daphne, cannot say it."""

from __future__ import annotations

import asyncio
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from urllib.parse import urlsplit

from websockets.exceptions import InvalidHandshake, InvalidStatus

from .retries import Loss

LONGEST_ANSWER = 65536
"""Bytes of an answer that are read."""


class Refused(InvalidHandshake):
    """The handshake was refused, and the server has said why."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(str(loss))
        self.loss = loss


async def verdict(refusal: InvalidStatus, url: str, token: str) -> Loss:
    """Why the handshake at `url` was refused: in the words of the refusal, or else in those of a plain answer.

    Args:
        refusal: The answer to the handshake.
        url: That of the handshake, `ws://…` or `wss://…`.
        token: The token of the handshake.
    """
    told = Loss.of(refusal)
    if told.is_explained or refusal.response.status_code != 403:
        return told
    try:
        answer = _loss(await _ask(url, token))
    except (OSError, HTTPException):
        return told
    return answer if answer.is_explained or answer.code is None else told


async def _ask(url: str, token: str) -> bytes:
    """The plain answer, or its first bytes. Not in a thread: one that waits for a slow server cannot be ended."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=parts.scheme == "wss" or None)
    try:
        writer.write(_request(url, token))
        answer = b""
        while len(answer) < LONGEST_ANSWER and (more := await reader.read(LONGEST_ANSWER)):
            answer += more
        return answer
    finally:
        writer.transport.abort()


def _request(url: str, token: str) -> bytes:
    parts = urlsplit(url)
    target = f"{parts.path or '/'}?{parts.query}".removesuffix("?")
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"Authorization: Bearer {token}",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


class _Received:
    """An answer that `http.client` reads as if it came from a socket."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._answer)


def _loss(answer: bytes) -> Loss:
    """What an answer says. Raises `HTTPException` if it is none."""
    response = HTTPResponse(_Received(answer))  # type: ignore[arg-type]
    response.begin()
    if response.status == 204:
        return Loss(None, "the handshake was refused, and would be accepted now")
    pauses = response.headers.get_all("Retry-After", [])
    return Loss.refused(response.status, response.reason, response.read(), *pauses)
