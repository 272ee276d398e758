"""Traces: one from the backbone to the browser, and nothing at all where they are off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from unittest.mock import AsyncMock

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from realtime import publisher
from realtime.auth.issuing import issue
from realtime.bridge.batch import Batch
from realtime.bridge.bus_entry import BUS
from realtime.checks.publishing import check_settings
from realtime.connections import handshake
from realtime.protocol.publication import Publication, unpack
from realtime.redis.pipelining import pipes
from realtime.telemetry import tracing
from tests.inprocess import Connection, add, bearer, bridging, connected, dead_letters, eventually, refusal

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Spans:
    """What was recorded."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        await eventually(lambda: self.named(name))
        [span] = self.named(name)
        return span


@pytest.fixture
def spans(process: str, settings, monkeypatch) -> Iterator[Spans]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    settings.REALTIME = {**settings.REALTIME, "TRACING": True}
    tracing.start()
    yield Spans(exporter)
    settings.REALTIME = {**settings.REALTIME, "TRACING": False}
    tracing.start()
    provider.shutdown()


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def identity(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


@pytest.mark.usefixtures("without_outbox")
async def test_trace_of_a_message_goes_from_the_backbone_to_the_fan_out(spans: Spans, monkeypatch):
    monkeypatch.setattr(publisher.transaction, "get_connection", lambda using: NoTransaction)
    async with bridging(), connected() as ana:
        await ana.call("join:thread", {"thread_id": "42"})
        await sync_to_async(publisher.publish)("thread:message", {"thread_id": "42", "message_id": "1"})
        await ana.expect("thread:message")
        published = await spans.one("publish thread:message")
        delivered = await spans.one("deliver thread:message")
        fanned_out = await spans.one("fan out thread:message")
    assert parent(published) is None
    assert parent(delivered) == identity(published)
    assert parent(fanned_out) == identity(delivered)
    assert fanned_out.attributes == {"realtime.connections": 1}
    assert "traceparent" not in str(ana.ready)


class NoTransaction:
    in_atomic_block = False


async def test_trace_that_a_backbone_in_another_language_began_goes_on(spans: Spans):
    async with bridging(), connected() as ana:
        await ana.call("join:thread", {"thread_id": "42"})
        data = {"thread_id": "42", "message_id": "1"}
        await add("thread:message", data, traceparent=TRACEPARENT, **{"except": ana.ready["connection_id"]})
        await add("thread:message", {**data, "message_id": "2"}, traceparent="nonsense")
        frame = await ana.expect("thread:message")
        await eventually(lambda: len(spans.named("fan out thread:message")) == 2)
    assert frame["data"]["message_id"] == "2", "the connection that is excepted is still recorded apart"
    await eventually(lambda: len(spans.named("deliver thread:message")) == 2)
    traces = [f"{span.get_span_context().trace_id:032x}" for span in spans.named("deliver thread:message")]
    assert traces[0] == TRACE
    assert traces[1] != TRACE
    assert await dead_letters() == []


async def test_message_that_is_delivered_again_has_no_second_span(spans: Spans):
    encoded = b'{"event": "thread:message", "data": {"thread_id": "42", "message_id": "1"}}'
    for again in ("", "9"):
        await Batch([BUS.entry(b"1-0", [b"message", encoded], again)], pipes()).send()
    assert len(spans.named("deliver thread:message")) == 1


async def test_what_is_replayed_still_leaves_out_the_excepted_connection(spans: Spans):
    async with bridging(), connected() as ana, connected(user_id="8") as ben:
        await ana.call("join:thread", {"thread_id": "42"})
        offset = (await ben.call("join:thread", {"thread_id": "42"}))["offset"]
        data = {"thread_id": "42", "message_id": "1"}
        await add("thread:message", data, **{"except": ben.ready["connection_id"]})
        await ana.expect("thread:message")
        await ben.call("leave:thread", {"thread_id": "42"})
        await ben.call("join:thread", {"thread_id": "42", "since": offset})
        await ben.nothing("thread:message")


async def test_handshake_is_a_span_with_its_result(spans: Spans):
    headers = [*bearer(issue(user_id="7", role="attendant")), (b"traceparent", TRACEPARENT.encode())]
    await refusal("/portal/", headers=headers)
    async with connected():
        pass
    refused, accepted = await spans.one("handshake portal"), await spans.one("handshake hub")
    assert (refused.attributes or {})["realtime.result"] == "forbidden_role"
    assert refused.context is not None
    assert f"{refused.context.trace_id:032x}" == TRACE
    assert (accepted.attributes or {})["realtime.result"] == "accepted"


async def test_clients_event_is_a_span_and_a_made_up_one_is_none(spans: Spans):
    async with connected() as ana:
        await ana.call("join:thread", {"thread_id": "42"})
        await ana.refused("made:up")
        span = await spans.one("event join:thread")
    assert span.attributes == {"realtime.event": "join:thread", "realtime.namespace": "hub"}
    assert spans.named("event made:up") == []


async def test_no_span_names_a_user_a_room_or_a_connection(spans: Spans):
    async with bridging(), connected(user_id="u-secret") as ana:
        await ana.call("join:thread", {"thread_id": "th-secret"})
        await add("thread:message", {"thread_id": "th-secret", "message_id": "1"})
        await ana.expect("thread:message")
        await spans.one("fan out thread:message")
    recorded = "".join(span.to_json() for span in spans.all())
    for secret in ("secret", ana.ready["connection_id"]):
        assert secret not in recorded


def test_trace_that_is_not_recorded_is_not_sent_along(settings, monkeypatch):
    provider = TracerProvider(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    settings.REALTIME = {**settings.REALTIME, "TRACING": True}
    tracing.start()
    with tracing.publish("thread:message") as traceparent:
        assert traceparent is None
    settings.REALTIME = {**settings.REALTIME, "TRACING": False}
    tracing.start()
    provider.shutdown()


async def test_handshake_that_fails_in_between_ends_its_span(spans: Spans, monkeypatch):
    monkeypatch.setattr(handshake, "authorize", AsyncMock(side_effect=RuntimeError("oh")))
    communicator = Connection("/hub/", headers=[]).communicator
    await communicator.send_input({"type": "websocket.connect"})
    with pytest.raises(RuntimeError, match="oh"):
        await communicator.future
    assert (await spans.one("handshake hub")).attributes["realtime.result"] == "failed"  # type: ignore[index]


def test_publication_is_read_with_and_without_a_trace():
    def packed(excluded: bytes) -> bytes:
        return b"F%016d%016d%012d%06d" % (1, 2, 1, len(excluded)) + excluded + b"{}"

    connection = "c" * 32
    for excluded in ("", connection):
        assert unpack(packed(excluded.encode())) == Publication(2, 1, excluded, b"{}")
        assert unpack(packed(f"{excluded}\0{TRACEPARENT}".encode())) == Publication(
            2, 1, excluded, b"{}", TRACEPARENT
        )


# --- Off ---------------------------------------------------------------------------------------------


def test_nothing_needs_the_package_while_it_is_off():
    script = (
        "import os, sys; os.environ['DJANGO_SETTINGS_MODULE'] = 'realtime.settings.sockets'\n"
        "sys.modules['opentelemetry'] = None\n"
        "import realtime.bridge.bridge, realtime.telemetry.tracing\nfrom realtime.asgi import application\n"
        "print(realtime.telemetry.tracing.tracer)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_missing_package_is_said_when_it_is_on(settings, monkeypatch):
    settings.REALTIME = {**settings.REALTIME, "TRACING": True}
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install 'realtime-sockets\[otel\]'"):
        tracing.start()
    monkeypatch.setattr("realtime.checks.publishing.find_spec", lambda name: None)
    assert "realtime.E013" in [message.id for message in check_settings(None)]
