"""Which consumer answers which path."""

from __future__ import annotations

from typing import Any

from realtime.auth.credentials import Scope
from realtime.conf import cached
from realtime.connections.admission import refuse_handshake
from realtime.connections.frame_outlet import EXTENSION
from realtime.connections.handshake import (
    Application,
    JWTScopeMiddleware,
    Receive,
    Send,
    not_found,
    path_below_root,
    path_of,
    send_refusal,
)
from realtime.protocol.namespaces import Namespace, namespaces


@cached()
def _routes() -> dict[str, Application]:
    """The application of each path, with and without the slash at its end."""
    found = [(namespace.name, _application(namespace)) for namespace in namespaces().values()]
    return {path: made for name, made in found for path in (f"/{name}", f"/{name}/")}


def _application(namespace: Namespace) -> Application:
    return JWTScopeMiddleware(namespace.consumer_class.as_asgi(declared=namespace), namespace.name)


def is_namespace(scope: Scope) -> bool:
    """Whether a namespace is served at this path."""
    return _route(scope).removeprefix("/").removesuffix("/") in namespaces()


def _route(scope: Scope) -> str:
    """The path by which an application is found; empty for one that was spelled in another way."""
    return path_below_root(scope) if path_of(scope) == scope["path"] else ""


async def websocket(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI application of WebSockets. Limits come before routes, where the server (daphne) does not know them."""
    if EXTENSION not in (scope.get("extensions") or {}):
        refused = refuse_handshake(
            scope.get("client"), scope["headers"], path_below_root(scope).encode(errors="replace")
        )
        if refused is not None:
            await receive()
            await send_refusal(scope, send, refused)
            return
    application = _routes().get(_route(scope))
    await (application or not_found)(scope, receive, send)
