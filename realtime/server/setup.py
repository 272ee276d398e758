"""Django and Python in a process that serves sockets or runs the bridge, with the settings of any project."""

from __future__ import annotations

import gc

import django
from django.apps import apps
from django.conf import settings

APPS = ("django.contrib.contenttypes", "django.contrib.auth", "realtime")
"""simplejwt's modules define models when they are imported, which needs the first two; no query is made."""
OUTBOX = "realtime.outbox"
"""Of no use without a database: what this side publishes goes straight to Redis."""


def set_up() -> None:
    """Set Django up, unless that is done: with the apps that this side needs, and without a database.

    A project's own databases stay unused, so that neither their drivers nor their servers need to be there; a query
    fails loudly instead of blocking all connections.
    """
    if apps.ready:
        return
    settings.DATABASES = {alias: {"ENGINE": "django.db.backends.dummy"} for alias in settings.DATABASES}
    kept = [entry for entry in settings.INSTALLED_APPS if not _is(entry, OUTBOX)]
    settings.INSTALLED_APPS = [*kept, *(app for app in APPS if not any(_is(entry, app) for entry in kept))]
    django.setup()


def spare_the_collector() -> None:
    """Collect cyclic garbage less often than by default: modules stay, and connections live long.

    By default Python collects after every 700 new objects, a dozen connections or a hundred bus messages, and visits
    all living ones again and again: a tenth of what connecting costs, and a sixth of what a message costs the bridge.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _is(entry: str, app: str) -> bool:
    """Whether an entry of INSTALLED_APPS stands for this app."""
    return entry == app or entry.startswith(f"{app}.apps.")
