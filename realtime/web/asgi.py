"""The web side as an ASGI application, for `runweb` or any ASGI server: `uvicorn realtime.web.asgi:application`."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realtime.settings.web")

import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.core.asgi import get_asgi_application

# WhiteNoise opens files, and Django reads them in a thread. That is right for pages, so the warning is of no use.
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume synchronous iterators")

django = get_asgi_application()


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    """Answers `/healthz` itself, because ALLOWED_HOSTS would refuse a probe by address; Django answers the rest."""
    if scope["type"] == "http" and scope["path"] in {"/healthz", "/healthz/"}:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"status": "alive"}'})
    else:
        await django(scope, receive, send)
