"""Authorizing a handshake before it is accepted, and how a refusal is sent.

The same decision serves two callers: the WebSocket handshake itself, and the plain `GET` with which a browser
asks why a handshake was refused (a browser cannot see the status of a refused handshake).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from realtime.auth.credentials import BEARER_SUBPROTOCOL, Scope, credential, headers_of
from realtime.auth.verification import authenticate
from realtime.conf import conf
from realtime.connections.registry import ConnectionRegistry
from realtime.protocol.handshake_errors import STATUSES, AuthenticationFailed, RefusalCode
from realtime.protocol.principal import Principal
from realtime.telemetry import metrics, tracing

logger = logging.getLogger(__name__)

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

RETRY_AFTER = 2
"""Seconds that a client is asked to wait when this instance cannot accept it now."""


class Refused(Exception):
    """The handshake is refused with this error code, and the HTTP status that goes with it."""

    def __init__(self, code: RefusalCode, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = STATUSES[code]
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response, without those of its length."""
        extra = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        if self.status == 401:
            extra["WWW-Authenticate"] = "Bearer"
        return {"Content-Type": "application/json", "Cache-Control": "no-store", **extra}

    @property
    def body(self) -> bytes:
        """`{"error": {"code", "message"}}`"""
        return json.dumps({"error": {"code": self.code, "message": self.message}}).encode()


def unavailable(message: str = "the server cannot take connections now; try again") -> Refused:
    """503: Redis, or the source of token keys, is down. Without them no user's rights are known."""
    return Refused(RefusalCode.UNAVAILABLE, message, retry_after=RETRY_AFTER)


def at_capacity() -> Refused:
    """503: this instance has as many connections, or handshakes, as it may have."""
    return Refused(RefusalCode.AT_CAPACITY, "this server is full; try again", retry_after=RETRY_AFTER)


def draining() -> Refused:
    """503: this instance is about to stop."""
    return Refused(RefusalCode.DRAINING, "this server is about to stop; try again", retry_after=RETRY_AFTER)


def check_capacity() -> None:
    """Raises `Refused` when this instance may not have one more connection."""
    registry = ConnectionRegistry.current()
    if registry.is_draining:
        raise draining()
    if 0 < conf().limits.connections <= len(registry.connections):
        raise at_capacity()


def check_origin(scope: Scope) -> None:
    """Raises `Refused` unless the Origin is allowed, or absent (native clients; browsers always send one)."""
    origins = headers_of(scope, b"origin") or _own_page(scope)
    if not origins:
        if conf().require_origin:
            raise Refused(RefusalCode.FORBIDDEN_ORIGIN, "an Origin is required")
        return
    if len(origins) > 1 or not (is_allowed_origin(origins[0]) or _is_own_origin(scope, origins[0])):
        raise Refused(RefusalCode.FORBIDDEN_ORIGIN, "this Origin is not allowed")


def _own_page(scope: Scope) -> list[str]:
    """The origin of a page that asks for its verdict without one, out of the Referer.

    A browser sends no Origin with a GET to its page's own address, and does with the handshake.
    """
    if scope.get("type") != "http" or not _is_browser(scope):
        return []
    return ["/".join(page.split("/", 3)[:3]) for page in headers_of(scope, b"referer")]


def is_allowed_origin(origin: str) -> bool:
    """Whether the Origin is listed, exactly: scheme, host and port (a default port may be left out)."""
    return _normalised(origin) in {_normalised(allowed) for allowed in conf().allowed_origins}


def _is_own_origin(scope: Scope, origin: str) -> bool:
    """Whether a client that is no browser sent the address of this server as its Origin, as React Native does.

    Many of its versions write a slash at the end. The scheme is the client's own word: behind a proxy that ends TLS the
    server does not know it.
    """
    hosts = headers_of(scope, b"host")
    scheme = origin.lower().partition("://")[0]
    if conf().require_origin or len(hosts) != 1 or not hosts[0] or scheme not in _DEFAULT_PORTS:
        return False
    own = _normalised(f"{scheme}://{hosts[0]}")
    return not _is_browser(scope) and _normalised(origin.removesuffix("/")) == own


def _is_browser(scope: Scope) -> bool:
    """Whether a page may have sent this: no script can change these headers.

    Chromium sends no `Sec-Fetch-…` with a WebSocket handshake, but every browser's User-Agent begins with `Mozilla/`.
    """
    return any(name.startswith(b"sec-fetch-") for name, _ in scope["headers"]) or any(
        agent.startswith("Mozilla/") for agent in headers_of(scope, b"user-agent")
    )


