"""Where the namespace is found."""

from __future__ import annotations

from django.urls import re_path

from hub.consumers import HubConsumer
from realtime.handshake import JWTScopeMiddleware
from realtime.rooms import HUB

websocket_urlpatterns = [re_path(r"^hub/?$", JWTScopeMiddleware(HubConsumer.as_asgi(), HUB))]
