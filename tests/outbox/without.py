"""Settings of a backbone that has no outbox."""

from realtime.settings.web import *  # noqa: F403

INSTALLED_APPS = [app for app in INSTALLED_APPS if app != "realtime.outbox"]  # noqa: F405
