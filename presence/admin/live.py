"""The live view: what the socket processes hold now, asked for when an operator looks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import LogEntry
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from redis.exceptions import RedisError

from presence.admin.display import instant, moment, since
from presence.admin.pages import DISCONNECTED, DRAINED, SENT, TAKEN_OUT, Pages, Step, in_words
from presence.models import DeadLetter, Live, PresenceRecord
from presence.namespaces import lists_customers
from realtime.protocol import bus_message as bus
from realtime.protocol import values
from realtime.protocol.bus_message import Delivery, InvalidMessage
from realtime.protocol.catalogue import catalogue
from realtime.protocol.ids import composed
from realtime.protocol.namespaces import namespaces
from realtime.protocol.rooms import is_room, thread_room
from realtime.publisher import publish
from realtime.survey import ask as asking
from realtime.survey.ask import PATIENCE, Asked
from realtime.survey.messages import STALL_SECONDS, AboutConnections, AboutRooms, Instance, Place, Rooms
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

PAGE = 50
"""Connections, rooms or actions a page."""

VIEW = "presence.view_live"
DISCONNECT = "presence.disconnect_presencerecord"
MOVE = "presence.move_live"
DRAIN = "presence.drain_live"
PUBLISH = "presence.publish_live"


def _namespace_choices() -> list[tuple[str, Any]]:
    return [("", _("All")), *((name, name) for name in namespaces())]


class Filter(forms.Form):
    """What the list of connections is narrowed to. Nothing in it is required, nor able to be wrong."""

    q = forms.CharField(label=_("User"), required=False, max_length=100)
    room = forms.CharField(label=_("Room"), required=False, max_length=100)
    namespace = forms.ChoiceField(
        label=_("Namespace"),
        required=False,
        choices=_namespace_choices,
    )
    order = forms.ChoiceField(
        label=_("Order"),
        required=False,
        choices=[("", _("Newest first")), ("behind", _("Furthest behind first"))],
    )


class RoomFilter(forms.Form):
    """The same for rooms."""

    q = forms.CharField(label=_("Room"), required=False, max_length=100)
    namespace = forms.ChoiceField(
        label=_("Namespace"),
        required=False,
        choices=_namespace_choices,
    )
    personal = forms.BooleanField(label=_("with the users' own"), required=False)


class TestEvent(forms.Form):
    """An event to publish, as a backbone would."""

    event = forms.ChoiceField(label=_("Event"))
    payload = forms.CharField(
        label=_("Data"), widget=forms.Textarea(attrs={"rows": 6, "cols": 60, "class": "vLargeTextField"})
    )
    rooms = forms.CharField(
        label=_("Rooms"),
        required=False,
        help_text=_(
            "Instead of those the event goes to by itself, for example thread:42. Separated by spaces."
        ),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = sorted(name for name, event in catalogue().server.items() if event.bus)
        field = self.fields["event"]
        assert isinstance(field, forms.ChoiceField)  # noqa: S101
        field.choices = [(name, name) for name in names]

    def clean_payload(self) -> dict[str, Any]:
        """The JSON object that is the event's data."""
        try:
            data = json.loads(self.cleaned_data["payload"])
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(_("This is not JSON: %(error)s"), params={"error": error}) from error
        if not isinstance(data, dict):
            raise forms.ValidationError(_("A JSON object is expected."))
        return data

    def clean(self) -> dict[str, Any]:
        """Check it as the bridge will; `delivery` says where it goes."""
        cleaned: dict[str, Any] = super().clean() or {}
        if not self.errors:
            message = {"event": cleaned["event"], "data": cleaned["payload"]}
            if rooms := _rooms(cleaned["rooms"]):
                message["rooms"] = rooms
            try:
                cleaned["delivery"] = bus.parse(values.encode(message))
            except (InvalidMessage, values.NotJSON) as error:
                raise forms.ValidationError(str(error)) from error
            cleaned["rooms"] = rooms or None
        return cleaned


