"""Presence over time in the admin: hours per day of each attendant, as a table, a chart, and CSV."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from math import ceil
from typing import Any

from asgiref.sync import sync_to_async
from django import forms
from django.contrib import admin
from django.core.handlers.asgi import ASGIRequest
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db.models import Q, QuerySet
from django.db.models.functions import Lower
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from presence.admin import hours as counting
from presence.admin.display import zone
from presence.admin.hours import Day, Hours, days
from presence.admin.pages import Pages
from presence.models import Availability
from presence.namespaces import OLDEST as HUB
from realtime.paging import BoundedPaginator
from realtime.protocol.payloads import Id

VIEW = "presence.view_availability"
PAGE = 25
"""Attendants on a page."""
DEFAULT_DAYS = 14
MOST_DAYS = 92
LABELLED_DAYS = 20
"""Beyond them a narrow screen has no room for the chart, and scrolls it."""
FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(9998, 12, 31)
"""Each of these has a midnight in every time zone, and a day after it."""


def _day(label: Any) -> forms.DateField:
    return forms.DateField(
        label=label,
        validators=[MinValueValidator(FIRST_DAY), MaxValueValidator(LAST_DAY)],
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
    )


class Span(forms.Form):
    """The days that are shown, and a search for attendants."""

    begin = _day(_("First day"))
    end = _day(_("Last day"))
    q = forms.CharField(label=_("Attendant"), required=False, max_length=100)

    def clean(self) -> dict[str, Any]:
        """The days are in order, and at most `MOST_DAYS`."""
        cleaned: dict[str, Any] = super().clean() or {}
        if not self.errors:
            if cleaned["end"] < cleaned["begin"]:
                raise forms.ValidationError(_("The last day is before the first."))
            if (cleaned["end"] - cleaned["begin"]).days >= MOST_DAYS:
                raise forms.ValidationError(_("Choose at most %(days)d days."), params={"days": MOST_DAYS})
        return cleaned

    @classmethod
    def of(cls, request: HttpRequest) -> Span:
        """The span in the address, by default the last two weeks."""
        today = timezone.localdate()
        begin = today - timedelta(DEFAULT_DAYS - 1)
        return cls({"begin": begin.isoformat(), "end": today.isoformat(), **request.GET.dict()})

    @property
    def days(self) -> list[Day]:
        """The days of the span; none while the form is not valid."""
        return days(self.cleaned_data["begin"], self.cleaned_data["end"]) if self.is_valid() else []


# --- The chart ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """One day in the chart: its position, and the heights of online and of away on top of it."""

    x: str
    middle: str
    online_y: int
    online: int
    away_y: int
    away: int
    title: str
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as wide as its place: across in percent of it, and up in pixels, so that no text is stretched.

    Numbers are text or whole, because a localized decimal comma is not valid in SVG.
    """

    height: int
    bar: str
    base: int
    """The y of the foot of the bars."""
    bars: list[Bar]
    lines: list[tuple[int, str]]


