"""Dead letters in the admin: shown with their reasons, edited, sent again, and discarded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils.translation import gettext, ngettext
from redis.exceptions import RedisError

from presence.admin import letters, steps
from presence.admin.display import number, zone
from presence.admin.forms import LetterForm
from presence.admin.letters import Letter
from presence.admin.pages import Pages
from presence.admin.steps import DISCARD, RESEND, Parcel
from presence.models import DeadLetter
from realtime.bridge.dead_letters import DEAD_LETTERS
from realtime.protocol.bus_message import InvalidMessage
from realtime.redis.client import key, sync_client
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

PAGE = 50
VIEW = "presence.view_deadletter"
LIST = "admin:presence_deadletter_changelist"
_ENTRY = re.compile(r"[0-9]{1,20}-[0-9]{1,20}", re.ASCII)


@admin.register(DeadLetter)
class DeadLetterAdmin(Pages):
    """A page of letters at a time."""

    may = {"discard": DISCARD, "resend": RESEND}

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("", view(self.letters), name="presence_deadletter_changelist"),
            path("discard/", view(self.discard), name="presence_deadletter_discard"),
            path("resend/", view(self.resend), name="presence_deadletter_resend"),
            path("<str:letter_id>/", view(self.letter), name="presence_deadletter_letter"),
        ]

    # --- What is shown ---------------------------------------------------------------------------

    def letters(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> HttpResponse:
        """The letters, newest first."""
        self.require(request, VIEW)
        before, after = (_entry(request.GET.get(name, "")) for name in ("before", "after"))
        context: dict[str, Any] = {"most": number(DEAD_LETTERS), "zone": zone(), "is_part": before or after}
        context["scripts"] = ["presence/letters.js"]
        try:
            context |= _page(before, after)
        except RedisError as error:
            logger.warning("dead letters not available", extra={"error": spelled(error)})
            messages.error(request, gettext("Redis does not answer."))
        return self.show(request, "deadletter/list.html", gettext("Dead letters"), context)

    def letter(self, request: HttpRequest, letter_id: str) -> HttpResponse:
        """One letter, to be edited and sent again."""
        self.require(request, RESEND)
        if not (chosen := self._read(request, [letter_id])) or not chosen[0].is_of_bus:
            return redirect(LIST)
        [letter] = chosen
        form = LetterForm(request.POST or None, letter)
        if form.is_bound and form.is_valid():
            parcel = Parcel(letter, form.encoded, form.parsed, is_edited=form.has_changed())
            return self._resend(request, [parcel], fields=(("message", form.cleaned_data["message"]),))
        context = {"form": form, "letter": letter}
        return self.show(request, "deadletter/letter.html", gettext("Dead letter"), context)

    # --- What operators do -----------------------------------------------------------------------

    def discard(self, request: HttpRequest) -> HttpResponse:
        """Discard the selected letters."""
        if not (chosen := self._selected(request, DISCARD)):
            return redirect(LIST)
        there = [each.id for each in chosen]  # the log tells of no others
        return self.take(request, steps.discard(there, partial(letters.discard, there)))

    def resend(self, request: HttpRequest) -> HttpResponse:
        """Send the selected letters again, as far as they are valid now."""
        if not (chosen := self._selected(request, RESEND)):
            return redirect(LIST)
        parcels, refused = _packed(chosen)
        if not parcels:
            for letter, reason in refused:
                messages.error(request, f"{letter.at}: {reason}")
            return redirect(LIST)
        fields = tuple(("letter", each.letter.id) for each in parcels)
        return self._resend(request, parcels, fields, refused)

    def _resend(
        self,
        request: HttpRequest,
        parcels: Sequence[Parcel],
        fields: tuple[tuple[str, str], ...],
        refused: Sequence[tuple[Letter, str]] = (),
    ) -> HttpResponse:
        """Ask; on a confirmed POST send them, write into the log what was sent, and tell the operator."""
        if not self.is_confirmed(request):
            return self.ask(request, steps.resend(parcels, fields, refused))
        try:
            sent = letters.send_again({each.letter.id: each.encoded for each in parcels})
        except RedisError as error:
            logger.warning("dead letters not sent again", extra={"error": spelled(error)})
            text = gettext("Redis did not confirm it. What is still listed here was not sent.")
            messages.error(request, text)
            self._write_down(request, parcels, steps.NOT_CONFIRMED)
        else:
            self._write_down(request, [each for each in parcels if each.letter.id in sent])
            _tell(request, len(sent), len(parcels) - len(sent))
        return redirect(LIST)

    def _write_down(self, request: HttpRequest, parcels: Sequence[Parcel], words: str = "") -> None:
        for each in parcels:
            self.log_change(request, DeadLetter(id=each.letter.id), each.entry(words))

    def _selected(self, request: HttpRequest, permission: str) -> list[Letter]:
        """The letters that were selected, each once, at most a page of them; an empty list in the cases of `_read`."""
        self.require(request, permission)
        if ids := [*dict.fromkeys(filter(_entry, request.POST.getlist("letter")[:PAGE]))]:
            return self._read(request, ids)
        messages.warning(request, gettext("Nothing was selected."))
        return []

    def _read(self, request: HttpRequest, ids: Sequence[str]) -> list[Letter]:
        """The letters; if none can be read, an empty list, and a message to the operator."""
        try:
            if found := letters.read_these([each for each in ids if _entry(each)]):
                return found
        except RedisError as error:
            logger.warning("dead letters not available", extra={"error": spelled(error)})
            messages.error(request, gettext("Redis does not answer: nothing was done."))
        else:
            _tell(request, 0, len(ids))
        return []


def _page(before: str, after: str) -> dict[str, Any]:
    """A page of letters, for the template: two commands, however many there are. Raises `redis.RedisError`."""
    found = letters.read(PAGE + 1, before=before, after=after)
    more = len(found) > PAGE
    rows = found[1:] if after and more else found[:PAGE]
    context: dict[str, Any] = {"rows": rows, "total": sync_client().xlen(key("dead"))}
    if rows and (more if after else bool(before)):
        context["newer"] = f"?after={rows[0].id}"
    if rows and (more or after):
        context["older"] = f"?before={rows[-1].id}"
    return context


def _packed(chosen: Sequence[Letter]) -> tuple[list[Parcel], list[tuple[Letter, str]]]:
    """The letters that can be sent as they are, and the others with the reasons."""
    parcels, refused = [], []
    for letter in chosen:
        if not letter.is_of_bus:
            refused.append((letter, gettext("it did not come over the bus")))
            continue
        try:
            encoded, parsed = letters.prepare(letter, letter.raw)
            parcels.append(Parcel(letter, encoded, parsed))
        except InvalidMessage as error:
            refused.append((letter, str(error)))
    return parcels, refused


def _tell(request: HttpRequest, sent: int, missed: int) -> None:
    if sent:
        text = ngettext("Sent %(count)d dead letter again.", "Sent %(count)d dead letters again.", sent)
        messages.success(request, text % {"count": sent})
    if missed:
        text = ngettext(
            "%(count)d dead letter was gone: it had been sent again or discarded, or newer ones replaced it.",
            "%(count)d dead letters were gone: they had been sent again or discarded, or newer ones replaced them.",
            missed,
        )
        messages.warning(request, text % {"count": missed})


def _entry(text: str) -> str:
    """The id of an entry; empty if the text is none."""
    is_one = _ENTRY.fullmatch(text) and all(int(part) < 2**64 for part in text.split("-"))
    return text if is_one else ""
