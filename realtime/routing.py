"""Which consumer answers which path."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import re_path

from realtime.auth.credentials import Scope
from realtime.conf import cached
from realtime.connections.admission import refuse_handshake
from realtime.connections.frame_outlet import EXTENSION
from realtime.connections.handshake import JWTScopeMiddleware, Receive, Send, not_found, path_of, send_refusal
from realtime.protocol.namespaces import Namespace, namespaces

_not_found: Any = not_found


@cached()
def _routes() -> Any:
    return URLRouter(
        [
            *(_route(namespace) for namespace in namespaces().values()),
            # Without it every probe of a wrong path would be an exception with a stack trace.
            re_path(r"", _not_found),
        ]
    )


def _route(namespace: Namespace) -> Any:
    consumer = namespace.consumer_class.as_asgi(declared=namespace)
    application: Any = JWTScopeMiddleware(consumer, namespace.name)
    return re_path(rf"^{namespace.name}/?$", application)


def is_namespace(scope: Scope) -> bool:
    """Whether a namespace is served at this path."""
    path = path_of(scope)
    return path == scope["path"] and path.removeprefix("/").removesuffix("/") in namespaces()


async def websocket(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI application of WebSockets. Limits come before routes, where the server (daphne) does not know them."""
    if EXTENSION not in (scope.get("extensions") or {}):
        refused = refuse_handshake(
            scope.get("client"), scope["headers"], scope["path"].encode(errors="replace")
        )
        if refused is not None:
            await receive()
            await send_refusal(scope, send, refused)
            return
    has_one_spelling = path_of(scope) == scope["path"]
    await (_routes() if has_one_spelling else _not_found)(scope, receive, send)