def chart(over: Sequence[Day], spent: Sequence[Hours]) -> Chart:
    """Stacked bars, one for each day, with a scale beside them."""
    most = longest(spent) / 3600
    scale = next((each for each in (1, 2, 4, 8, 12, 16, 20) if each >= most), max(24, ceil(most)))
    high, top, below = 180, 10, 24
    lines = [(top + high - high * part // 4, f"{scale * part / 4:g} h") for part in range(5)]
    return Chart(
        top + high + below, _percent(70, over), top + high, _bars(over, spent, scale, high, top + high), lines
    )


def thumbnail(over: Sequence[Day], spent: Sequence[Hours], most: float) -> Chart:
    """The same without a scale. `most` are the seconds that fill it: small charts under each other share one scale."""
    return Chart(28, _percent(70, over), 28, _bars(over, spent, most / 3600, 28, 28), [])


def longest(spent: Iterable[Hours]) -> float:
    """The seconds of the longest of these days."""
    return max((each.online + each.away for each in spent), default=0.0)


def _bars(over: Sequence[Day], spent: Sequence[Hours], scale: float, high: int, base: int) -> list[Bar]:
    every = max(1, ceil(len(over) / 31))
    bars = []
    for number, (day, each) in enumerate(zip(over, spent, strict=True)):
        online, away = (_height(seconds / 3600, scale, high) for seconds in (each.online, each.away))
        bars.append(
            Bar(
                x=_percent(100 * number + 15, over),
                middle=_percent(100 * number + 50, over),
                online_y=base - online,
                online=online,
                away_y=base - online - away,
                away=away,
                title=gettext("%(day)s: online %(online)s, away %(away)s")
                % {"day": day.date.isoformat(), "online": _spent(each.online), "away": _spent(each.away)},
                label=str(day.date.day) if number % every == 0 else "",
            )
        )
    return bars


def _height(hours: float, scale: float, high: int) -> int:
    """The height of a bar; a day with a minute in it is seen to be no day without."""
    return max(round(high * hours / scale), 1) if hours and scale else 0


def _percent(hundredths: int, over: Sequence[Day]) -> str:
    """A width given in hundredths of a day, in percent of all days."""
    return f"{hundredths / max(len(over), 1):.3f}%"


def _spent(seconds: float) -> str:
    """Hours and minutes, without days, so that all values compare."""
    if 0 < seconds < 60:
        return "< 1 min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


# --- CSV ---------------------------------------------------------------------------------------------

COLUMNS = ("date", "user_id", "name", "online_seconds", "away_seconds")


class _Echo:
    """A file whose `write` returns the text."""

    def write(self, text: str) -> str:
        return text


def rows(over: Sequence[Day], people: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Lines of CSV, for each day on which an attendant was online or away."""
    writer = csv.writer(_Echo())
    yield writer.writerow(COLUMNS)
    names = dict(people)
    for user, spent in counting.of_many(over, [*names]):
        for day, each in zip(over, spent, strict=True):
            if each.online or each.away:
                line = (
                    day.date.isoformat(),
                    harmless(user),
                    harmless(names[user]),
                    round(each.online),
                    round(each.away),
                )
                yield writer.writerow(line)


def harmless(text: str) -> str:
    """A name that a spreadsheet does not take for a formula (OWASP, "CSV Injection").

    Spreadsheets skip white space and invisible characters, and some take a full-width sign, or another form of it, for
    the sign itself.
    """
    first = unicodedata.normalize("NFKC", text[:1])
    return (
        f"'{text}"
        if first and (first in "=+-@\N{MINUS SIGN}" or first.isspace() or not first.isprintable())
        else text
    )


def stream(request: HttpRequest, lines: Iterator[str], name: str) -> StreamingHttpResponse:
    """Send lines as they are made, under WSGI and ASGI."""
    content: Any = _in_threads(lines) if isinstance(request, ASGIRequest) else lines
    disposition = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return StreamingHttpResponse(content, content_type="text/csv; charset=utf-8", headers=disposition)


async def _in_threads(lines: Iterator[str]) -> AsyncIterator[str]:
    def one() -> str | None:
        return next(lines, None)

    while (line := await sync_to_async(one)()) is not None:
        yield line


# --- Pages -------------------------------------------------------------------------------------------


@admin.register(Availability)
class AvailabilityAdmin(Pages):
    """A list of all attendants, and a page for each."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("", view(self.people), name="presence_availability_changelist"),
            path("csv/", view(self.export), name="presence_availability_csv"),
            path("<str:user_id>/", view(self.person), name="presence_availability_person"),
        ]

    def people(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> HttpResponse:
        """A page of attendants, each with total hours and a small chart."""
        self.require(request, VIEW)
        form = Span.of(request)
        over = form.days
        page = BoundedPaginator(_people(form), PAGE).get_page(request.GET.get("p"))
        spent = counting.hours([person.user_id for person in page], over)
        most = longest(day for days in spent.values() for day in days)
        shown = [(person, *_row(over, spent[person.user_id], most)) for person in page]
        context = {
            "form": form,
            "page": page,
            "rows": shown,
            "most": _spent(most),
            "searched": _search(form),
            "zone": zone(),
            "query": _query(form),
            "previous": _query(form, p=page.previous_page_number()) if page.has_previous() else None,
            "next": _query(form, p=page.next_page_number()) if page.has_next() else None,
        }
        return self.show(request, "availability/people.html", gettext("Presence over time"), context)

    def person(self, request: HttpRequest, user_id: str) -> HttpResponse:
        """One attendant: a chart, and its values as a table."""
        self.require(request, VIEW)
        person = get_object_or_404(Availability, namespace=HUB, user_id=_id(user_id))
        form = Span.of(request)
        over = form.days
        spent = counting.hours([user_id], over)[user_id] if over else []
        table = [
            (day.date, _spent(each.online), _spent(each.away))
            for day, each in zip(over, spent, strict=True)
            if each.online or each.away
        ]
        total = sum(spent, Hours())
        context = {
            "form": form,
            "person": person,
            "chart": chart(over, spent),
            "table": table,
            "is_long": len(over) > LABELLED_DAYS,
            "zone": zone(),
            "online": _spent(total.online),
            "away": _spent(total.away),
            "query": _query(form, user=user_id),
        }
        return self.show(request, "availability/person.html", person.name or person.user_id, context)

    def export(self, request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        """The same days as CSV, of all attendants who match or of one."""
        self.require(request, VIEW)
        form = Span.of(request)
        if not form.is_valid():
            return HttpResponse(form.errors.as_text(), status=400, content_type="text/plain; charset=utf-8")
        people = _people(form)
        if user_id := request.GET.get("user"):
            people = people.filter(user_id=_id(user_id))
        over = form.days
        name = f"presence-{over[0].date.isoformat()}-{over[-1].date.isoformat()}"
        return stream(request, rows(over, [*people.values_list("user_id", "name")]), name)


def _people(form: Span) -> QuerySet[Availability]:
    people = Availability.objects.filter(namespace=HUB).order_by(Lower("name"), "user_id")
    if text := _search(form):
        people = people.filter(Q(name__icontains=text) | Q(user_id__icontains=text))
    return people


def _search(form: Span) -> str:
    return str(form.cleaned_data.get("q", "")) if form.is_valid() else ""


def _row(over: Sequence[Day], spent: Sequence[Hours], most: float) -> tuple[str, str, Chart]:
    """Hours online, hours away, and a chart of them."""
    total = sum(spent, Hours())
    return _spent(total.online), _spent(total.away), thumbnail(over, spent, most)


def _id(text: str) -> str:
    """An id in an address. Raises `Http404` for any other text, which a database may refuse (a NUL, for example)."""
    try:
        return Id.parse(text)
    except ValueError as error:
        raise Http404 from error


def _query(form: Span, **more: Any) -> str:
    kept = {name: value for name in ("begin", "end", "q") if (value := form.data.get(name))}
    return "?" + urlencode(kept | more)
