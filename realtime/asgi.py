"""The socket server as an ASGI application, for `runsockets` (uvicorn) and `daphne realtime.asgi:application`."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realtime.settings.sockets")

import django
from channels.routing import ProtocolTypeRouter

django.setup()  # what follows may import applications

from realtime.routing import websocket  # noqa: E402
from realtime.server.endpoints import http  # noqa: E402
from realtime.server.lifespan import lifespan  # noqa: E402
from realtime.telemetry import tracing  # noqa: E402

tracing.start()

application = ProtocolTypeRouter({"http": http, "websocket": websocket, "lifespan": lifespan})
