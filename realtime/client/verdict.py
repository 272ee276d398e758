"""Asking the server in plain HTTP why a handshake was refused: some servers, such as daphne, cannot say it."""

from __future__ import annotations

import asyncio
from http.client import HTTPConnection, HTTPException, HTTPSConnection
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


async def verdict(refusal: InvalidStatus, url: str, token: str, seconds: float) -> Loss:
    """Why the handshake at `url` was refused: in the words of the refusal, or else in those of a plain answer.

    Args:
        refusal: The answer to the handshake.
        url: That of the handshake, `ws://…` or `wss://…`.
        token: The token of the handshake.
        seconds: How long to wait for each step of the plain answer.
    """
    told = Loss.of(refusal)
    if told.is_explained or refusal.response.status_code != 403:
        return told
    try:
        answer = await asyncio.to_thread(_ask, url, token, seconds)
    except (OSError, HTTPException):
        return told
    return answer if answer.is_explained or answer.code is None else told


def _ask(url: str, token: str, seconds: float) -> Loss:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "wss" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    try:
        target = f"{parts.path or '/'}?{parts.query}".removesuffix("?")
        connection.request("GET", target, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        if response.status == 204:
            return Loss(None, "the handshake was refused, and would be accepted now")
        pause = response.headers.get("Retry-After", "")
        return Loss.refused(response.status, response.reason, response.read(LONGEST_ANSWER), pause)
    finally:
        connection.close()
