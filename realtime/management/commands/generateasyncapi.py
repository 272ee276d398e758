"""`manage.py generateasyncapi`: the protocol of this installation as an AsyncAPI document, on stdout."""

from __future__ import annotations

from typing import Any

import msgspec

from realtime.management import base
from realtime.spec.asyncapi import asyncapi_json


class Command(base.Command):
    help = (
        "Print the AsyncAPI 3 document of this installation: every event, in both directions and on the bus."
    )

    def handle(self, **_: Any) -> None:
        self.stdout.write(msgspec.json.format(asyncapi_json(), indent=2).decode())
