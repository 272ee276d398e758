"""Which requests of a process that also serves the pages of a project are for the sockets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from realtime.conf import conf, from_environment, parse
from realtime.connections.handshake import Application, Receive, Send
from realtime.inline.life import EMBEDDED_BRIDGE, Work, inline_work, life
from realtime.routing import is_namespace, websocket
from realtime.server.endpoints import concerns, http


class WithSockets:
    """An ASGI application: the namespaces and their endpoints, and the project's application for all other requests."""

    def __init__(
        self, application: Application, websocket: Application | None = None, *, endpoints: bool = True
    ) -> None:
        self._application = application
        self._websocket = websocket
        self._endpoints = endpoints
        self._inside = inline_work() if _is_on("INLINE") else ()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await life().run(scope, receive, send, self._inside)
            return
        life().begin(self._inside)
        await self._answering(scope)(scope, receive, send)

    def _answering(self, scope: dict[str, Any]) -> Application:
        if scope["type"] == "websocket":
            return websocket if self._websocket is None or is_namespace(scope) else self._websocket
        is_ours = scope["type"] == "http" and concerns(scope, verdicts_only=not self._endpoints)
        return http if is_ours else self._application


def in_socket_server() -> Sequence[Work]:
    """What runs inside a socket server: with `EMBEDDED_BRIDGE` a bridge."""
    return EMBEDDED_BRIDGE if _is_on("EMBEDDED_BRIDGE") else ()


def _is_on(name: str) -> bool:
    """A switch, by the environment, which a project's settings need not read, or by its setting."""
    from_outside = from_environment(os.environ).get(name)
    values = conf() if from_outside is None else parse({name: from_outside})
    return bool(getattr(values, name.lower()))
