"""Where the namespace is found."""

from __future__ import annotations

from typing import Any

from django.urls import re_path

from portal.consumers import PortalConsumer
from realtime.connections.handshake import JWTScopeMiddleware
from realtime.protocol.rooms import PORTAL

_application: Any = JWTScopeMiddleware(PortalConsumer.as_asgi(), PORTAL)  # Django's types know views only

websocket_urlpatterns: list[Any] = [re_path(r"^portal/?$", _application)]
