"""`manage.py publish`: publish one event as a backbone would, to try things out."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import Error as DatabaseError  # noqa: TID251  (with the outbox, a message is a row first)
from redis.exceptions import RedisError

from realtime.management import base
from realtime.protocol.bus_message import InvalidMessage


class Command(base.Command):
    help = """Publish an event: manage.py publish thread:message '{"thread_id": "42", "message_id": "1"}'"""
    requires_system_checks = ("realtime",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("event", help="the name of the event in the catalogue, e.g. thread:message")
        parser.add_argument("data", nargs="?", default="{}", help="the data of the event, a JSON object")
        parser.add_argument(
            "--room",
            action="append",
            dest="rooms",
            help="a room, instead of the event's own; may be given several times",
        )
        parser.add_argument(
            "--namespace",
            action="append",
            dest="namespaces",
            help="publish only in this namespace; may be given several times",
        )
        parser.add_argument(
            "--id", help="an id: a message whose id was delivered in the last 10 minutes is dropped"
        )
        parser.add_argument(
            "--except", dest="exclude", help="the connection_id of a connection that does not get it"
        )

    def handle(self, *, event: str, data: str, **options: Any) -> None:
        from realtime.publisher import publish  # noqa: PLC0415  (a package `presence` may be another one)

        names = ("rooms", "namespaces", "id", "exclude")
        try:
            publish(event, _object(data), **{name: options[name] for name in names})
        except InvalidMessage as error:
            raise CommandError(str(error), returncode=2) from error
        except (RedisError, OSError) as error:
            raise CommandError(f"cannot reach Redis: {error}", returncode=2) from error
        except DatabaseError as error:
            raise CommandError(f"cannot write into the outbox: {error}".strip(), returncode=2) from error


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"the data is not JSON: {error}", returncode=2) from error
    if not isinstance(data, dict):
        raise CommandError(f"the data must be a JSON object, got {text[:80]}", returncode=2)
    return data
