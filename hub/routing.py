"""Where the namespace is found."""

from __future__ import annotations

from typing import Any

from django.urls import re_path

from hub.consumers import HubConsumer
from realtime.connections.handshake import JWTScopeMiddleware
from realtime.protocol.rooms import HUB

_application: Any = JWTScopeMiddleware(HubConsumer.as_asgi(), HUB)  # Django's types know views only

websocket_urlpatterns: list[Any] = [re_path(r"^hub/?$", _application)]
