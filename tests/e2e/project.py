"""The project of a product team, made by `django-admin startproject`, to which the sockets are added."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from textwrap import dedent

from django.core.management import call_command

from realtime.conf import conf
from tests.e2e.harness import ROOT, Stack

SETTINGS = """
import os

INSTALLED_APPS = ["daphne", *INSTALLED_APPS, "realtime", "team"]
ASGI_APPLICATION = "team.asgi.application"
REALTIME = {{
    "NAMESPACES": {namespaces!r},
    "REDIS_URL": {redis_url!r},
    "PREFIX": {prefix!r},
    "ALLOWED_ORIGINS": ["http://app.test"],
}}
CHANNEL_LAYERS = {{"default": {{"BACKEND": "realtime.layers.RoomChannelLayer"}}}}
SIMPLE_JWT = {{"ALGORITHM": "HS256", "SIGNING_KEY": {key!r}}}
"""

FILES = {
    "urls.py": """
        from django.http import HttpResponse
        from django.urls import path

        from realtime.publisher import publish


        def say(request):
            publish("thread:message", {"thread_id": "42", "message_id": "1", "body": "from a view"})
            return HttpResponse("said")


        urlpatterns = [path("say/", say), path("hub/", lambda request: HttpResponse("a page of the team"))]
    """,
    "raising_urls.py": """
        raise RuntimeError("these URLs are not for the sockets")
    """,
    # A socket server has no use for anything that is wrong here.
    "odd.py": """
        from team.settings import *

        INSTALLED_APPS = ["django.contrib.sessions", "team"]
        ROOT_URLCONF = "team.raising_urls"
        MIDDLEWARE = ["team.nowhere.Middleware"]
        DATABASES = {
            "default": {"ENGINE": "team.no_such_backend"},
            "reports": {"ENGINE": "django.db.backends.oracle"},
        }
        REALTIME = {**REALTIME, "QUERY_TOKEN": True}
        LOGGING = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"console": {"class": "logging.StreamHandler"}},
            "root": {"handlers": ["console"], "level": "DEBUG"},
        }
    """,
    "models.py": """
        from django.db import models


        class Thread(models.Model):
            title = models.CharField(max_length=100)
    """,
    "recorded.py": """
        from team.settings import *

        INSTALLED_APPS = [app for app in INSTALLED_APPS if app != "daphne"] + ["presence", "team.relay"]
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "recorded.sqlite3"}}
    """,
    "away.py": """
        from team.settings import *

        REALTIME = {**REALTIME, "REDIS_URL": "redis://127.0.0.1:1/0"}
    """,
    "read_only.py": """
        from team.recorded import *

        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/proc/recorded.sqlite3"}}
        STATIC_ROOT = "/proc/static"
    """,
    "missing.py": "from team.settings import *\nfrom nowhere import something\n",
    "misspelt.py": "from team.settings import *\nPORT = prot + 1\n",
    "unfinished.py": "DATABASES = {\n",
    "refusing.py": """
        from django.core.exceptions import ImproperlyConfigured

        raise ImproperlyConfigured("TEAM_KEY is not set")
    """,
    "broken_app.py": """
        from team.settings import *

        INSTALLED_APPS = [*INSTALLED_APPS, "team.nowhere"]
    """,
    # An app with a command of the name that the outbox has.
    "relay/__init__.py": "",
    "relay/management/__init__.py": "",
    "relay/management/commands/__init__.py": "",
    "relay/management/commands/runoutbox.py": """
        from django.core.management.base import BaseCommand


        class Command(BaseCommand):
            def handle(self, **options):
                self.stdout.write("relaying")
    """,
}


class Project(Stack):
    """A project in a folder of its own, outside this checkout, which its processes import as if it were installed."""

    def __init__(self, directory: Path, redis_url: str, **env: str) -> None:
        super().__init__(directory, redis_url, **env)
        self.folder = directory / "project"
        self.folder.mkdir()
        for name in ("REDIS_URL", "ALLOWED_ORIGINS", "JWT_SIGNING_KEY", "SECRET_KEY", "DEBUG"):
            self.env.pop(name, None)
        for name in [name for name in self.env if name.startswith("REALTIME_") and name not in env]:
            del self.env[name]
        self.env["PYTHONPATH"] = str(ROOT)
        call_command("startproject", "team", self.folder)
        with (self.folder / "team" / "settings.py").open("a") as settings:
            settings.write(
                SETTINGS.format(
                    namespaces=[*conf().namespaces],
                    redis_url=redis_url,
                    prefix=self.prefix,
                    key=os.environ["JWT_SIGNING_KEY"],
                )
            )
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the package `team`."""
        path = self.folder / "team" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return path

    def realtime(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the console script."""
        return self.run("-m", "realtime", *arguments, **env)