_DEFAULT_PORTS = {"http": ":80", "https": ":443", "ws": ":80", "wss": ":443"}


def _normalised(origin: str) -> str:
    scheme, separator, host = origin.lower().partition("://")
    return scheme + separator + host.removesuffix(_DEFAULT_PORTS.get(scheme, ":"))


async def authorize(scope: Scope, namespace: str) -> Principal:
    """The user of a handshake, if it is allowed. CPU only, unless a JWKS key has to be fetched. Raises `Refused`."""
    check_capacity()
    check_origin(scope)
    try:
        principal = await authenticate(credential(scope))
    except AuthenticationFailed as error:
        if error.code == RefusalCode.UNAVAILABLE:
            raise unavailable(error.message) from error
        raise Refused(error.code, error.message) from error
    if not principal.may_enter(namespace):
        raise Refused(RefusalCode.FORBIDDEN_ROLE, f"role {principal.role!r} may not enter {namespace!r}")
    return principal


def path_of(scope: Scope) -> str:
    """The path as it was sent, if the server provides it: no other spelling of it passes a proxy that blocks it."""
    raw: bytes | None = scope.get("raw_path")
    path: str = scope["path"]
    return path if raw is None else raw.partition(b"?")[0].decode("latin-1")


def path_below_root(scope: Scope) -> str:
    """`path_of`, without the prefix at which the server was told to serve (`uvicorn --root-path`), as Django reads it.

    Daphne takes that from a header, too, which a client may send: it names no other path.
    """
    path, root = path_of(scope), scope.get("root_path") or ""
    if not root or any(name.lower() == b"daphne-root-path" for name, _ in scope["headers"]):
        return path
    below = path.removeprefix(root.rstrip("/"))
    return below if below.startswith("/") else path


class JWTScopeMiddleware:
    """Channels middleware: puts the `Principal` into the scope, or refuses before anything is accepted.

    The token itself does not go further: scopes end up in error reports.
    """

    def __init__(self, inner: Application, namespace: str) -> None:
        self.inner = inner
        self.namespace = namespace

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        tracing.begin_handshake(scope, self.namespace)
        try:
            principal = await authorize(scope, self.namespace)
        except Refused as refused:
            await receive()
            await deny(scope, send, refused, self.namespace)
            return
        except BaseException:
            tracing.end_handshake(scope, "failed")
            raise
        inside = _without_token(scope) | {"principal": principal}
        try:
            await self.inner(inside, receive, send)
        finally:
            tracing.end_handshake(inside, "gone")  # unless it was accepted or refused


def _without_token(scope: dict[str, Any]) -> dict[str, Any]:
    return {
        **scope,
        "headers": [
            header
            for header in scope["headers"]
            if header[0] not in {b"authorization", b"sec-websocket-protocol"}
        ],
        "query_string": _query_without_token(scope.get("query_string", b"")),
        "subprotocols": [p for p in scope.get("subprotocols") or () if not p.startswith(BEARER_SUBPROTOCOL)],
    }


def _query_without_token(query: bytes) -> bytes:
    if query in _COMMON_QUERIES:
        return query
    fields = parse_qsl(query.decode("latin-1"))
    return urlencode([field for field in fields if field[0] != "token"]).encode()


_COMMON_QUERIES = frozenset({b"", b"resume=1"})


async def deny(scope: Scope, send: Send, refused: Refused, namespace: str) -> None:
    """Refuse a WebSocket handshake; count, trace and log it."""
    metrics.HANDSHAKES.labels(namespace, refused.code).inc()
    tracing.end_handshake(scope, refused.code)
    logger.info(
        "handshake refused", extra={"namespace": namespace, "code": refused.code, "reason": refused.message}
    )
    await send_refusal(scope, send, refused)


async def send_refusal(scope: Scope, send: Send, refused: Refused) -> None:
    """Answer a WebSocket handshake with HTTP where the server can (uvicorn), else with a bare 403 (daphne)."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    await send(
        {
            "type": "websocket.http.response.start",
            "status": refused.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()],
        }
    )
    await send({"type": "websocket.http.response.body", "body": refused.body})


async def not_found(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The catch-all route: there is no socket at this path."""
    await receive()
    await deny(scope, send, Refused(RefusalCode.NOT_FOUND, "no such namespace"), "unknown")
