"""The web side in a process of its own, for tests that log in: a good hash takes its time, by design."""

from realtime.settings.web import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
