"""One WebSocket connection, as every namespace has them."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

import msgspec
from channels.exceptions import StopConsumer
from redis.exceptions import RedisError

from realtime.auth.credentials import SUBPROTOCOL
from realtime.conf import cached, conf
from realtime.connections import ephemeral, handshake, rights, user_limit
from realtime.connections.arrivals import Arrival, arrivals
from realtime.connections.deadlines import Deadlines
from realtime.connections.dispatch import FrameDispatch
from realtime.connections.event_driven import EventDrivenConsumer
from realtime.connections.frame_outlet import ConnectionOutlet, FrameWriter
from realtime.connections.hooks import ConnectionHooks
from realtime.connections.rate_limit import FrameRate
from realtime.connections.registry import ConnectionRegistry
from realtime.connections.rooms import Rooms
from realtime.layers.configured import channel_layer
from realtime.layers.interface import room_layer
from realtime.layers.outlets import text_frame
from realtime.protocol.close_codes import LOST, NO_CODE, REASONS, By, CloseCode, fitting_reason
from realtime.protocol.envelope import encode, iso
from realtime.protocol.events import ConnectionLimits
from realtime.protocol.handshake_errors import RefusalCode
from realtime.protocol.namespaces import Namespace
from realtime.protocol.outgoing import OutgoingData, outgoing
from realtime.protocol.principal import Principal
from realtime.telemetry import metrics, tracing
from realtime.telemetry.logs import digest, spelled

logger = logging.getLogger(__name__)


class NamespaceConsumer(ConnectionHooks, EventDrivenConsumer):
    """A connection to a namespace, as it is `declared`. Handlers of client events get it as their first argument.

    Its frames and timers are dealt with one at a time, in turn. What its rooms receive is written as it comes
    (`realtime.layers.listener`), and an order to end the connection, or to leave a room, takes effect at once.
    """

    # Only what subclasses add is in a dict.
    __slots__ = (
        "_admitted", "_ended_early", "_gone", "_order", "_registry", "accepted", "connection_id", "deadlines",
        "declared", "frames", "layer", "namespace", "opened_at", "outlet", "principal", "rate", "rooms",
        "said_closed", "typing",
    )  # fmt: skip

    def __init__(self, *args: Any, declared: Namespace, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.declared = declared
        self.namespace = declared.name
        self.connection_id = os.urandom(16).hex()
        self.opened_at = 0.0
        """When Redis let the connection in, by its clock, in seconds; 0: not yet."""
        self.accepted = False
        self.outlet: ConnectionOutlet
        self.rate = FrameRate()
        self.typing = ephemeral.Typing(self)
        self.rooms = Rooms(self, self.typing)
        self.frames = FrameDispatch(self)
        self.deadlines = Deadlines(self)
        self._registry = ConnectionRegistry.current()
        self._ended_early: tuple[CloseCode, str] | None = None  # by an order, before it was accepted
        self._order: tuple[float, str] | None = None  # to disconnect the user, before `opened_at` was known
        self._admitted: user_limit.UserConnection | None = None
        self._gone = self.said_closed = False

    @property
    def facts(self) -> dict[str, str]:
        """What every log line about this connection says."""
        return {"connection_id": self.connection_id, "namespace": self.namespace, "user": digest(*self.user)}

    # --- Life cycle ------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.principal = scope["principal"]
        await super().__call__(scope, receive, send)

    def begin(self, writer: FrameWriter) -> None:
        self.outlet = ConnectionOutlet(
            self, writer
        )  # before what can fail: the end of the connection needs it
        self.channel_layer = channel_layer(self.channel_layer_alias)
        self.layer = room_layer(self.channel_layer_alias)

    async def websocket_connect(self, message: Any) -> None:
        try:
            await self.connect()
        except StopConsumer:
            raise
        except Exception as error:
            if isinstance(error, OSError) and not self.accepted:
                raise  # the peer is gone
            if not isinstance(error, handshake.Refused):
                logger.exception("handshake failed")
            if not self.accepted:
                refused = error if isinstance(error, handshake.Refused) else handshake.unavailable()
                await handshake.deny(self.scope, self.base_send, refused, self.namespace)
                raise StopConsumer from None

    async def connect(self) -> None:
        """Enter the initial rooms, check that nothing was revoked meanwhile, accept, say `connection:ready`."""
        try:
            async with asyncio.timeout(conf().limits.handshake_seconds or None):
                await self._enter()
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            logger.warning("handshake failed", extra={"error": spelled(error)})
            raise handshake.unavailable() from error
        if self._ended_early:
            raise _refusal(*self._ended_early)
        chosen = SUBPROTOCOL if SUBPROTOCOL in (self.scope.get("subprotocols") or ()) else None
        await self.accept(subprotocol=chosen)
        self.accepted = True
        _say_opened(self)
        if self._ended_early:
            self.ended = False
            self.terminate(*self._ended_early)
            return
        self.write_event("connection:ready", _ready(self))
        self.deadlines.begin()
        self.rooms.begin()
        await self.on_ready()

    async def _enter(self) -> None:
        self.channel_name = await self.layer.attach(self.outlet)
        await self._registry.start()
        handshake.check_capacity()  # no `await` before the next line, which takes the place
        self._registry.add(self)
        # In the registry first, checked second: a revoke in between is either found or signalled to this connection.
        self._admitted = user_limit.UserConnection(*self.user, self.channel_name)
        if (arrival := await _arrive(self, self._admitted)) is None:
            raise _refusal(CloseCode.REVOKED, "the token was revoked or its user disconnected")
        self.opened_at = arrival.opened_at
        self.rooms.arrived(self.opened_at)
        if arrival.surplus:
            await user_limit.close_oldest(self._admitted, arrival.surplus)
        if self._order is not None:
            self.user_disconnected(*self._order)
        await self.on_enter()

    def user_disconnected(self, at: float, reason: str) -> None:
        """The user was disconnected by an operator: close the connection if it was opened at `at` or before."""
        if not self.opened_at:
            self._order = max(self._order or (at, reason), (at, reason))  # judged when Redis has answered
        elif self.opened_at <= at:
            self.terminate(CloseCode.REVOKED, reason)

    def terminate(self, code: CloseCode, reason: str = "") -> None:
        """Close the connection now: nothing is written after this. Without a reason, the code's usual one is sent."""
        if self.ended:
            return
        self.ended = True
        self.rooms.close()
        reason = fitting_reason(reason) or REASONS[code]
        if self.accepted:
            _say_closed(self, By.SERVER, code, reason)
            self.outlet.writer.close(int(code), reason)
        else:
            self._ended_early = code, reason

    async def websocket_disconnect(self, message: Any) -> None:
        self.ended = True
        _say_closed(self, *(self.outlet.writer.ending or _ending(message)))
        raise StopConsumer

    async def clean_up(self) -> None:
        if self._gone:
            return
        self._gone = self.ended = True
        tracing.end_handshake(self.scope, "gone")
        _say_closed(self, *(self.outlet.writer.ending or (By.LOST, LOST, "")))
        self.cancel_all()
        self.deadlines.end()
        self._registry.remove(self)
        if self.accepted:
            metrics.connections(self.namespace).dec()
        release = partial(user_limit.release, self._admitted)
        for step in (self.typing.stop_everywhere, self.on_gone, self.rooms.leave_all, release):
            try:
                await step()
            except (RedisError, OSError) as error:
                logger.warning("clean-up incomplete", extra={"error": spelled(error)})
            except Exception:  # in a hook: the remaining steps are taken all the same
                logger.exception("handler failed", extra={"type": "clean-up"})
        if getattr(self, "channel_name", None):
            self.layer.detach(self.channel_name)

    # --- Frames ----------------------------------------------------------------------------------

    def charge(self, size: int) -> float:
        wait = self.rate.take(size)
        if wait and self.rate.is_persistent:
            self.terminate(CloseCode.RATE_LIMITED)
        return wait

    def receive_frame(self, message: Mapping[str, Any]) -> Awaitable[None] | None:
        wait = message.get("retry_after")
        retry_after = self.charge(_size(message)) if wait is None else wait
        self.on_frame()
        self.deadlines.heard()
        rest = self.frames.begin(message.get("text"), retry_after)
        if rest is not None:
            return self._receive_rest(rest)
        self.rooms.start_entered()
        return None

    async def _receive_rest(self, rest: Awaitable[None]) -> None:
        await rest
        self.rooms.start_entered()

    @property
    def unsent(self) -> int:
        """Bytes that wait for a client that reads too slowly."""
        return self.outlet.writer.unsent

    def write_event(self, event: str, data: OutgoingData, *, id: str | int | None = None) -> int:
        """Write a frame to this connection alone, once it is accepted: `connection:ready` says all that was before.

        Returns the number of bytes.
        """
        if not self.accepted or self.ended:
            return 0
        metrics.frames_out("direct", event).inc()
        frame = text_frame(encode(event, data, id=id).encode())
        self.outlet.write(frame)
        return len(frame)

    async def send_event(self, event: str, data: Mapping[str, object]) -> None:
        """`write_event` for products; raises `ValueError` when the data does not fit the event."""
        self.write_event(event, outgoing(event, data))

    async def send(  # type: ignore[override]  # as AsyncWebsocketConsumer does
        self, text_data: str | None = None, bytes_data: bytes | None = None, close: bool = False
    ) -> None:
        """Channels' way to send a frame. Everything is written by one writer, so that nothing overtakes anything."""
        if bytes_data is not None:
            raise TypeError("the protocol has text frames only")
        if text_data is not None and not self.ended:
            self.outlet.write(text_frame(text_data.encode()))
        if close:
            self.terminate(CloseCode.NORMAL)

    async def connection_replaced(self, message: dict[str, Any]) -> None:
        """The user has opened one connection too many, and this is the oldest."""
        self.terminate(CloseCode.REPLACED)

    async def renew(self, principal: Principal) -> None:
        """Go on with a fresh token: enter what it newly allows, leave what it no longer does."""
        previous, self.principal = self.principal, principal
        self._registry.refreshed(self, previous.jti)
        self.deadlines.renew()
        try:
            await rights.apply_token(self, self.rooms)
        finally:
            await self.on_principal_changed(previous)

    async def review(self) -> None:
        """Read the rights of this connection again: a revocation may have been missed. Raises `redis.RedisError`."""
        if self.opened_at:
            await rights.review(self, self.rooms)
        else:  # it is only just opening: its client has to try again
            self.terminate(CloseCode.RESTARTING)

    def expel(self, room: str, reason: str, *, before: float = math.inf) -> None:
        """Take this connection out of a room, now, if it entered before then (seconds of Redis' clock)."""
        self.rooms.expel(room, reason, before=before)
        self.on_expelled(room)

    async def emit(self, room: str, event: str, **data: Any) -> None:
        """Send an ephemeral event to the other members of a room, signed with this connection's user.

        It is not stored, so never replayed. Raises `redis.RedisError`, and `ValueError` for data that does not fit.
        """
        await ephemeral.emit(self, room, event, data)


