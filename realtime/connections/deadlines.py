"""When a connection ends by itself: its token expires, or its client is silent for too long."""

from __future__ import annotations

import asyncio
import time

from realtime.auth.verification import leeway
from realtime.conf import conf
from realtime.connections.interface import Connection
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.envelope import iso
from realtime.tasks.running import running_loop
from realtime.tasks.supervision import PAUSE, report

EXPIRY_NOTICE = 60.0
"""Seconds before the token expires at which the client is told (half-way for a token that lives shorter)."""
LONGEST = 86400.0
"""Seconds after which a timer for something further away is set again."""


class Deadlines:
    """One timer for the notice of expiry, the expiry, and silence, whichever comes first. It waits for no turn."""

    __slots__ = ("_connection", "_heard_at", "_notice_at", "_timer")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._heard_at = 0.0
        self._notice_at = 0.0
        """When `auth:expiring` is due, in seconds since the epoch; 0: it has been sent."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The connection is open."""
        self.heard()
        self.renew()

    def heard(self) -> None:
        """The client sent a frame."""
        self._heard_at = running_loop().time()

    def renew(self) -> None:
        """The connection has a new token."""
        expires_at = self._connection.principal.expires_at
        remaining = expires_at - time.time()
        self._notice_at = expires_at - (EXPIRY_NOTICE if remaining > EXPIRY_NOTICE else remaining / 2)
        self._watch()

    def _watch(self) -> None:
        expires_at = self._connection.principal.expires_at
        silent = running_loop().time() - self._heard_at
        ends = expires_at + leeway() - time.time()
        notice = self._notice_at - time.time() if self._notice_at else ends
        self._set(min(conf().presence_ttl - silent, ends, notice, LONGEST))

    def _set(self, seconds: float) -> None:
        self.end()
        self._timer = running_loop().call_later(max(seconds, 0.0), self._fire)

    def _fire(self) -> None:
        """Check, and again after `PAUSE` if that fails."""
        timer = self._timer
        try:
            self.check()
        except Exception:
            report("timer")
            if self._timer is timer:
                self._set(PAUSE)

    def end(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self) -> None:
        """Do what is due now, and set the timer again unless the connection has ended."""
        connection, now = self._connection, time.time()
        if now >= connection.principal.expires_at + leeway():
            connection.terminate(CloseCode.TOKEN_EXPIRED)
        elif running_loop().time() - self._heard_at >= conf().presence_ttl:
            connection.terminate(CloseCode.SILENT)
        else:
            if self._notice_at and now >= self._notice_at:
                self._notice_at = 0.0
                connection.write_event("auth:expiring", {"expires_at": iso(connection.principal.expires_at)})
            self._watch()
