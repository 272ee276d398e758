"""The AsyncAPI document says exactly what the catalogue says, and any client may read it."""

from __future__ import annotations

from typing import Any

import pytest

from realtime.protocol.catalogue import catalogue
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.envelope import ErrorCode
from realtime.protocol.handshake_errors import RefusalCode
from realtime.protocol.namespaces import namespaces
from realtime.spec.asyncapi import document
from tests.inprocess import http


def names(found: dict[str, Any], channel: str, kind: str) -> set[str]:
    """The events that a channel's messages of this kind are about."""
    messages = found["channels"][channel]["messages"]
    return {found["components"]["messages"][key]["name"] for key in messages if key.startswith(f"{kind}.")}


@pytest.mark.parametrize("namespace", sorted(namespaces()))
def test_namespace_has_exactly_its_events(namespace: str):
    events, found = catalogue(), document()
    from_clients = {event.name for event in events.client.values() if namespace in event.namespaces}
    to_clients = {event.name for event in events.server.values() if namespace in event.namespaces}
    assert names(found, namespace, "client") == from_clients
    assert names(found, namespace, "server") == to_clients - {"ack"}
    assert names(found, namespace, "ack") == {"ack"}


@pytest.mark.parametrize("way_in", ["stream", "events"])
def test_bus_has_exactly_what_may_be_published(way_in: str):
    events = catalogue()
    published = {event.name for event in events.server.values() if event.bus}
    assert names(document(), way_in, "bus") == published | set(events.control)


def test_every_message_is_part_of_a_channel():
    found = document()
    assert set(found["components"]["messages"]) == {
        name for channel in found["channels"].values() for name in channel["messages"]
    }


@pytest.mark.parametrize("namespace", sorted(namespaces()))
def test_every_client_event_is_answered_by_its_acknowledgement_or_an_error(namespace: str):
    found = document()
    for event in catalogue().client.values():
        if namespace in event.namespaces:
            name = event.name.replace(":", ".")
            operation = found["operations"][f"{namespace}.{name}"]
            assert operation["action"] == "receive"
            assert [each["$ref"].rpartition("/")[2] for each in operation["reply"]["messages"]] == [
                f"ack.{name}",
                "server.error",
            ]


def test_references_lead_somewhere():
    found = document()

    def follow(value: Any) -> int:
        if isinstance(value, list):
            return sum(map(follow, value))
        if not isinstance(value, dict):
            return 0
        if "$ref" in value:
            target: Any = found
            for part in value["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            return 1
        return sum(map(follow, value.values()))

    assert follow(found) > 100


def test_codes_are_exactly_ours():
    found = document()
    assert {int(code) for code in found["x-close-codes"]} == set(CloseCode)
    assert set(found["x-refusals"]) == set(RefusalCode)
    error = found["components"]["messages"]["server.error"]["payload"]["properties"]["data"]
    assert set(error["properties"]["code"]["enum"]) == set(ErrorCode)


def test_close_code_says_whether_to_come_back():
    codes = document()["x-close-codes"]
    assert codes["4403"] == {"reason": "revoked", "reconnect": False}
    assert codes["1012"] == {"reason": "server restarting", "reconnect": True}


@pytest.mark.parametrize("allowed", [True, False])
def test_token_in_the_query_is_a_credential_only_where_it_is_accepted(settings, allowed: bool):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": allowed}
    found = document()
    assert ("query" in found["components"]["securitySchemes"]) is allowed
    assert ("token" in found["channels"]["hub"]["bindings"]["ws"]["query"]["properties"]) is allowed
    assert len(found["servers"]["sockets"]["security"]) == 2 + allowed


def test_channels_on_redis_have_the_prefix_of_this_installation(settings):
    settings.REALTIME = {**settings.REALTIME, "PREFIX": "shop"}
    channels = document()["channels"]
    addresses = {name: channels[name]["address"] for name in ("stream", "events", "presence")}
    assert addresses == {"stream": "shop:stream", "events": "shop:events", "presence": "shop:presence"}


async def test_any_page_may_read_it():
    answer = await http("/asyncapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.json == document()


async def test_it_holds_no_secret(settings):
    settings.REALTIME = {
        **settings.REALTIME,
        "REDIS_URL": "redis://user:hidden-password@hidden-host:6379/0",
        "METRICS_TOKEN": "hidden-token",
    }
    body = (await http("/asyncapi.json")).body.decode()
    assert "hidden" not in body
    assert settings.SIMPLE_JWT["SIGNING_KEY"] not in body
    assert settings.SECRET_KEY not in body
