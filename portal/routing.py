"""Where the namespace is found."""

from __future__ import annotations

from django.urls import re_path

from portal.consumers import PortalConsumer
from realtime.handshake import JWTScopeMiddleware
from realtime.rooms import PORTAL

websocket_urlpatterns = [re_path(r"^portal/?$", JWTScopeMiddleware(PortalConsumer.as_asgi(), PORTAL))]