@admin.register(Live)
class LiveAdmin(Pages):
    """Connections, instances and rooms, and what an operator can do to them."""

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

    def permissions(self, request: HttpRequest) -> dict[str, bool]:
        return {
            "disconnect": request.user.has_perm(DISCONNECT),
            "move": request.user.has_perm(MOVE),
            "drain": request.user.has_perm(DRAIN),
            "publish": request.user.has_perm(PUBLISH),
        }

    # --- To look at ------------------------------------------------------------------------------

    def connections(
        self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None
    ) -> HttpResponse:
        """Who is connected, a page at a time."""
        self.require(request, VIEW)
        form = Filter(request.GET)
        form.is_valid()
        instance = request.GET.get("instance", "")
        about = AboutConnections(
            search=form.cleaned_data.get("q", ""),
            user_id=request.GET.get("user", ""),
            room=_room(form.cleaned_data.get("room", "")),
            namespace=form.cleaned_data.get("namespace", ""),
            behind_first=form.cleaned_data.get("order") == "behind",
            origin=_place(request.GET.get("after") or request.GET.get("before")),
            backwards="before" in request.GET,
            limit=PAGE,
        )
        found = self._ask(request, partial(asking.connections, about, instance))
        context: dict[str, Any] = {
            "form": form,
            "kept": _kept(request, "instance", "user"),
            "tab": "connections",
        }
        if found is not None:
            rows = [
                {
                    "row": row,
                    "instance": holder,
                    "since": since(row.opened_at),
                    "at": moment(instant(row.opened_at)),
                }
                for holder, row in found.rows
            ]
            if found.rows and instance:
                context["instance"] = found.rows[0][0]
            context |= {
                "found": found,
                "rows": rows,
                "first": found.before + 1,
                "last": found.before + len(rows),
            }
            if rows and found.before:
                context["previous"] = _page(request, before=found.rows[0][1].place)
            if rows and found.has_next:
                context["next"] = _page(request, after=found.rows[-1][1].place)
        return self._show(request, "connections", gettext("Connections"), context, found and found.silent)

    def connection(self, request: HttpRequest, connection_id: str) -> HttpResponse:
        """One connection: whose it is, where it is, what it has joined and how far behind it is there."""
        self.require(request, VIEW)
        found = self._ask(request, partial(asking.connection, connection_id))
        if found is None:
            return self._show(request, "connection", gettext("Connection"), {"tab": "connections"}, None)
        instance, detail, silent = found
        if detail.row is None and not silent:
            raise Http404(gettext("This connection is over."))
        context: dict[str, Any] = {
            "tab": "connections",
            "instance": instance,
            "detail": detail,
            "row": detail.row,
        }
        if detail.row is not None:
            context |= {
                "since": since(detail.row.opened_at),
                "at": moment(instant(detail.row.opened_at)),
                "expires": moment(instant(detail.expires_at)),
                "rooms": [
                    {
                        "name": each.room,
                        "is_joined": _is_joined(detail.row.namespace, each.room),
                        # Positions are times: of the last thing that was published, and of the last one it has.
                        "behind": (each.end - each.position) / 1e6 if each.end > each.position else None,
                    }
                    for each in sorted(detail.rooms, key=lambda each: each.room)
                ],
            }
        return self._show(request, "connection", gettext("Connection"), context, silent)

    def instances(self, request: HttpRequest) -> HttpResponse:
        """The socket processes: how much they carry, and how late they are."""
        self.require(request, VIEW)
        asked = self._ask(request, asking.instances)
        context: dict[str, Any] = {"tab": "instances", "namespaces": list(namespaces())}
        if asked is not None:
            context["rows"] = [
                {
                    "instance": answer.instance,
                    "load": answer.said,
                    "connections": [answer.said.connections.get(name, 0) for name in namespaces()],
                    "since": since(answer.instance.started_at),
                    "at": moment(instant(answer.instance.started_at)),
                    "cpu": answer.said.cpu * 100,
                    "stall": answer.said.stall * 1000,
                    "answered": max(answer.seconds - STALL_SECONDS - answer.said.stall, 0.0) * 1000,
                }
                for answer in asked.answers
            ]
        return self._show(request, "instances", gettext("Instances"), context, asked and asked.silent)

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
        number = _number(request.GET.get("p", ""))
        found = self._ask(request, partial(asking.rooms, about, (number - 1) * PAGE, PAGE))
        context: dict[str, Any] = {"form": form, "tab": "rooms", "kept": []}
        if found is None:
            return self._show(request, "rooms", gettext("Rooms"), context, None)
        total, rooms, silent = found
        largest = max((size for _, _, size in rooms), default=1)
        context |= {
            "total": total,
            "rows": [(name, room, size, round(100 * size / largest)) for name, room, size in rooms],
            "first": (number - 1) * PAGE + 1,
            "last": (number - 1) * PAGE + len(rooms),
            "previous": _page(request, p=number - 1) if number > 1 else None,
            "next": _page(request, p=number + 1) if number * PAGE < total else None,
        }
        return self._show(request, "rooms", gettext("Rooms"), context, silent)

    def log(self, request: HttpRequest) -> HttpResponse:
        """What operators did."""
        self.require(request, VIEW)
        entries = LogEntry.objects.filter(
            content_type__app_label="presence",
            content_type__model__in=[kind._meta.model_name for kind in (Live, DeadLetter, PresenceRecord)],
        ).select_related("user")
        page = Paginator(entries.order_by("-action_time", "-pk"), PAGE).get_page(request.GET.get("p"))
        rows = [(moment(entry.action_time), entry, in_words(entry.get_change_message())) for entry in page]
        context = {
            "tab": "log",
            "page": page,
            "rows": rows,
            "previous": _page(request, p=page.number - 1) if page.has_previous() else None,
            "next": _page(request, p=page.number + 1) if page.has_next() else None,
        }
        return self._show(request, "log", gettext("What operators did"), context, [])

    # --- To do -----------------------------------------------------------------------------------

    def disconnect(self, request: HttpRequest, namespace: str, user_id: str) -> HttpResponse:
        """Close every connection of a user."""
        payload = {"user_id": user_id, "namespace": namespace}
        return self.take(
            request,
            Step(
                permission=DISCONNECT,
                title=gettext("Disconnect user"),
                question=gettext("Close every connection that this user has open now?"),
                warning=gettext("Logins end as well: nobody gets a new token without a password."),
                details=((gettext("User"), user_id), (gettext("Namespace"), namespace)),
                do=partial(publish, "user:disconnect", payload),
                about=(Live(id=f"{namespace} user:{user_id}"),),
                entry=DISCONNECTED,
                done=gettext("The user is being disconnected."),
                back=_connections(user=user_id, namespace=namespace),
                button=gettext("Disconnect"),
            ),
        )

    def move(self, request: HttpRequest, namespace: str, user_id: str, room: str) -> HttpResponse:
        """Take a user out of a room."""
        room = _room(room)
        if not _is_joined(namespace, room):
            raise Http404
        if lists_customers(namespace):
            event = "room:revoke"
            warning = gettext(
                "The right to see this room is taken as well, until the backbone grants it again."
            )
        else:
            event = "room:expel"
            warning = gettext("Nothing keeps this user from joining the room again.")
        return self.take(
            request,
            Step(
                permission=MOVE,
                title=gettext("Take out of a room"),
                question=gettext("Take this user out of the room, in every tab?"),
                warning=warning,
                details=(
                    (gettext("User"), user_id),
                    (gettext("Namespace"), namespace),
                    (gettext("Room"), room),
                ),
                do=partial(publish, event, {"user_id": user_id, "namespace": namespace, "room": room}),
                about=(Live(id=f"{namespace} user:{user_id}"),),
                entry=f"{TAKEN_OUT}: {room}",
                done=gettext("The user is being taken out of the room."),
                back=_connections(user=user_id, namespace=namespace),
                button=gettext("Take out"),
            ),
        )

    def drain(self, request: HttpRequest, instance: str) -> HttpResponse:
        """Let a socket process end as on SIGTERM."""
        name = request.GET.get("name", "")
        return self.take(
            request,
            Step(
                permission=DRAIN,
                title=gettext("Drain an instance"),
                question=gettext(
                    "Close all connections of this instance, spread over the drain time, and end it?"
                ),
                warning=gettext(
                    "Its clients come back to the other instances. Whatever supervises the process has to start "
                    "it again."
                ),
                details=((gettext("Instance"), name or instance), (gettext("Id"), instance)),
                do=partial(publish, "instance:drain", {"instance": instance}),
                about=(Live(id=f"instance {name or instance}"[:200]),),
                entry=f"{DRAINED}: {instance}",
                done=gettext("The instance is being drained."),
                back=reverse("admin:presence_live_instances"),
                button=gettext("Drain"),
            ),
        )

    def event(self, request: HttpRequest) -> HttpResponse:
        """Publish an event by hand: filled in, looked at, confirmed."""
        self.require(request, PUBLISH)
        form = TestEvent(request.POST or None, initial={"payload": "{}"})
        if not form.is_bound or not form.is_valid():
            return self._show(request, "event", gettext("Test event"), {"tab": "event", "form": form}, [])
        cleaned = form.cleaned_data
        delivery: Delivery = cleaned["delivery"]
        rooms = ", ".join(f"{namespace} {room}" for namespace, room in delivery.targets)
        return self.take(
            request,
            Step(
                permission=PUBLISH,
                title=gettext("Test event"),
                question=gettext("Send this event to everybody in these rooms?"),
                details=(
                    (gettext("Event"), cleaned["event"]),
                    (gettext("Data"), json.dumps(cleaned["payload"], ensure_ascii=False, indent=2)),
                    (gettext("Rooms"), rooms),
                    (gettext("Connections there now"), self._audience(request, delivery)),
                ),
                do=partial(publish, cleaned["event"], cleaned["payload"], rooms=cleaned["rooms"]),
                about=(Live(id=cleaned["event"]),),
                entry=f"{SENT}: {rooms}: {json.dumps(cleaned['payload'], ensure_ascii=False)[:1000]}",
                done=gettext("The event was sent."),
                back=reverse("admin:presence_live_event"),
                fields=tuple((name, request.POST.get(name, "")) for name in form.fields),
                button=gettext("Send"),
            ),
        )

    def _audience(self, request: HttpRequest, delivery: Delivery) -> str:
        """How many would get it now; a look is only worth it before it is confirmed."""
        if "confirmed" in request.POST:
            return ""
        about = AboutRooms(named=[*delivery.targets], personal=True)
        asked: Asked[Rooms] | None = self._ask(request, partial(asking.ask, about, Rooms))
        if asked is None:
            return "–"
        return str(sum(size for answer in asked.answers for _, _, size in answer.said.sizes))

    # --- Around it -------------------------------------------------------------------------------

    def _ask(self, request: HttpRequest, question: Any) -> Any:
        """The answers; None, and a word about it, when Redis does not take the question."""
        try:
            return question()
        except RedisError as error:
            logger.warning("live view not available", extra={"error": spelled(error)})
            messages.error(request, gettext("Redis does not answer: what is connected right now is unknown."))
            return None

    def _show(
        self,
        request: HttpRequest,
        page: str,
        title: str,
        context: Mapping[str, Any],
        silent: list[Instance] | None,
    ) -> HttpResponse:
        missed = [
            {"name": name(each), "since": each.silent_since and moment(instant(each.silent_since))}
            for each in silent or ()
        ]
        context = {**context, "silent": missed, "patience": PATIENCE}
        return self.show(request, f"admin/presence/live/{page}.html", title, context)


