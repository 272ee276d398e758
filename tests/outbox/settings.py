"""Settings of the processes of these tests: a backbone, which is the shipped web side with the outbox."""

from realtime.settings.web import *  # noqa: F403

INSTALLED_APPS = [*dict.fromkeys([*INSTALLED_APPS, "realtime.outbox"])]  # noqa: F405
