"""Moments, durations and statuses as the admin shows them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from django.utils import timezone
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from presence.models import Status

STYLE = {"all": ["presence/admin.css"]}
"""The style sheet of these pages, besides Django's own."""


def readable(duration: timedelta | None) -> str:
    """`2 h 5 min`: the two largest units of a duration, `–` for an unknown one."""
    if duration is None:
        return "–"
    seconds = duration.total_seconds()
    if seconds < 10 and duration.microseconds:
        return f"{number_format(seconds, decimal_pos=1)} s"
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), duration.days
    if hours < 1:
        return f"{minutes} min {int(seconds % 60)} s"
    if days < 1:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def moment(at: datetime) -> str:
    """A moment to the second, in the current time zone; in UTC where that has no such day any more."""
    with suppress(OverflowError):
        at = timezone.localtime(at)
    return f"{at:%Y-%m-%d %H:%M:%S}"


def zone() -> str:
    """The name of the current time zone."""
    return timezone.get_current_timezone_name()


def now() -> str:
    """This moment, and the time zone in which it is told."""
    return f"{moment(timezone.now())} ({zone()})"


def number(value: int) -> str:
    """A whole number with its thousands apart, as the reader writes it."""
    return number_format(value, force_grouping=True)


LAST_INSTANT = 253_402_300_799.0
"""The last second of the year 9999: what never ends is said to end then."""


def instant(seconds: float) -> datetime:
    """A moment given in seconds since the epoch; the next one that there is for a number that is no time."""
    return datetime.fromtimestamp(_sane(seconds), UTC)


def _sane(seconds: float) -> float:
    return max(0.0, min(LAST_INSTANT, seconds))  # in this order NaN is none of the results


def since(seconds: float) -> str:
    """The time since a moment, which is given in seconds since the epoch, in whole seconds."""
    return readable(timedelta(seconds=max(int(timezone.now().timestamp() - _sane(seconds)), 0)))


def until(seconds: float) -> str:
    """The time until a moment, given in the same way; empty when it has passed."""
    left = int(_sane(seconds) - timezone.now().timestamp())
    return readable(timedelta(seconds=left)) if left > 0 else ""


def light(status: str) -> str:
    """A status with a coloured dot."""
    label = Status(status).label if status in Status else _("unknown")
    return format_html('<span class="presence-status presence-{}">{}</span>', status, label)
