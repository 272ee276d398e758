"""The socket server as an ASGI application, and around the application of a project.

`application` is for `runsockets` (uvicorn) and `daphne realtime.asgi:application`. `with_sockets` is for the `asgi.py`
of a project. Importing this module reads no settings, so a project's `asgi.py` may import it before it names its own.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from realtime.extras import require

if TYPE_CHECKING:
    from realtime.connections.handshake import Application

    application: Application


def with_sockets(
    application: Application, *, websocket: Application | None = None, endpoints: bool = True
) -> Application:
    """Serve the namespaces beside a project's pages, in one process: for development.

    `application` answers every request that is not for the sockets: that of the project's pages, as
    `get_asgi_application()` returns it. `websocket`, if given, gets the WebSockets that are for no namespace; without
    it, they are refused. `endpoints=False` leaves the paths `/healthz`, `/readyz`, `/metrics` and `/asyncapi.json` to
    the project. With `REALTIME_INLINE=1` the process also runs the bridge, and the relays of an outbox.

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "team.settings")
        application = with_sockets(get_asgi_application())

    Raises `ImproperlyConfigured` when a setting is wrong, or the extra `asgi` is not installed.
    """
    import django  # noqa: PLC0415
    from django.apps import apps  # noqa: PLC0415

    require("realtime.asgi", "asgi")
    if not apps.ready:
        django.setup()
    from realtime.checks import sides  # noqa: PLC0415  (what these import may need applications)
    from realtime.inline.application import WithSockets  # noqa: PLC0415
    from realtime.telemetry import logs, tracing  # noqa: PLC0415

    logs.write_facts()
    # A channel layer in memory connects what is in one process, as in the tests of a team with consumers of its own.
    sides.require("realtime.server", except_for={"realtime.E008"})
    tracing.start()
    return WithSockets(application, websocket, endpoints=endpoints)


def __getattr__(name: str) -> Any:
    if name == "application":
        return _standalone()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _standalone() -> Application:
    require("realtime.asgi", "asgi")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realtime.settings.sockets")
    from realtime.server.setup import set_up  # noqa: PLC0415

    set_up()
    from channels.routing import ProtocolTypeRouter  # noqa: PLC0415

    from realtime.checks import sides  # noqa: PLC0415
    from realtime.inline.application import in_socket_server  # noqa: PLC0415
    from realtime.inline.life import life  # noqa: PLC0415
    from realtime.routing import websocket  # noqa: PLC0415
    from realtime.server.endpoints import http  # noqa: PLC0415
    from realtime.telemetry import logs, tracing  # noqa: PLC0415

    logs.write_facts()
    sides.require("realtime.server")
    tracing.start()

    inside = in_socket_server()

    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        await life().run(scope, receive, send, inside)

    return ProtocolTypeRouter({"http": http, "websocket": websocket, "lifespan": lifespan})
