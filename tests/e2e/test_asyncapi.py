"""What really travels fits the AsyncAPI document that the server itself serves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft7Validator

from tests.e2e.harness import Client, Stack, eventually, unique


class Document:
    """The served document, as validators of its messages."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.channels = found["channels"]
        self.messages = {
            key: Draft7Validator({**message["payload"], "components": found["components"]})
            for key, message in found["components"]["messages"].items()
        }
        self.event_of = {key: message["name"] for key, message in found["components"]["messages"].items()}

    def check(self, channel: str, key: str, value: Any) -> None:
        assert key in self.channels[channel]["messages"], f"{key} is no message of {channel}"
        self.messages[key].validate(value)


class Recorded:
    """A client that remembers what its frames were about, to know which acknowledgement it gets."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.sent: list[tuple[dict[str, Any], dict[str, Any]]] = []

    async def ask(self, event: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send with an id; returns the answering frame."""
        frame = {"event": event, "data": data or {}, "id": unique()}
        await self.client.websocket.send(json.dumps(frame))
        answer = await eventually(
            lambda: next((each for each in self.client.frames if each.get("id") == frame["id"]), None)
        )
        self.sent.append((frame, answer))
        return answer

    def check(self, document: Document) -> set[str]:
        """Validate everything sent and received; returns what was received."""
        events = {answer["id"]: frame["event"] for frame, answer in self.sent}
        seen = set()
        for frame, answer in self.sent:
            if answer["event"] == "ack":
                document.check(self.namespace, f"client.{_key(frame['event'])}", frame)
        for frame in self.client.frames:
            key = f"server.{_key(frame['event'])}"
            if frame["event"] == "ack":
                key = f"ack.{_key(events[frame['id']])}"
            document.check(self.namespace, key, frame)
            seen.add(key)
        return seen


def _key(event: str) -> str:
    return event.replace(":", ".")


@pytest.fixture
async def document(uvicorn_stack: Stack) -> Document:
    response = await uvicorn_stack.http("GET", "/asyncapi.json", [("Origin", "http://studio.test")])
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == "*"
    return Document(json.loads(response.body))


async def test_what_clients_send_and_get_is_as_described(uvicorn_stack: Stack, document: Document):
    stack, thread, group = uvicorn_stack, unique("th"), unique("g")
    attendant, customer = unique("u"), unique("u")
    async with (
        stack.client("hub", attendant, groups=[group]) as hub_client,
        stack.client("portal", customer, threads=[thread]) as portal_client,
    ):
        hub, portal = Recorded(hub_client, "hub"), Recorded(portal_client, "portal")
        for side in (hub, portal):
            joined = await side.ask("join:thread", {"thread_id": thread})
            await side.ask("join:thread", {"thread_id": thread, "since": joined["data"]["offset"]})
            rooms = {f"thread:{thread}": joined["data"]["offset"], "user:another": "1"}
            await side.ask("resume", {"rooms": rooms})
        for side in (hub, portal):
            await side.ask("typing:start", {"thread_id": thread})
            await side.ask("typing:stop", {"thread_id": thread})
            await side.ask("cursor:move", {"thread_id": thread, "position": [1, {"line": 2}]})
            await side.ask("heartbeat")
            await side.ask("nonsense")
        await hub.ask("presence:away")
        await hub.ask("presence:online")
        await hub.ask("auth:refresh", {"token": stack.token(attendant, "attendant", groups=[group])})
        published: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("thread:message", {"thread_id": thread, "message_id": 1, "body": "hi"}, {"id": unique()}),
            ("chat:accepted", {"thread_id": thread, "attendant_id": attendant, "user_id": customer}, {}),
            ("user:notification", {"user_id": attendant}, {}),
            ("user:notification", {"user_id": customer}, {"namespaces": ["portal"]}),
            ("queue:new", {"item_id": 5, "group": group}, {}),
            ("queue:taken", {"item_id": 5, "group": group}, {"except": "none"}),
            ("queue:updated", {}, {"rooms": [f"presence:{group}"]}),
            ("chat:ended", {"thread_id": thread}, {}),
            ("presence:set", {"user_id": attendant, "status": "away"}, {}),
            ("thread:revoke", {"thread_id": thread, "user_id": customer}, {}),
        ]
        for event, data, more in published:
            document.check("stream", f"bus.{_key(event)}", {"event": event, "data": data, **more})
            stack.add(event, data, **more)
        await hub_client.expect("attendant:away", user_id=attendant)
        await hub_client.expect("chat:ended")
        await portal_client.expect("room:left")
        both = {"connection.ready", "error", "thread.message", "thread.typing", "thread.cursor"}
        both |= {"chat.accepted", "chat.ended", "user.notification"}
        team = {"attendant.online", "attendant.away", "presence.state"}
        team |= {"queue.new", "queue.taken", "queue.updated"}
        seen = hub.check(document)
        assert {f"server.{name}" for name in both | team} <= seen
        assert {f"server.{name}" for name in both | {"room.left"}} <= portal.check(document)
    for transition in stack.transitions(attendant):
        document.check("presence", "transition", transition)
    ours = (thread, attendant, customer, group)  # other tests leave dead letters of their own
    assert not [letter for letter in stack.dead_letters() if any(mark in letter["message"] for mark in ours)]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("join:thread", {}),
        ("join:thread", {"thread_id": "a b"}),
        ("join:thread", {"thread_id": "x" * 65}),
        ("join:thread", {"thread_id": "1", "since": ""}),
        ("cursor:move", {"thread_id": "1"}),
        ("resume", {"rooms": ["thread:1"]}),
        ("auth:refresh", {"token": 7}),
    ],
)
async def test_what_the_document_does_not_allow_is_refused(
    uvicorn_stack: Stack, document: Document, event: str, data: dict[str, Any]
):
    async with uvicorn_stack.client("hub") as client:
        assert (await client.refused(event, data))["code"] == "invalid_payload"
    assert not document.messages[f"client.{_key(event)}"].is_valid({"event": event, "data": data})
