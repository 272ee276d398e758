"""The settings that both sides share. A deployment changes them through the environment (docs/settings.md)."""

import os
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from realtime.conf import from_environment
from realtime.extras import ROOT, project

# An installed package writes nothing beside itself: there, everything is kept in the current directory.
BASE_DIR = ROOT if project() else Path.cwd()
RUN_DIR = BASE_DIR / ".run"


def flag(name: str) -> bool:
    """A variable that is 1 or 0. Raises `ImproperlyConfigured` when it is neither."""
    value = os.environ.get(name, "").strip().lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"", "0", "false", "no", "off"}:
        return False
    raise ImproperlyConfigured(f"{name} must be 1 or 0, got {value!r}")


# `make run` writes the keys that it generates to this file, so that commands in another terminal share them. They are
# for development, so they are read only with DEBUG=1 in the environment.
_development = RUN_DIR / "development.env"
if flag("DEBUG") and _development.exists():
    for _line in _development.read_text().splitlines():
        _name, _, _value = _line.partition("=")
        os.environ.setdefault(_name, _value)


def _number(name: str, default: float) -> float:
    value = os.environ.get(name) or default
    try:
        return float(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} must be a number, got {value!r}") from error


def _names(name: str) -> list[str] | str | None:
    """The name in a variable, or its names if there are several, separated by commas; None if there is none."""
    found = [item.strip() for item in os.environ.get(name, "").split(",") if item.strip()]
    return found if len(found) > 1 else next(iter(found), None)


def _choice(name: str, choices: tuple[str, ...], default: str) -> str:
    value = os.environ.get(name) or default
    for choice in choices:
        if value.lower() == choice.lower():
            return choice
    raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _key(name: str) -> str:
    """A key from the environment; `\\n` stands for a line break, as most secret stores write PEM."""
    return os.environ.get(name, "").replace("\\n", "\n")


DEBUG = flag("DEBUG")
SECRET_KEY = os.environ.get("SECRET_KEY", "")
ALLOWED_HOSTS = [host for host in os.environ.get("ALLOWED_HOSTS", "").split(",") if host] or (
    ["*"] if DEBUG else []
)

USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = True

_WEB_PORT = os.environ.get("WEB_PORT") or "8000"
REALTIME: dict[str, Any] = {
    "ALLOWED_ORIGINS": [f"http://127.0.0.1:{_WEB_PORT}", f"http://localhost:{_WEB_PORT}"],
    "QUERY_TOKEN": DEBUG,
    **from_environment(os.environ),
}

CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.RoomChannelLayer"}}

SIMPLE_JWT: dict[str, Any] = {
    "ALGORITHM": os.environ.get("JWT_ALGORITHM") or "HS256",
    "SIGNING_KEY": _key("JWT_SIGNING_KEY"),
    "VERIFYING_KEY": _key("JWT_VERIFYING_KEY"),
    "JWK_URL": os.environ.get("JWT_JWK_URL") or None,
    "AUDIENCE": _names("JWT_AUDIENCE"),
    "ISSUER": os.environ.get("JWT_ISSUER") or None,
    "LEEWAY": _number("JWT_LEEWAY", 0),
}

_LOG_FORMAT = _choice("LOG_FORMAT", ("console", "json"), "console" if DEBUG else "json")
_LOG_LEVEL = _choice("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "INFO")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
        },
        "console": {"()": "realtime.telemetry.logs.ConsoleFormatter"},
    },
    "filters": {
        "terse": {"()": "realtime.telemetry.logs.WithoutTraceback"},
        "subject": {"()": "realtime.telemetry.logs.WithSubject"},
        "request": {"()": "realtime.telemetry.logs.WithoutRequest"},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": _LOG_FORMAT,
            "filters": ["subject", "request"],
        }
    },
    "root": {"handlers": ["stderr"], "level": _LOG_LEVEL},
    "loggers": {
        # At INFO uvicorn logs the path with its query string, and so a token.
        "uvicorn.error": {"level": "WARNING"},
        "daphne": {"level": "WARNING"},
        # Django's own handler would log each line a second time.
        "django": {"level": "INFO", "handlers": []},
        "httpx": {"level": "WARNING"},
        # A lost Redis is an event and not a bug: one line, without a traceback.
        "channels_redis.pubsub": {"filters": ["terse"]},
    },
}
