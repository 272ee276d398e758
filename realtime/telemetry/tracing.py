"""Traces, where `REALTIME["TRACING"]` asks for them and OpenTelemetry is installed (`realtime-sockets[otel]`).

One trace follows a bus message: `publish` in the backbone, `deliver` in the bridge, `fan out` in every instance that
has a connection in the room. The bus message and the publication carry the `traceparent` (W3C Trace Context). When
tracing is off, OpenTelemetry is not imported, and all that is left is the check of `tracer`.

Sampling and exporting are up to OpenTelemetry's SDK and its own configuration.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from realtime.conf import conf
from realtime.protocol.publication import Publication

if TYPE_CHECKING:  # an extra, which may not be installed
    from opentelemetry.trace import Span as Span  # noqa: PLC0414  (for `realtime.bridge.batch`, too)
    from opentelemetry.trace import Tracer

tracer: Tracer | None = None
"""None when tracing is off."""

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()
_SCOPE = "realtime.handshake"


def start() -> None:
    """Begin to trace, if the settings say so. Raises `ImproperlyConfigured` when OpenTelemetry is not installed."""
    global tracer
    if not conf().tracing:
        tracer = None
        return
    try:
        from opentelemetry import trace  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ImproperlyConfigured(
            "REALTIME['TRACING'] is on, and opentelemetry-api is not installed: "
            "pip install 'realtime-sockets[otel]'"
        ) from error
    tracer = trace.get_tracer("realtime")


def client_event(name: str, namespace: str) -> AbstractContextManager[Any]:
    """A span around the handler of a client's event."""
    if tracer is None:
        return _NOTHING
    return tracer.start_as_current_span(
        f"event {name}", attributes={"realtime.event": name, "realtime.namespace": namespace}
    )


# --- Handshakes --------------------------------------------------------------------------------------


def begin_handshake(scope: dict[str, Any], namespace: str) -> None:
    """Begin the span of a handshake, in the trace of the proxy or of the client if they have begun one."""
    if tracer is not None:
        headers = dict(scope["headers"])
        scope[_SCOPE] = tracer.start_span(
            f"handshake {namespace}",
            context=_context(headers.get(b"traceparent", b"").decode("latin-1")),
            kind=_kind("SERVER"),
            attributes={"realtime.namespace": namespace},
        )


def end_handshake(scope: Any, result: str) -> None:
    """End the span of a handshake; `result` is `accepted`, or the code of the refusal."""
    if (span := scope.pop(_SCOPE, None)) is not None:
        span.set_attribute("realtime.result", result)
        span.end()


# --- From the backbone to the browser ----------------------------------------------------------------


@contextlib.contextmanager
def _publishing(event: str) -> Iterator[str | None]:
    assert tracer is not None  # noqa: S101
    with tracer.start_as_current_span(
        f"publish {event}", kind=_kind("PRODUCER"), attributes={"realtime.event": event}
    ) as span:
        yield traceparent(span)


def publish(event: str) -> AbstractContextManager[str | None]:
    """A span around publishing; yields the `traceparent` for the bus message."""
    return _NOTHING if tracer is None else _publishing(event)


def deliver(event: str, parent: str | None) -> Span | None:
    """Begin the span of a bus message that a bridge delivers; the caller ends it."""
    if tracer is None:
        return None
    return tracer.start_span(
        f"deliver {event}",
        context=_context(parent or ""),
        kind=_kind("CONSUMER"),
        attributes={"realtime.event": event},
    )


def fanned_out(publications: Sequence[Publication], connections: int, begun: int) -> None:
    """Record spans of publications that were handed to connections of this instance and that belong to a trace.

    `begun`: when that began, in nanoseconds since the epoch.
    """
    if tracer is None:
        return
    ended = time.time_ns()
    for publication in publications:
        if publication.traceparent:
            event = publication.frame[10 : publication.frame.find(b'"', 10)].decode(errors="replace")
            span = tracer.start_span(
                f"fan out {event}",
                context=_context(publication.traceparent),
                kind=_kind("CONSUMER"),
                start_time=begun,
                attributes={"realtime.connections": connections},
            )
            span.end(ended)


def traceparent(span: Span) -> str | None:
    """The span as a W3C `traceparent`; None when it is not recorded."""
    from opentelemetry.trace import set_span_in_context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    if not span.is_recording():
        return None
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get("traceparent")


def _context(parent: str) -> Any:
    """The context of a `traceparent`; an empty one when the text is not valid."""
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())


def _kind(name: str) -> Any:
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    return SpanKind[name]
