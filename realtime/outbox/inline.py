"""Relays inside a process that does everything, for development: one thread for each database that has the table."""

from __future__ import annotations

import asyncio
import logging
import threading

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router

from realtime.outbox.metrics import ShownNumbers
from realtime.outbox.models import OutboxMessage
from realtime.outbox.relay import NoTable, Relay
from realtime.outbox.table import default_database

logger = logging.getLogger(__name__)

LOOK = 2.0
"""Seconds between two looks whether a table is there now: a developer migrates while the server runs."""
STOP_SECONDS = 2.0
"""A relay that has not ended after this time is left behind, and ends with the process: its rows stay for others."""
_DUMMY = "django.db.backends.dummy"


async def relay() -> None:
    """Relay until cancelled."""
    stopping = threading.Event()
    threads = [
        threading.Thread(target=_relay, args=[alias, stopping], name=f"outbox {alias}", daemon=True)
        for alias in databases()
    ]
    for thread in threads:
        thread.start()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        stopping.set()
        await _ended(threads)
        raise
    finally:
        stopping.set()


def databases() -> list[str]:
    """The aliases of the databases that may have the table, first the one that the routers choose for it."""
    aliases = [alias for alias in connections if router.allow_migrate_model(alias, OutboxMessage)]
    engines = {alias: connections.settings[alias]["ENGINE"] for alias in connections}
    known = dict.fromkeys([default_database(), *aliases])
    return [alias for alias in known if engines.get(alias, _DUMMY) != _DUMMY]


def _relay(alias: str, stopping: threading.Event) -> None:
    """Relay from one database, as soon as it has the table."""
    is_expected = alias == default_database()
    while not stopping.is_set():
        try:
            _ = connections[alias]
            Relay(alias, stopping, ShownNumbers(alias)).run(ready=lambda: None)
        except NoTable as error:
            if is_expected:
                logger.warning("outbox: %s", error)
            is_expected = False
        except ImproperlyConfigured as error:
            logger.warning("outbox: the database %r is not relayed: %s", alias, " ".join(str(error).split()))
            return
        stopping.wait(LOOK)


async def _ended(threads: list[threading.Thread]) -> None:
    """Wait until they have ended. At the end of a process no other thread can be asked to."""
    until = asyncio.get_running_loop().time() + STOP_SECONDS
    while any(thread.is_alive() for thread in threads) and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
