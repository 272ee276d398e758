"""Forms of the live view: what narrows its lists, and the test event."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from presence.admin import letters
from presence.admin.letters import Letter
from presence.admin.samples import sample
from realtime.protocol import bus_message, values
from realtime.protocol.bus_message import BusMessage, InvalidMessage
from realtime.protocol.catalogue import catalogue
from realtime.protocol.namespaces import namespaces


def _namespace() -> forms.ChoiceField:
    return forms.ChoiceField(
        label=_("Namespace"),
        required=False,
        choices=lambda: [("", _("All")), *((name, name) for name in namespaces())],
    )


class ConnectionFilter(forms.Form):
    """Narrows the list of connections. Every field is optional, and a value that is not valid is left out."""

    q = forms.CharField(label=_("User"), required=False, max_length=100)
    room = forms.CharField(label=_("Room"), required=False, max_length=100)
    namespace = _namespace()
    order = forms.ChoiceField(
        label=_("Order"),
        required=False,
        choices=[("", _("Newest first")), ("behind", _("Furthest behind first"))],
    )


class RoomFilter(forms.Form):
    """Narrows the list of rooms, in the same way."""

    q = forms.CharField(label=_("Room"), required=False, max_length=100)
    namespace = _namespace()
    personal = forms.BooleanField(label=_("Include the users' own rooms"), required=False)


class EventForm(forms.Form):
    """A test event, which is published as a backbone would publish it."""

    event = forms.ChoiceField(label=_("Event"))
    payload = forms.CharField(
        label=_("Data"), widget=forms.Textarea(attrs={"rows": 6, "cols": 60, "class": "vLargeTextField"})
    )
    rooms = forms.CharField(
        label=_("Rooms"),
        required=False,
        help_text=_("Rooms that replace the event's own, for example thread:42, separated by spaces."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        events = sorted(catalogue().server.items())
        samples = {name: sample(event.payload) for name, event in events if event.bus}
        field = self.fields["event"]
        assert isinstance(field, forms.ChoiceField)  # noqa: S101
        field.choices = [(name, name) for name in samples]
        field.widget.attrs["data-samples"] = json.dumps(samples)
        chosen = self.initial.get("event")
        if chosen not in samples:
            chosen = next(iter(samples), "")
        self.initial = {"event": chosen, "payload": samples.get(chosen, "{}")}

    def clean_payload(self) -> dict[str, Any]:
        """The JSON object that is the event's data."""
        try:
            data = json.loads(self.cleaned_data["payload"])
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(_("This is not JSON: %(error)s"), params={"error": error}) from error
        if not isinstance(data, dict):
            raise forms.ValidationError(_("Expected a JSON object."))
        return data

    def clean(self) -> dict[str, Any]:
        """Validate the event as the bridge will; `delivery` names its rooms."""
        cleaned: dict[str, Any] = super().clean() or {}
        if not self.errors:
            message = {"event": cleaned["event"], "data": cleaned["payload"]}
            if rooms := _rooms(cleaned["rooms"]):
                message["rooms"] = rooms
            try:
                cleaned["delivery"] = bus_message.parse(values.encode(message))
            except (InvalidMessage, values.NotJSON) as error:
                raise forms.ValidationError(str(error)) from error
            cleaned["rooms"] = rooms or None
        return cleaned


class LetterForm(forms.Form):
    """The message of a dead letter, which may be edited before it is sent again."""

    message = forms.CharField(
        label=_("Message"),
        widget=forms.Textarea(attrs={"rows": 16, "cols": 80, "class": "vLargeTextField presence-json"}),
        strip=False,
    )
    encoded: bytes
    """The message as it goes onto the bus, once the form is valid."""
    parsed: BusMessage

    def __init__(self, data: Any, letter: Letter) -> None:
        super().__init__(data, initial={"message": letter.editable})
        self._letter = letter

    def clean_message(self) -> str:
        """Validate the message as the bridge will."""
        text: str = self.cleaned_data["message"]
        try:
            self.encoded, self.parsed = letters.prepare(self._letter, text.encode(errors="replace"))
        except InvalidMessage as error:
            raise forms.ValidationError(str(error)) from error
        if self.parsed.event in catalogue().control and self.parsed.event != self._letter.event:
            # The permission is for what a backbone meant to do, not for new orders (a grant, a disconnect).
            raise forms.ValidationError(_("A dead letter cannot become another control event."))
        return text

    def has_changed(self) -> bool:
        """Whether the operator edited the message."""
        return str(self.data.get("message", "")).split() != self._letter.editable.split()


def _rooms(text: str) -> list[str]:
    """Rooms as they were typed. The name of a group may have spaces: only a word with a colon begins another room."""
    rooms: list[str] = []
    for word in text.replace(",", " ").split():
        if rooms and ":" not in word:
            rooms[-1] += f" {word}"
        else:
            rooms.append(word)
    return rooms
