"""Settings of the tests that run inside the test process. Real processes get theirs from the environment."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("DEBUG", "1")
os.environ.setdefault("SECRET_KEY", "the tests' own secret, at least fifty characters long, so be it")
os.environ.setdefault("JWT_SIGNING_KEY", "the tests' own signing key, at least 32 bytes")
os.environ.setdefault("REALTIME_PRESENCE_RETENTION", "0")  # the tests' dates grow old

from django.db.backends.signals import connection_created

from realtime.settings.web import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "realtime.server"]  # noqa: F405  (one process is every side)
WHITENOISE_AUTOREFRESH = True  # no collectstatic before tests
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # a good one takes its time, by design

if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":  # noqa: F405
    # A file, as in production: in memory, threads share one cache, and no thread waits for another's lock.
    DATABASES["default"]["TEST"] = {  # noqa: F405
        "NAME": str(Path(tempfile.gettempdir()) / f"realtime-test-{os.getpid()}.sqlite3")
    }


def no_commit_waits_for_the_disk(connection, **_) -> None:
    """Nothing here is to outlive the machine, and each test that commits makes Django's own rows anew."""
    if connection.vendor == "sqlite":
        connection.cursor().execute("PRAGMA synchronous = OFF")


connection_created.connect(no_commit_waits_for_the_disk)
