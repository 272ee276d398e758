"""Which consumer answers which path."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import re_path

import hub.routing
import portal.routing
from realtime.handshake import not_found

_not_found: Any = not_found

websocket = URLRouter(
    [
        *hub.routing.websocket_urlpatterns,
        *portal.routing.websocket_urlpatterns,
        # Without it every probe of a wrong path would be an exception with a stack trace.
        re_path(r"", _not_found),
    ]
)
