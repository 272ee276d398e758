"""Requests over plain HTTP, and handshakes as requests."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.asking import PATIENCE

_REQUESTS = ThreadPoolExecutor(32, "request")


@dataclass(frozen=True)
class Response:
    """An answer over plain HTTP, to a handshake too."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error of a JSON body."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


class PlainHttp:
    """Asks a socket server."""

    port: int
    server: str
    """By which it is served."""

    async def http(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[str, str | bytes]] = (),
        port: int | None = None,
        within: float = PATIENCE,
    ) -> Response:
        """One request with exactly these headers (and Host)."""
        return await asyncio.get_running_loop().run_in_executor(
            _REQUESTS, self._http, method, path, [("Connection", "close"), *headers], port, within
        )

    async def connections(self, port: int | None = None) -> int:
        """How many the server there has, as far as it knows."""
        metrics = (await self.http("GET", "/metrics", port=port)).body.decode()
        return sum(
            int(float(count)) for count in re.findall(r"(?m)^realtime_connections\{.*\} (\S+)$", metrics)
        )

    async def handshake(
        self,
        path: str = "/hub/",
        headers: Iterable[tuple[str, str | bytes]] = (),
        *,
        token: str | None = None,
        port: int | None = None,
        within: float = PATIENCE,
    ) -> Response:
        """Ask for a WebSocket and hang up; 101 when it was granted. `token` goes into Authorization."""
        upgrade: list[tuple[str, str | bytes]] = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        if token is not None:
            upgrade.append(("Authorization", f"Bearer {token}"))
        return await asyncio.get_running_loop().run_in_executor(
            _REQUESTS, self._http, "GET", path, [*upgrade, *headers], port, within
        )

    def _http(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[str, str | bytes]],
        port: int | None,
        within: float,
    ) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=within)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders()
            with connection.getresponse() as response:
                return Response(
                    response.status,
                    {name.lower(): value for name, value in response.getheaders()},
                    response.read(),
                )
        finally:
            connection.close()

    def assert_refused(self, response: Response, status: int, code: str) -> None:
        """The handshake got this status and error; from daphne it can only be a bare 403."""
        if self.server == "daphne":
            assert response.status == 403, response
        else:
            assert (response.status, response.error["code"]) == (status, code), response
            assert isinstance(response.error["message"], str)
            assert response.headers["content-type"] == "application/json"
