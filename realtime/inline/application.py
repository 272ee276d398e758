"""Which requests of a process that also serves the pages of a project are for the sockets."""

from __future__ import annotations

import os
from typing import Any

from realtime.conf import conf, from_environment, parse
from realtime.connections.handshake import Application, Receive, Send
from realtime.inline.life import life
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
        self._is_inline = is_inline()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await life().run(scope, receive, send, is_inline=self._is_inline)
            return
        life().begin(is_inline=self._is_inline)
        await self._answering(scope)(scope, receive, send)

    def _answering(self, scope: dict[str, Any]) -> Application:
        if scope["type"] == "websocket":
            return websocket if self._websocket is None or is_namespace(scope) else self._websocket
        is_ours = scope["type"] == "http" and concerns(scope, verdicts_only=not self._endpoints)
        return http if is_ours else self._application


def is_inline() -> bool:
    """Whether the bridge runs inside: by the environment, which a project's settings need not read, or by a setting."""
    from_outside = from_environment(os.environ).get("INLINE")
    return conf().inline if from_outside is None else parse({"INLINE": from_outside}).inline