def name(instance: Instance) -> str:
    """What an operator calls a process."""
    return f"{instance.host}:{instance.pid}" if instance.host else instance.id[:8]


def _is_joined(namespace: str, room: str) -> bool:
    """Whether users of the namespace enter such a room with `join`, and so can be taken out of it."""
    found = namespaces().get(namespace)
    return found is not None and found.may_join(room) and is_room(room)


def _rooms(text: str) -> list[str]:
    """Rooms as they were typed. The name of a group may have spaces: only a word with a colon begins another room."""
    rooms: list[str] = []
    for word in text.replace(",", " ").split():
        if rooms and ":" not in word:
            rooms[-1] += f" {word}"
        else:
            rooms.append(word)
    return rooms


def _room(text: str) -> str:
    """A room as it was typed: an id alone is a thread's."""
    text = composed(text.strip())
    return text if not text or is_room(text) or ":" in text else thread_room(text)


def _place(text: str | None) -> Place | None:
    """The place in an address, if it is one."""
    try:
        return msgspec.json.decode(text, type=Place) if text else None
    except (msgspec.DecodeError, RecursionError):
        return None


def _number(text: str) -> int:
    """The page of a list in an address: the first one unless it says a number, of which there are not so many."""
    return max(int(text), 1) if text.isdecimal() and len(text) <= 9 else 1


def _page(request: HttpRequest, **where: Any) -> str:
    """The query of another page of the same list."""
    query = {key: value for key, value in request.GET.dict().items() if key not in {"after", "before", "p"}}
    places = {
        key: str(value) if isinstance(value, int) else msgspec.json.encode(value).decode()
        for key, value in where.items()
    }
    return "?" + urlencode(query | places)


def _kept(request: HttpRequest, *names: str) -> list[tuple[str, str, str]]:
    """What narrows the list beside the form: name, value, and the query without it."""
    given = request.GET.dict()
    kept = []
    for each in names:
        if value := given.get(each):
            rest = {key: other for key, other in given.items() if key not in {each, "after", "before"}}
            kept.append((each, value, "?" + urlencode(rest)))
    return kept


def _connections(**query: str) -> str:
    return f"{reverse('admin:presence_live_changelist')}?{urlencode(query)}"
