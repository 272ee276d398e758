"""The socket server and the bridge. No database, no sessions, no users: nothing here may touch one."""

from realtime.settings.base import *  # noqa: F403
from realtime.settings.base import SECRET_KEY as _SECRET_KEY

DATABASES: dict[str, dict[str, str]] = {}
INSTALLED_APPS = [
    # simplejwt's modules define models on import and so want these two; nothing here queries them.
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "channels",
    "realtime",
    "hub",
    "portal",
]
ASGI_APPLICATION = "realtime.asgi.application"
# Nothing on this side signs with it, but Django insists that there is one.
SECRET_KEY = _SECRET_KEY or "unused-by-the-socket-side"
# `check --deploy`: this side has no pages, no cookies and no sessions, and looks at no Host.
SILENCED_SYSTEM_CHECKS = [f"security.W{number}" for number in ("001", "002", "003", "009", "020")]
