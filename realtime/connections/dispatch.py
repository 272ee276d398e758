"""From a client's frame to its handler: the envelope, the catalogue, and the answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable

import msgspec
from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.connections.interface import Connection
from realtime.protocol.catalogue import ClientEvent, catalogue
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.envelope import Envelope, ErrorCode, EventError, InvalidFrame, decode
from realtime.protocol.outgoing import OutgoingData
from realtime.protocol.payloads import InvalidPayload, Payload, parse_payload
from realtime.protocol.values import encode, plain
from realtime.tasks.stepping import first_step
from realtime.telemetry import metrics, tracing
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

_COUNT_AS_INVALID = frozenset(
    {ErrorCode.INVALID_JSON, ErrorCode.INVALID_ENVELOPE, ErrorCode.UNKNOWN_EVENT, ErrorCode.INVALID_PAYLOAD}
)


class FrameDispatch:
    """Answers the frames of one connection."""

    __slots__ = ("_connection", "_invalid_in_a_row")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._invalid_in_a_row = 0

    def begin(self, text: str | None, retry_after: float = 0.0) -> Awaitable[None] | None:
        """Answer one frame: exactly once if it has an id, and with an error if it is refused.

        `text` is None for a binary frame. `retry_after` is how many seconds the frame came too early. What has to wait
        for something is left, and returned to be awaited.
        """
        frame_id: str | int | None = None
        try:
            if text is None:
                raise InvalidFrame(ErrorCode.INVALID_ENVELOPE, "expected a text frame, got a binary one")
            frame = decode(text)
            frame_id = frame.id
            if retry_after:
                raise _too_fast(retry_after)
            event, payload = self._read(frame)
        except EventError as error:
            if isinstance(error, InvalidFrame):
                frame_id = error.id
                error = _too_fast(retry_after) if retry_after else error
            self._refuse(error, frame_id)
            return None
        answering = self._answer(event, payload, frame_id)
        return answering if event.waits or self._connection.layer.emit_waits else first_step(answering)

    def _read(self, frame: Envelope) -> tuple[ClientEvent, Payload]:
        """The event and its payload. Raises `EventError`."""
        namespace = self._connection.namespace
        event = catalogue().client.get(frame.event)
        if event is None:
            raise EventError(ErrorCode.UNKNOWN_EVENT, f"unknown event {frame.event[:64]!r}")
        if namespace not in event.namespaces:
            raise EventError(ErrorCode.FORBIDDEN, f"{event.name} is not for {namespace}")
        try:
            return event, parse_payload(event.payload, frame.data)
        except InvalidPayload as error:
            raise EventError(ErrorCode.INVALID_PAYLOAD, str(error)) from error

    async def _answer(self, event: ClientEvent, payload: Payload, frame_id: str | int | None) -> None:
        try:
            answer = await self._run_handler(event, payload)
        except EventError as error:
            self._refuse(error, frame_id)
        else:
            self._invalid_in_a_row = 0
            if frame_id is not None:
                self._connection.write_event("ack", answer, id=frame_id)

    async def _run_handler(self, event: ClientEvent, payload: Payload) -> OutgoingData:
        metrics.frames_in(event.name).inc()
        try:
            with tracing.client_event(event.name, self._connection.namespace):
                return _acknowledgement(event, await event.handler(self._connection, payload))
        except EventError:
            raise
        except (RedisError, OSError) as error:  # of Redis, or of a service of the product's
            logger.warning("event failed", extra={"event": event.name, "error": spelled(error)})
            raise EventError(ErrorCode.UNAVAILABLE, "not possible right now; try again") from error
        except Exception as error:
            logger.exception("event handler failed", extra={"event": event.name})
            raise EventError(ErrorCode.INTERNAL, "something went wrong here") from error

    def _refuse(self, error: EventError, frame_id: str | int | None) -> None:
        metrics.ERRORS.labels(error.code).inc()
        data = {"code": error.code, "message": error.message, **error.data}
        self._connection.write_event("error", data, id=frame_id)
        if error.code in _COUNT_AS_INVALID:
            self._invalid_in_a_row += 1
            if self._invalid_in_a_row >= conf().limits.invalid_frames > 0:
                self._connection.terminate(CloseCode.INVALID_FRAMES)


def _acknowledgement(event: ClientEvent, answer: object) -> OutgoingData:
    """What a handler returned, as the client gets it. Raises `TypeError` when it is not what its annotation says."""
    data = plain(answer or {})
    if not isinstance(data, dict):
        raise TypeError(
            f"{event.name}: expected an object as the acknowledgement, got {type(answer).__name__}"
        )
    if event.check is None:
        return data
    try:
        return event.check(msgspec.Raw(encode(data)))
    except ValueError as error:
        raise TypeError(f"{event.name}: the acknowledgement does not fit its annotation: {error}") from None


def _too_fast(retry_after: float) -> EventError:
    """Made where it is raised: kept by the frame that raises it, it would keep the client's frame, too."""
    wait = math.ceil(retry_after * 1000) / 1000
    return EventError(ErrorCode.RATE_LIMITED, "too many frames", retry_after=wait)
