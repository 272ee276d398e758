"""`manage.py generateasyncapi`: the protocol of this installation as an AsyncAPI document, on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from realtime.management.generator import Generator
from realtime.spec.asyncapi import asyncapi_json


class Command(Generator):
    help = (
        "Print the AsyncAPI 3 document of this installation: every event, in both directions and on the bus."
    )

    def generate(self, options: Mapping[str, Any]) -> str:
        return msgspec.json.format(asyncapi_json(), indent=2).decode() + "\n"
