"""Settings of the socket server and the bridge, which use no database, no sessions and no users."""

from realtime.extras import require

require("realtime.settings.sockets", "asgi")

from realtime.settings.base import *  # noqa: E402, F403
from realtime.settings.base import SECRET_KEY as _SECRET_KEY  # noqa: E402

DATABASES: dict[str, dict[str, str]] = {}
INSTALLED_APPS = [
    # simplejwt's modules define models when they are imported, which needs these two; no query is made.
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "channels",
    "realtime",
    "realtime.server",
    "hub",
    "portal",
]
ASGI_APPLICATION = "realtime.asgi.application"
# This side signs nothing with it, but Django requires one.
SECRET_KEY = _SECRET_KEY or "unused-by-the-socket-side"
# `check --deploy`: this side has no pages, no cookies and no sessions, and does not use the Host header.
SILENCED_SYSTEM_CHECKS = [f"security.W{number}" for number in ("001", "002", "003", "009", "020")]
