"""The live view: what the instances hold now, surveyed when an operator looks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext
from redis.exceptions import RedisError

from presence.admin import listing, steps
from presence.admin.display import instant, moment, now, number, readable, since, until
from presence.admin.forms import ConnectionFilter, EventForm, RoomFilter
from presence.admin.letters import printable
from presence.admin.listing import PAGE
from presence.admin.pages import Pages
from presence.admin.steps import in_words
from presence.models import DeadLetter, Live, PresenceRecord
from presence.namespaces import teams
from realtime.paging import BoundedPaginator
from realtime.protocol.bus_message import BusMessage
from realtime.protocol.ids import composed
from realtime.protocol.namespaces import namespaces
from realtime.protocol.rooms import is_room, thread_room
from realtime.survey import ask
from realtime.survey.ask import PATIENCE, Answered, Asked, Connections
from realtime.survey.messages import (
    STALL_SECONDS,
    AboutConnections,
    AboutRooms,
    Detail,
    Instance,
    Load,
    Rooms,
)
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

VIEW = "presence.view_live"
REFRESH_SECONDS = 5
"""Between an answer and the next question of a page that is being looked at."""


@admin.register(Live)
class LiveAdmin(Pages):
    """Connections, instances and rooms, and the actions of operators."""

    may = {
        "disconnect": steps.DISCONNECT,
        "move": steps.MOVE,
        "drain": steps.DRAIN,
        "publish": steps.PUBLISH,
    }

    def get_urls(self) -> list[URLPattern]:
        def page(route: str, view: Any, name: str) -> URLPattern:
            admin_view: Callable[..., HttpResponse] = self.admin_site.admin_view(view)
            return path(route, admin_view, name=f"presence_live_{name}")

        return [
            page("", self.connections, "changelist"),
            page("connections/<str:connection_id>/", self.connection, "connection"),
            page("instances/", self.instances, "instances"),
            page("instances/<str:instance>/drain/", self.drain, "drain"),
            page("rooms/", self.rooms, "rooms"),
            page("users/<str:namespace>/<str:user_id>/disconnect/", self.disconnect, "disconnect"),
            page("users/<str:namespace>/<str:user_id>/move/<str:room>/", self.move, "move"),
            page("event/", self.event, "event"),
            page("log/", self.log, "log"),
        ]

    # --- What is shown ---------------------------------------------------------------------------

    def connections(
        self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None
    ) -> HttpResponse:
        """The open connections, a page at a time."""
        self.require(request, VIEW)
        form = ConnectionFilter(request.GET)
        form.is_valid()
        instance = request.GET.get("instance", "")
        user, room = request.GET.get("user", ""), _room(form.cleaned_data.get("room", ""))
        about = AboutConnections(
            search=form.cleaned_data.get("q", ""),
            user_id=user,
            room=room,
            namespace=form.cleaned_data.get("namespace", ""),
            behind_first=form.cleaned_data.get("order") == "behind",
            origin=listing.place(request),
            backwards="before" in request.GET,
            limit=PAGE,
        )
        found: Connections | None = self._survey(ask.connections, about, instance)
        context: dict[str, Any] = {"form": form, "kept": listing.kept(request, "instance", "user")}
        context["searched"] = listing.searched(form, room=room, user=user, instance=instance[:8])
        if found is not None:
            context |= _page_of(request, found)
            if found.rows and instance:
                context["instance"] = found.rows[0][0]
        silent = found.silent if found else None
        return self._show(request, "connections", gettext("Connections"), context, silent)

    def connection(self, request: HttpRequest, connection_id: str) -> HttpResponse:
        """One connection: its user, its instance, its rooms, and how far behind it is in each."""
        self.require(request, VIEW)
        found = self._survey(ask.connection, connection_id)
        instance, detail, silent = found or (None, Detail(), None)
        has_ended = detail.row is None and silent == []
        context = {"tab": "connections", "instance": instance, "has_ended": has_ended, **_described(detail)}
        status = 404 if has_ended else 200
        return self._show(request, "connection", gettext("Connection"), context, silent, status=status)

    def instances(self, request: HttpRequest) -> HttpResponse:
        """The instances: their load, and the delay of their event loops."""
        self.require(request, VIEW)
        asked: Asked[Load] | None = self._survey(ask.instances)
        context: dict[str, Any] = {"namespaces": list(namespaces())}
        if asked is not None:
            context |= {"rows": [_loaded(answer) for answer in asked.answers], "totals": _load_of_all(asked)}
        silent = asked.silent if asked else None
        return self._show(request, "instances", gettext("Instances"), context, silent)

    def rooms(self, request: HttpRequest) -> HttpResponse:
        """Rooms, the largest first."""
        self.require(request, VIEW)
        form = RoomFilter(request.GET)
        form.is_valid()
        about = AboutRooms(
            search=form.cleaned_data.get("q", ""),
            namespace=form.cleaned_data.get("namespace", ""),
            personal=form.cleaned_data.get("personal", False),
        )
        page = listing.number(request)
        before = (page - 1) * PAGE
        found = self._survey(ask.rooms, about, before, PAGE)
        total, rooms, silent = found or (0, [], None)
        largest = max((size for _, _, size in rooms), default=1)
        context = {
            "form": form,
            "personal": about.personal,
            "searched": listing.searched(form),
            "total": total,
            "shown_total": number(total),
            "totals": [(gettext("Rooms listed"), number(total))] if found else [],
            "rows": [(name, room, size, round(100 * size / largest)) for name, room, size in rooms],
            "first": before + 1,
            "last": before + len(rooms),
            **listing.numbered(request, page, before + PAGE < total),
        }
        return self._show(request, "rooms", gettext("Rooms"), context, silent)

    def log(self, request: HttpRequest) -> HttpResponse:
        """The actions of operators."""
        self.require(request, VIEW)
        kinds = ContentType.objects.get_for_models(Live, DeadLetter, PresenceRecord).values()
        entries = LogEntry.objects.filter(content_type__in=kinds).select_related("user")
        page = BoundedPaginator(entries.order_by("-action_time", "-pk"), PAGE).get_page(request.GET.get("p"))
        rows = [(moment(entry.action_time), entry, in_words(entry.get_change_message())) for entry in page]
        context = {"page": page, "rows": rows, **listing.numbered(request, page.number, page.has_next())}
        return self._show(request, "log", gettext("Operator actions"), context, [])

    # --- What operators do -----------------------------------------------------------------------

    def disconnect(self, request: HttpRequest, namespace: str, user_id: str) -> HttpResponse:
        """Close every connection of a user."""
        return self.take(request, steps.disconnect(namespace, user_id))

    def move(self, request: HttpRequest, namespace: str, user_id: str, room: str) -> HttpResponse:
        """Take a user out of a room."""
        room = _room(room)
        if not _is_joined(namespace, room):
            raise Http404
        return self.take(request, steps.take_out(namespace, user_id, room))

    def drain(self, request: HttpRequest, instance: str) -> HttpResponse:
        """Stop an instance as SIGTERM does."""
        return self.take(request, steps.drain(instance, printable(request.GET.get("name", ""))))

    def event(self, request: HttpRequest) -> HttpResponse:
        """Publish a test event: filled in, checked, confirmed. The address may name it: `?event=chat:ended`."""
        self.require(request, steps.PUBLISH)
        form = EventForm(request.POST or None, initial={"event": request.GET.get("event")})
        if not form.is_bound or not form.is_valid():
            context = {"form": form, "scripts": ["presence/event.js"]}
            return self._show(request, "event", gettext("Test event"), context, [])
        audience = self._audience(request, form.cleaned_data["delivery"])
        fields = tuple((name, request.POST.get(name, "")) for name in form.fields)
        return self.take(request, steps.send(form.cleaned_data, audience, fields))

    def _audience(self, request: HttpRequest, delivery: BusMessage) -> str:
        """The number of connections that would receive the event now; not needed once it is confirmed."""
        if "confirmed" in request.POST:
            return ""
        about = AboutRooms(named=[*delivery.targets], personal=True)
        asked: Asked[Rooms] | None = self._survey(ask.ask, about, Rooms)
        if asked is None:
            return "–"
        return str(sum(size for answer in asked.answers for _, _, size in answer.result.sizes))

    # --- In common -------------------------------------------------------------------------------

    def _survey(self, question: Callable[..., Any], *about: Any) -> Any:
        """The answers; None when Redis does not take the question."""
        try:
            return question(*about)
        except RedisError as error:
            logger.warning("live view not available", extra={"error": spelled(error)})
            return None

    def _show(
        self,
        request: HttpRequest,
        page: str,
        title: str,
        context: Mapping[str, Any],
        silent: list[Instance] | None,
        *,
        status: int = 200,
    ) -> HttpResponse:
        """A page of the live view. `silent` is None when no instance could be asked."""
        about_all = {
            "tab": page,
            "silent": None if silent is None else [_missed(each) for each in silent],
            "patience": f"{PATIENCE:g}",
            "as_of": now(),
            "refresh": REFRESH_SECONDS,
            "scripts": ["presence/live.js"],
        }
        return self.show(request, f"live/{page}.html", title, {**about_all, **context}, status=status)


def name(instance: Instance) -> str:
    """The name of an instance for operators."""
    return f"{instance.host}:{instance.pid}" if instance.host else instance.id[:8]


def _missed(instance: Instance) -> dict[str, Any]:
    """An instance that did not answer, for the template."""
    since_when = instance.silent_since and moment(instant(instance.silent_since))
    return {"name": name(instance), "since": since_when}


def _page_of(request: HttpRequest, found: Connections) -> dict[str, Any]:
    """A page of connections, for its template."""
    context: dict[str, Any] = {
        "found": found,
        "rows": [{"row": row, "instance": holder, **_opened(row.opened_at)} for holder, row in found.rows],
        "first": found.before + 1,
        "last": found.before + len(found.rows),
        "total": number(found.total),
        "totals": [
            (gettext("Connections"), number(found.total)),
            *_by_namespace(found.namespaces, found.total),
            (gettext("Instances"), number(found.instances)),
        ],
    }
    if found.rows and found.before:
        context["previous"] = listing.another(request, before=found.rows[0][1].place)
    if found.rows and found.has_next:
        context["next"] = listing.another(request, after=found.rows[-1][1].place)
    return context


def _by_namespace(counts: Mapping[str, int], total: int) -> list[tuple[str, str]]:
    """Connections in each namespace; nothing while an instance of an older version does not count them."""
    return [(name, number(counts[name])) for name in sorted(counts)] if sum(counts.values()) == total else []


def _load_of_all(asked: Asked[Load]) -> list[tuple[str, str]]:
    """The load of all instances that answered, with its names."""
    loads = [answer.result for answer in asked.answers]
    counts = {name: sum(load.connections.get(name, 0) for load in loads) for name in namespaces()}
    total = sum(counts.values())
    return [
        (gettext("Instances"), number(len(loads))),
        (gettext("Connections"), number(total)),
        *_by_namespace(counts, total),
        (gettext("Behind"), number(sum(load.behind for load in loads))),
    ]


def _opened(at: float) -> dict[str, str]:
    return {"since": since(at), "at": moment(instant(at))}


def _described(detail: Detail) -> dict[str, Any]:
    """A connection's times and rooms, for its template."""
    if (row := detail.row) is None:
        return {}
    rooms = [
        {
            "name": each.room,
            "is_joined": _is_joined(row.namespace, each.room),
            # Positions are times: of the last publication in the room, and of the last one the connection has.
            "behind": readable(timedelta(microseconds=each.end - each.position))
            if each.end > each.position
            else None,
        }
        for each in sorted(detail.rooms, key=lambda each: each.room)
    ]
    return {
        "row": row,
        **_opened(row.opened_at),
        "expires": moment(instant(detail.expires_at)),
        "left": until(detail.expires_at),
        # A token without groups has the default ones, also that of a customer, whom no group lists.
        "groups": detail.groups if row.namespace in teams() else [],
        "rooms": rooms,
    }


def _loaded(answer: Answered[Load]) -> dict[str, Any]:
    """An instance and its load, for the template."""
    load = answer.result
    return {
        "instance": answer.instance,
        "load": load,
        "connections": [load.connections.get(name, 0) for name in namespaces()],
        **_opened(answer.instance.started_at),
        "cpu": load.cpu * 100,
        "stall": load.stall * 1000,
        "answered": max(answer.seconds - STALL_SECONDS - load.stall, 0.0) * 1000,
    }


def _is_joined(namespace: str, room: str) -> bool:
    """Whether users of the namespace enter such a room with `join`, and so can be taken out of it."""
    found = namespaces().get(namespace)
    return found is not None and found.may_join(room) and is_room(room)


def _room(text: str) -> str:
    """A room as it was typed: an id alone is a thread's."""
    text = composed(text.strip())
    return text if not text or is_room(text) or ":" in text else thread_room(text)
