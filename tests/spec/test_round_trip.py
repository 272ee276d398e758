"""What is sent fits the types that are generated: random types and values, from Python to the client's frame."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft7Validator

from realtime.connections.dispatch import FrameDispatch
from realtime.protocol import bus_message, catalogue, values
from realtime.protocol.catalogue import Registry, client_event, server_event
from realtime.protocol.envelope import encode, frame_head
from realtime.protocol.outgoing import outgoing
from realtime.protocol.payloads import Empty, Payload
from realtime.spec.asyncapi import document
from realtime.spec.typescript import events_typescript
from tests.e2e.harness import ROOT
from tests.wire.shapes import acks, payloads

CLIENT = ROOT / "client"
ROOM = "user:7"
MANY = settings(max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))


@contextmanager
def only(payload: type[Payload] = Empty, handler: Any = None) -> Iterator[None]:
    """A catalogue with this event from the server, and this handler of a client's."""
    with (
        mock.patch.object(catalogue, "registry", Registry()),
        mock.patch.object(catalogue, "BUILT_IN", ()),
    ):
        catalogue.catalogue.cache_clear()
        schema_of.cache_clear()
        server_event("random:event", rooms=lambda _: [ROOM])(payload)
        if handler is not None:
            client_event("random:call")(handler)
        yield
    catalogue.catalogue.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def loaded() -> Iterator[None]:
    """The modules of events are imported, so that none registers its events where only random ones should be."""
    catalogue.catalogue()
    yield
    catalogue.catalogue.cache_clear()


@cache
def schema_of(message: str) -> dict[str, Any]:
    """The schema of a message in the document of this catalogue."""
    found = document()
    schema = {**found["components"]["messages"][message]["payload"], "components": found["components"]}
    Draft7Validator.check_schema(schema)
    return schema


def check(message: str, frame: str) -> None:
    """The frame is valid by the document of this catalogue."""
    validator = Draft7Validator(schema_of(message), format_checker=Draft7Validator.FORMAT_CHECKER)
    validator.validate(json.loads(frame))


def bus_message_of(data: dict[str, Any]) -> bytes:
    """What a backbone publishes."""
    return values.encode({"event": "random:event", "data": data})


def published(message: bytes) -> str:
    """The frame that a bridge makes of it."""
    head = frame_head("random:event", ROOM)
    return (head + b"1-0" + bus_message.parse(message).tail).decode()


def emitted(data: dict[str, Any]) -> str:
    """The frame of what a handler emits."""
    return encode("random:event", outgoing("random:event", data), room=ROOM, offset="1-0")


def acknowledged(answer: Any) -> str:
    """The frame of what a handler returns."""
    frames: list[str] = []

    def write_event(event: str, data: Any, *, id: int) -> None:
        frames.append(encode(event, data, id=id))

    connection: Any = SimpleNamespace(namespace="hub", write_event=write_event)
    answering: Any = FrameDispatch(connection).begin('{"event": "random:call", "id": 1}')
    asyncio.run(answering)
    return frames[0]


def handler_of(kind: Any, answer: Any) -> Any:
    async def handler(connection: Any, payload: Empty) -> Any:
        return answer

    handler.__annotations__ |= {"payload": Empty, "return": kind}
    return handler


@MANY
@given(payloads())
def test_frame_of_an_event_fits_the_document_and_a_backbone_may_publish_what_it_holds(
    made: tuple[type[Payload], dict[str, Any]],
):
    kind, data = made
    with only(kind):
        message = bus_message_of(data)
        frame = published(message)
        again = bus_message_of(json.loads(frame)["data"])
        for each in (message, again):
            check("bus.random.event", each.decode())
        for each in (frame, emitted(data)):
            check("server.random.event", each)
        assert json.loads(published(again)) == json.loads(frame)


@MANY
@given(acks())
def test_frame_of_an_acknowledgement_fits_the_document(made: tuple[Any, Any]):
    kind, answer = made
    with only(handler=handler_of(kind, answer)):
        check("ack.random.call", acknowledged(answer))


@pytest.mark.needs_tools
def test_frames_fit_the_compiled_types(tmp_path: Path):
    found: list[str] = []

    @settings(
        max_examples=300, phases=[Phase.generate], derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(payloads(), acks())
    def collect(event: tuple[type[Payload], dict[str, Any]], ack: tuple[Any, Any]) -> None:
        with only(event[0], handler_of(*ack)):
            values_by_type = {
                '"random:event"': ("ServerEvents", published(bus_message_of(event[1]))),
                '"random:call"': ("Acks", acknowledged(ack[1])),
            }
            lines = [events_typescript()]
            for name, (interface, frame) in values_by_type.items():
                data = json.dumps(json.loads(frame)["data"])
                lines.append(f"export const {interface.lower()}: {interface}[{name}] = {data};")
            found.append("\n".join(lines))

    collect()
    namespaces = "\n".join(f"export namespace N{number} {{\n{text}\n}}" for number, text in enumerate(found))
    compile_typescript(tmp_path, namespaces)


def compile_typescript(folder: Path, text: str) -> None:
    (folder / "values.ts").write_text(text)
    options = {
        "strict": True,
        "noEmit": True,
        "types": [],
        "exactOptionalPropertyTypes": True,
        "target": "ES2022",
    }
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["values.ts"]}))
    command = [CLIENT / "node_modules" / ".bin" / "tsc", "--project", folder]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:5000]
