"""Plain HTTP on the socket server's port: health, metrics, and why a handshake would be refused.

It is an ASGI application without Django: a request costs little, and only its head is read. A path is compared as it
was sent, so that no other spelling of a path passes a proxy that blocks it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from realtime.auth import revocation
from realtime.auth.credentials import Scope, headers_of
from realtime.connections import handshake
from realtime.connections.admission import check_process, refuse_request
from realtime.connections.handshake import Receive, Refused, Send
from realtime.protocol.handshake_errors import RefusalCode
from realtime.protocol.namespaces import namespaces
from realtime.server.readiness import reasons_not_ready
from realtime.spec.asyncapi import asyncapi_json
from realtime.telemetry.prometheus import exposition, may_read

REVOCATION_SECONDS = 0.8
"""The longest time that a verdict waits for Redis."""
JSON = {"Content-Type": "application/json"}


class Response(NamedTuple):
    """A response over HTTP."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


ASKING = ("GET", "HEAD")


class Endpoint(NamedTuple):
    """The function that answers at a path, and the methods it answers."""

    answer: Callable[[Scope], Awaitable[Response]]
    methods: tuple[str, ...] = ASKING


async def healthz(scope: Scope) -> Response:
    """The process is alive; this proves nothing else."""
    return Response(200, b'{"status": "alive"}', JSON)


async def readyz(scope: Scope) -> Response:
    """The instance can deliver: Redis answers, and a message came back through the subscription."""
    reasons = await reasons_not_ready()
    body = {"status": "unavailable" if reasons else "ready", "reasons": reasons}
    return Response(503 if reasons else 200, json.dumps(body).encode(), JSON)


async def metrics(scope: Scope) -> Response:
    """Prometheus' text format; if `METRICS_TOKEN` is set, only for a request with that token."""
    if not may_read(", ".join(headers_of(scope, b"authorization"))):
        return Response(401, headers={"WWW-Authenticate": "Bearer"})
    return Response(200, exposition(), {"Content-Type": CONTENT_TYPE_LATEST})


async def asyncapi(scope: Scope) -> Response:
    """The protocol as an AsyncAPI document. It holds no secret, and any page may read it."""
    return Response(200, asyncapi_json(), {**JSON, "Access-Control-Allow-Origin": "*"})


async def verdict(scope: Scope, namespace: str) -> Response:
    """204 if a WebSocket handshake with these headers would be accepted now, else the reason for its refusal.

    It is for browsers, which cannot see why a handshake was refused, and so it allows the allowed origins (CORS).
    """
    if scope["method"] == "OPTIONS":
        response = Response(204, headers=_PREFLIGHT)
    else:
        try:
            await _authorize(scope, namespace)
            response = Response(204, headers={"Cache-Control": "no-store"})
        except Refused as refused:
            response = Response(refused.status, refused.body, refused.headers)
    return response._replace(headers={**response.headers, **_cors(scope)})


_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET",
    "Access-Control-Allow-Headers": "Authorization",
    "Access-Control-Max-Age": "600",
}


def _cors(scope: Scope) -> dict[str, str]:
    origins = headers_of(scope, b"origin")
    if len(origins) != 1 or not handshake.is_allowed_origin(origins[0]):
        return {"Vary": "Origin"}
    return {
        "Vary": "Origin",
        "Access-Control-Allow-Origin": origins[0],
        "Access-Control-Expose-Headers": "Retry-After",
    }


async def _authorize(scope: Scope, namespace: str) -> None:
    check_process()
    principal = await handshake.authorize(scope, namespace)
    try:
        async with asyncio.timeout(REVOCATION_SECONDS):
            if await revocation.is_revoked(principal):
                raise Refused(RefusalCode.TOKEN_INVALID, "the token was revoked")
    except (RedisError, OSError) as error:
        raise handshake.unavailable() from error


# --- The application ---------------------------------------------------------------------------------

ENDPOINTS = {
    "/healthz": Endpoint(healthz),
    "/readyz": Endpoint(readyz),
    "/metrics": Endpoint(metrics),
    "/asyncapi.json": Endpoint(asyncapi),
}
"""By path, besides the verdicts of the namespaces; each also answers with a slash at the end."""


def _endpoint(path: str) -> Endpoint | None:
    if (namespace := path.removeprefix("/")) in namespaces():
        return Endpoint(partial(verdict, namespace=namespace), (*ASKING, "OPTIONS"))
    return ENDPOINTS.get(path)


def concerns(scope: Scope, *, verdicts_only: bool = False) -> bool:
    """Whether a request is for these endpoints, where they share a port with the pages of a project.

    A browser that opens the page at the path of a namespace wants that page, and not the verdict on a handshake.
    """
    path = handshake.path_below_root(scope).removesuffix("/")
    endpoint = _endpoint(path)
    if endpoint is None or scope["method"] not in endpoint.methods:
        return False
    if path in ENDPOINTS:
        return not verdicts_only
    return not any("text/html" in accepted for accepted in headers_of(scope, b"accept"))


async def http(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI application of plain HTTP."""
    if (refused := refuse_request(scope.get("client"), scope["headers"])) is not None:
        response = Response(refused.status, refused.body, refused.headers)
        response = response._replace(headers={**response.headers, **_cors(scope), "Connection": "close"})
    else:
        response = await _respond(scope)
    headers = response.headers
    if response.status != 204:
        headers = {**headers, "Content-Length": str(len(response.body))}
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": response.body})


def _not_found(scope: Scope) -> Response:
    """As a handshake is refused at this path: a client tells it from the 404 of a proxy, which may pass."""
    refused = Refused(RefusalCode.NOT_FOUND, "no such namespace")
    return Response(refused.status, refused.body, {**refused.headers, **_cors(scope)})


async def _respond(scope: Scope) -> Response:
    endpoint = _endpoint(handshake.path_below_root(scope).removesuffix("/"))
    if endpoint is None:
        return _not_found(scope)
    if scope["method"] not in endpoint.methods:
        return Response(405, headers={"Allow": ", ".join(endpoint.methods)})
    return await endpoint.answer(scope)