async def _arrive(connection: NamespaceConsumer, place: user_limit.UserConnection) -> Arrival | None:
    """Take a place, and enter the initial rooms meanwhile. Raises `redis.RedisError`."""
    arriving = arrivals().ask(connection.principal, place)
    resumes = b"resume=1" in connection.scope.get("query_string", b"").split(b"&")
    try:
        await connection.rooms.enter_initial(connection.initial_rooms(), resumes=resumes)
        return await arriving
    finally:
        arriving.cancel()  # else it might take its place after the connection has gone


def _say_opened(connection: NamespaceConsumer) -> None:
    metrics.handshakes(connection.namespace, "accepted").inc()
    tracing.end_handshake(connection.scope, "accepted")
    metrics.connections(connection.namespace).inc()
    logger.info("connection opened", extra={"role": connection.principal.role})


def _say_closed(connection: NamespaceConsumer, by: By, code: int, reason: str) -> None:
    """Count and log which side ended the connection, and why. Only the first call counts."""
    if connection.accepted and not connection.said_closed:
        connection.said_closed = True
        metrics.closed(by, code)
        facts = {**connection.facts, "by": str(by), "code": int(code), "reason": reason}
        logger.info("connection closed", extra=facts)


def _ready(connection: NamespaceConsumer) -> dict[str, Any]:
    """The data of the first frame of a connection."""
    return {
        "connection_id": connection.connection_id,
        "namespace": connection.namespace,
        "user_id": connection.principal.user_id,
        "role": connection.principal.role,
        "heartbeat_interval": conf().heartbeat_interval,
        "expires_at": iso(connection.principal.expires_at),
        "rooms": {room: str(position) for room, position in connection.rooms.items()},
        "limits": _limits(),
    }


@cached()
def _limits() -> msgspec.Raw:
    """The limits that a client has to know, encoded: they are the same for every connection of the process."""
    limits = conf().limits
    announced = ConnectionLimits(
        frame_bytes=limits.frame_bytes, rate=limits.rate, burst=limits.burst, rooms=limits.rooms
    )
    return msgspec.Raw(msgspec.json.encode(announced))


def _refusal(code: CloseCode, reason: str) -> handshake.Refused:
    """The refusal of a handshake whose connection was ended before it was accepted."""
    if code == CloseCode.RESTARTING:
        is_draining = ConnectionRegistry.current().is_draining
        return handshake.draining() if is_draining else handshake.unavailable()
    return handshake.Refused(RefusalCode.TOKEN_INVALID, reason)


def _size(message: Mapping[str, Any]) -> int:
    return len(message.get("text") or message.get("bytes") or "")


def _ending(message: Mapping[str, Any]) -> tuple[By, int, str]:
    """Which side ended a connection, as far as servers without the frame extension tell."""
    code, reason = message.get("code", NO_CODE), message.get("reason")
    is_lost = code == LOST or (code == NO_CODE and reason is None)
    return (By.LOST, LOST, "") if is_lost else (By.CLIENT, code, reason or "")
