"""One WebSocket connection: what `/hub` and `/portal` have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar
from uuid import uuid4

from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from realtime.auth import revocation
from realtime.auth.tokens import SUBPROTOCOL, Principal, leeway
from realtime.conf import conf
from realtime.connections import handshake
from realtime.connections import user_limit as seats
from realtime.connections.frame_outlet import EXTENSION, AsgiWriter, ConnectionOutlet, HandingOver
from realtime.connections.rate_limit import Bucket
from realtime.connections.registry import ConnectionRegistry
from realtime.connections.user_limit import Seat
from realtime.layers.interface import room_layer
from realtime.layers.listener import Listener
from realtime.layers.outlets import Ephemeral, text_frame
from realtime.protocol.catalogue import catalogue
from realtime.protocol.close_codes import LOST, NO_CODE, REASONS, By, CloseCode, fitting_reason
from realtime.protocol.envelope import Envelope, ErrorCode, EventError, InvalidFrame, decode, encode, iso
from realtime.protocol.handshake_errors import RefusalCode
from realtime.protocol.payloads import InvalidPayload, Payload, parse_payload
from realtime.protocol.replies import Resumption
from realtime.protocol.rooms import group_name, groups_of, thread_of, thread_room, user_room
from realtime.protocol.values import plain
from realtime.tasks.serial import SerialExecutor
from realtime.telemetry import metrics, tracing
from realtime.telemetry.logs import digest, speak_for, spelled

logger = logging.getLogger(__name__)

EXPIRY_NOTICE = 60.0
"""Seconds before the token ends at which the client is told (half-way for a shorter life)."""
RESUME_SECONDS = 5.0
"""With `?resume=1` the automatic rooms keep still for so long at most."""
TYPING_PAUSE = 3.0
"""Who is known to be typing is not announced again for so long: clients repeat themselves every 5 s."""
TYPING_SECONDS = 10.0
"""A typist who says nothing for so long is reported as stopped."""
ROOM_COST = 0.5
"""A frame counts as so many more for each room that it makes us look at, besides that of a `join`."""
REPLAY_BYTES = 16 * 1024
"""A frame counts as one more for each so many bytes that are sent because of it."""
_COUNT_AS_INVALID = frozenset(
    {ErrorCode.INVALID_JSON, ErrorCode.INVALID_ENVELOPE, ErrorCode.UNKNOWN_EVENT, ErrorCode.INVALID_PAYLOAD}
)


class NamespaceConsumer(SerialExecutor, AsyncJsonWebsocketConsumer):
    """A connection to one namespace. Handlers of client events (`@client_event`) get it as their first argument.

    Its frames and timers are dealt with one at a time, in turn. What its rooms receive is written as it comes
    (`realtime.layers.listener`), and an order to end the connection, or to leave a room, takes effect at once.
    """

    namespace: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection_id = uuid4().hex
        self.principal: Principal
        self.opened_at = 0.0
        """When the handshake began: seconds of Redis' clock."""
        self.rooms: dict[str, Listener] = {}
        """The rooms this connection is in."""
        self.accepted = False
        self.node = ConnectionRegistry.current()
        self.outlet: ConnectionOutlet
        self._to_start: list[Listener] = []
        """Of rooms just entered: they start once the client has been told."""
        self._resumes = False
        """The initial rooms wait for a `resume`."""
        self.has_resumed = False
        """A `resume` was answered. The first one is part of connecting, and costs no more than any frame."""
        self._ended_early: tuple[CloseCode, str] | None = None
        """An order ended the connection before it was accepted."""
        self._typing: dict[str, float] = {}
        """Rooms in which other members see this user typing, and when (loop time) they were last told."""
        self._seat: Seat | None = None
        self._handed_over = False
        """The server calls us for each event; no task waits for the end of the connection."""
        self._gone = self._said_closed = False
        self._invalid_in_a_row = 0
        self._rate: Bucket | None = None
        self._heard_at = 0.0
        self._notice_at = 0.0
        """When `auth:expiring` is due, in seconds since the epoch; 0: it has been said."""

    @property
    def user(self) -> tuple[str, str]:
        """Namespace and user id."""
        return self.namespace, self.principal.user_id

    @property
    def facts(self) -> dict[str, str]:
        """What every log line about this connection says."""
        return {
            "connection_id": self.connection_id,
            "namespace": self.namespace,
            "user": digest(*self.user),
        }

    # --- Life cycle ------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.principal = scope["principal"]
        self.scope, self.base_send = scope, send
        speak_for(self)
        try:
            await self._serve(receive)
        except StopConsumer:
            pass
        except OSError:
            pass  # the peer is gone
        except RedisError as error:
            # The channel layer could not even make a channel for this connection.
            logger.warning("handshake failed", extra={"error": spelled(error)})
            if not self.accepted:
                await handshake.deny(scope, send, handshake.unavailable(), self.namespace)
        finally:
            # Not in disconnect(): Channels skips that when a handler raised or the task was cancelled.
            if not self._handed_over:
                await self._clean_up()

    async def _serve(self, receive: Any) -> None:
        """What Channels does in `__call__`, but the layer calls us, and so does the server if it can."""
        scope: Any = self.scope
        writer: HandingOver | None = (scope.get("extensions") or {}).get(EXTENSION)
        channel_layer: Any = get_channel_layer(self.channel_layer_alias)
        self.channel_layer, self.layer = channel_layer, room_layer(self.channel_layer_alias)
        self.outlet = ConnectionOutlet(self, writer or AsgiWriter(self.base_send))
        self.channel_name = await self.layer.attach(self.outlet)
        await self.dispatch(await receive())
        if writer is None:
            while True:
                await self.dispatch(await receive())
        kept: Any = {name: scope[name] for name in ("type", "path", "client", "principal")}
        self.scope = kept
        self._handed_over = True
        writer.hand_over(self._take, self.charge)

    async def _take(self, message: Any) -> None:
        speak_for(self)
        try:
            await self.dispatch(message)
        except StopConsumer:
            await self._clean_up()

    async def dispatch(self, message: Any) -> None:
        """Run the handler of one message, contained: what goes wrong in it ends neither this connection nor others.

        (Channels' own version also visits a thread before every message to close old database connections.)
        """
        async with self.turn:
            await self.handle(message)

    async def handle(self, message: Any) -> None:
        """`dispatch` for who has the turn already."""
        handler = getattr(self, get_handler_name(message), None)
        if handler is None:
            logger.error("no handler for message", extra={"type": message["type"]})
            return
        try:
            await handler(message)
        except (StopConsumer, OSError):
            raise
        except Exception:
            logger.exception("handler failed", extra={"type": message["type"]})
            metrics.ERRORS.labels(ErrorCode.INTERNAL).inc()

    async def websocket_connect(self, message: Any) -> None:
        try:
            await self.connect()
        except (OSError, StopConsumer):
            raise
        except Exception as error:
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
        offered = self.scope.get("subprotocols") or ()
        await self.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        self.accepted = True
        metrics.HANDSHAKES.labels(self.namespace, "accepted").inc()
        tracing.end_handshake(self.scope, "accepted")
        metrics.CONNECTIONS.labels(self.namespace).inc()
        logger.info("connection opened", extra={"role": self.principal.role})
        if self._ended_early:
            self.ended = False
            self.terminate(*self._ended_early)
            return
        self.write_event(
            "connection:ready",
            {
                "connection_id": self.connection_id,
                "namespace": self.namespace,
                "user_id": self.principal.user_id,
                "role": self.principal.role,
                "heartbeat_interval": conf().heartbeat_interval,
                "expires_at": iso(self.principal.expires_at),
                "rooms": {room: str(listener.position) for room, listener in self.rooms.items()},
            },
        )
        self._heard_at = asyncio.get_running_loop().time()
        self._note_expiry()
        if self._resumes:
            self.after(RESUME_SECONDS, "resume", self.release)
        else:
            self._start(self.rooms.values())
        await self.on_ready()

    @staticmethod
    def _start(listeners: Iterable[Listener]) -> None:
        for listener in listeners:
            listener.start()

    def resumed(self) -> None:
        """A `resume` has come: after the acknowledgement of the first one the rooms held back for it go on."""
        self.has_resumed = True
        self._go_on()

    def _go_on(self) -> None:
        if self._resumes:
            self._resumes = False
            self.cancel("resume")
            self._to_start += self.rooms.values()

    async def release(self) -> None:
        """Let go of the rooms that were held back for a `resume`: what came meanwhile follows."""
        self._go_on()
        self._start_entered()

    def _start_entered(self) -> None:
        """The client has been told which rooms it is in."""
        entered, self._to_start = self._to_start, []
        self._start(entered)

    async def _enter(self) -> None:
        self._resumes = b"resume=1" in self.scope.get("query_string", b"").split(b"&")
        self.opened_at = await revocation.now()
        self._clock = self.opened_at - asyncio.get_running_loop().time()
        await self.node.start()
        handshake.check_capacity()  # nobody came in between: the next line takes the place
        self.node.add(self)
        await self._enter_rooms(self._that_fit(self.initial_rooms()))
        # Joined first, checked second: a revoke in between is either found here or signalled to us.
        if await revocation.must_leave(self.principal, self.namespace, self.opened_at):
            raise handshake.Refused(
                RefusalCode.TOKEN_INVALID, "the token was revoked or its user disconnected"
            )
        self._seat = Seat(*self.user, self.channel_name, self.opened_at)
        await seats.take(self._seat)
        await self.on_enter()

    def initial_rooms(self) -> list[str]:
        """Rooms joined on connect."""
        return [user_room(self.principal.user_id)]

    async def on_enter(self) -> None:
        """Hook: before the handshake is accepted. What it raises refuses the handshake."""

    async def on_ready(self) -> None:
        """Hook: right after `connection:ready`."""

    async def on_heartbeat(self) -> None:
        """Hook: the client sent `heartbeat`."""

    def on_entered(self, room: str) -> None:
        """Hook: the client may be and is in a room now; the answer to what it asked is still to come."""

    async def on_gap(self, room: str) -> None:
        """Hook: the client was told that something in this room was lost."""

    async def on_principal_changed(self, previous: Principal) -> None:
        """Hook: the token was refreshed, with other claims perhaps."""

    async def on_gone(self) -> None:
        """Hook: the connection is over, whatever ended it. Called once, also for one that was refused."""

    def terminate(self, code: CloseCode, reason: str = "") -> None:
        """Close from our side, now: nothing is written after this. Each code has a usual reason."""
        if self.ended:
            return
        self.ended = True
        for listener in self.rooms.values():
            listener.close()
        reason = fitting_reason(reason) or REASONS[code]
        if self.accepted:
            self._say_closed(By.SERVER, code, reason)
            self.outlet.writer.close(int(code), reason)
        else:
            self._ended_early = code, reason

    async def end(self, code: CloseCode, reason: str = "") -> None:
        """`terminate` as something to do in its turn."""
        self.terminate(code, reason)

    def _say_closed(self, by: By, code: int, reason: str) -> None:
        """Who ended this connection and why: once, and the first word counts."""
        if self.accepted and not self._said_closed:
            self._said_closed = True
            metrics.closed(by, code)
            logger.info(
                "connection closed", extra={**self.facts, "by": str(by), "code": int(code), "reason": reason}
            )

    async def websocket_disconnect(self, message: Any) -> None:
        self.ended = True
        self._say_closed(*(self.outlet.writer.ending or _ending(message)))
        raise StopConsumer

    async def _clean_up(self) -> None:
        if self._gone:
            return
        self._gone = self.ended = True
        tracing.end_handshake(self.scope, "gone")
        outlet = getattr(self, "outlet", None)  # without Redis it never came so far
        self._say_closed(*((outlet and outlet.writer.ending) or (By.LOST, LOST, "")))
        self.cancel_all()
        self.node.remove(self)
        if self.accepted:
            metrics.CONNECTIONS.labels(self.namespace).dec()
        for step in (self._stop_typing_everywhere, self.on_gone, self._leave_rooms, self._give_up_seat):
            try:
                await step()
            except (RedisError, OSError) as error:
                logger.warning("clean-up incomplete", extra={"error": spelled(error)})
            except Exception:  # in a hook: rooms and seat are given back all the same
                logger.exception("handler failed", extra={"type": "clean-up"})
        if getattr(self, "channel_name", None):
            self.layer.detach(self.channel_name)

    async def _give_up_seat(self) -> None:
        if self._seat is not None:
            await seats.give_up(self._seat)

    async def _leave_rooms(self) -> None:
        rooms, self.rooms = self.rooms, {}
        for listener in rooms.values():
            self.layer.leave(listener, self.channel_name)

    # --- Frames from the client ------------------------------------------------------------------

    def charge(self) -> float:
        """Count one frame, of whatever kind. Returns 0, or how many seconds it came too early.

        A server that has no frame writer of ours tells of messages only: then these are counted.
        """
        limits = conf().limits
        if self._rate is None:
            self._rate = Bucket()
        wait = self._rate.take(asyncio.get_running_loop().time(), limits.rate, limits.burst)
        if wait and self._rate.is_persistent:
            self.terminate(CloseCode.RATE_LIMITED)
        return wait

    async def websocket_receive(self, message: Mapping[str, Any]) -> None:
        wait = message.get("retry_after")
        await self.receive(
            message.get("text"), message.get("bytes"), retry_after=self.charge() if wait is None else wait
        )

    async def receive(
        self,
        text_data: str | None = None,
        bytes_data: bytes | None = None,
        *,
        retry_after: float = 0.0,
        **_: Any,
    ) -> None:
        """One frame: exactly one answer when it has an id, an error when it is refused."""
        self._heard_at = asyncio.get_running_loop().time()
        frame_id: str | int | None = None
        try:
            if text_data is None:
                raise InvalidFrame(ErrorCode.INVALID_ENVELOPE, "expected a text frame, got a binary one")
            frame = decode(text_data)
            frame_id = frame.id
            if retry_after:
                raise _too_fast(retry_after)
            answer = await self._handle(frame)
        except EventError as error:
            if isinstance(error, InvalidFrame):
                frame_id = error.id
                error = _too_fast(retry_after) if retry_after else error
            self._refuse(error, frame_id)
        else:
            self._invalid_in_a_row = 0
            if frame_id is not None:
                self.write_event("ack", answer, id=frame_id)
        self._start_entered()

    def spend(self, frames: float) -> None:
        """Charge the rate limit for what a frame makes us do: what follows waits until that is made up for."""
        if self._rate is None:
            self._rate = Bucket()
        self._rate.spend(asyncio.get_running_loop().time(), conf().limits.rate, frames)

    def spend_rooms(self, number: int) -> None:
        """`spend` for rooms that are looked at because of a frame."""
        self.spend(number * ROOM_COST)

    def spend_bytes(self, size: int) -> None:
        """`spend` for bytes that are sent because of a frame."""
        self.spend(size / REPLAY_BYTES)

    async def _handle(self, frame: Envelope) -> Mapping[str, object]:
        event = catalogue().client.get(frame.event)
        if event is None:
            raise EventError(ErrorCode.UNKNOWN_EVENT, f"unknown event {frame.event[:64]!r}")
        if self.namespace not in event.namespaces:
            raise EventError(ErrorCode.FORBIDDEN, f"{event.name} is not for {self.namespace}")
        try:
            payload: Payload = parse_payload(event.payload, frame.data)
        except InvalidPayload as error:
            raise EventError(ErrorCode.INVALID_PAYLOAD, str(error)) from error
        metrics.frames_in(event.name).inc()
        try:
            with tracing.client_event(event.name, self.namespace):
                answer: Mapping[str, object] = plain(await event.handler(self, payload) or {})
                return answer
        except EventError:
            raise
        except (RedisError, TimeoutError) as error:
            logger.warning("event failed", extra={"event": event.name, "error": spelled(error)})
            raise EventError(ErrorCode.UNAVAILABLE, "not possible right now; try again") from error
        except OSError:
            raise
        except Exception as error:
            logger.exception("event handler failed", extra={"event": event.name})
            raise EventError(ErrorCode.INTERNAL, "something went wrong here") from error

    def _refuse(self, error: EventError, frame_id: str | int | None) -> None:
        metrics.ERRORS.labels(error.code).inc()
        self.write_event("error", {"code": error.code, "message": error.message, **error.data}, id=frame_id)
        if error.code in _COUNT_AS_INVALID:
            self._invalid_in_a_row += 1
            if self._invalid_in_a_row >= conf().limits.invalid_frames > 0:
                self.terminate(CloseCode.INVALID_FRAMES)

    @property
    def is_behind(self) -> bool:
        """Whether the client does not read what is sent to it."""
        return self.outlet.is_behind

    @property
    def unsent(self) -> int:
        """Bytes that wait for a client that reads too slowly."""
        return self.outlet.writer.unsent

    # --- Frames to the client --------------------------------------------------------------------

    def write_event(self, event: str, data: Mapping[str, object], *, id: str | int | None = None) -> int:
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
        """`write_event`, as products send: `await connection.send_event("desk:greeting", {"text": "Hello"})`."""
        self.write_event(event, plain(data))

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
        """From another connection of the same user, who has one too many: this is the oldest."""
        self.terminate(CloseCode.REPLACED)

    # --- Rooms -----------------------------------------------------------------------------------

    async def may_join(self, thread_id: str) -> bool:
        """Whether the user may enter the thread. Asked again on resume and when the token is refreshed."""
        raise NotImplementedError

    async def join(self, room: str) -> str:
        """Enter a room and return its end. Raises `EventError` when that is not allowed."""
        listener = self.rooms.get(room) or await self._enter_room(room)
        return str(listener.position)

    def position(self, room: str) -> int:
        """Up to where this connection has what was published in a room it is in."""
        return self.rooms[room].position

    async def rejoin(self, room: str, since: str, *, is_free: bool = False) -> Resumption:
        """Enter a room where an earlier connection stood: what it missed follows the acknowledgement.

        What it missed is charged by its bytes, unless this is part of connecting (`is_free`).

        Raises `EventError` when the room is not allowed (any more).
        """
        was_in = room in self.rooms
        listener = await (self._pause(room) if was_in else self._enter_room(room))
        listener.on_replay = None if is_free else self.spend_bytes
        try:
            missed = await self.layer.missed(listener, since)
        except BaseException:
            if not was_in:  # else what is published now would hide from the client that it lacks something
                await self.leave(room)
            raise
        if self.rooms.get(room) is not listener:  # expelled meanwhile, and told so
            raise EventError(ErrorCode.FORBIDDEN, f"not allowed in {room}")
        if missed is None:
            metrics.RECOVERIES.labels("lost").inc()
            self.soon(self.on_gap, room)
            return {"recovered": False, "offset": str(listener.position), "missed": 0}
        metrics.RECOVERIES.labels("recovered" if missed else "nothing_missed").inc()
        return {"recovered": True, "offset": since, "missed": missed}

    async def _pause(self, room: str) -> Listener:
        """Deliver nothing of a room this connection is in until the client has been told where it goes on."""
        listener = self.rooms[room]
        listener.pause()
        listener.entered_at = asyncio.get_running_loop().time() + self._clock
        if not self._resumes:
            self._to_start.append(listener)
        if not await self._may_enter(room):
            await self.leave(room)
            raise EventError(ErrorCode.FORBIDDEN, f"not allowed in {room}")
        with contextlib.suppress(RedisError):
            await self.stop_typing(room)
        return listener

    async def _enter_room(self, room: str) -> Listener:
        if len(self.rooms) >= (most := conf().limits.rooms) > 0:
            raise EventError(ErrorCode.LIMIT_EXCEEDED, f"at most {most} rooms a connection")
        if not await self._may_enter(room):  # before anything is kept of a room, here or in Redis
            raise EventError(ErrorCode.FORBIDDEN, f"not allowed in {room}")
        await self._enter_rooms([room])
        listener = self.rooms[room]
        # And again once entered (paused: nothing is delivered yet): a revoke in between is found or signalled.
        try:
            is_allowed = await self._may_enter(room) and self.rooms.get(room) is listener
        except BaseException:
            await self.leave(room)
            raise
        if not is_allowed:
            await self.leave(room)
            raise EventError(ErrorCode.FORBIDDEN, f"not allowed in {room}")
        self._to_start.append(listener)
        self.on_entered(room)
        return listener

    def _that_fit(self, rooms: Sequence[str]) -> Sequence[str]:
        """Rooms that a token names, as far as the limit allows."""
        most = conf().limits.rooms
        left = len(rooms) if most <= 0 else max(most - len(self.rooms), 0)
        if left < len(rooms):
            logger.warning("rooms left out", extra={"rooms": len(rooms) - left, "most": most})
        return rooms[:left]

    async def _enter_rooms(self, rooms: Sequence[str]) -> None:
        """Enter rooms, paused. Raises `redis.RedisError`."""
        entered_at = asyncio.get_running_loop().time() + self._clock
        groups = [group_name(self.namespace, room) for room in rooms]
        for room, listener in zip(
            rooms, await self.layer.enter(groups, self.outlet, self.channel_name), strict=True
        ):
            listener.entered_at = entered_at
            self.rooms[room] = listener

    async def _may_enter(self, room: str) -> bool:
        thread_id = thread_of(room)
        return thread_id is None or await self.may_join(thread_id)

    def hears(self, room: str) -> bool:
        """Whether this connection is in a room."""
        return room in self.rooms

    def expel(self, room: str, reason: str, *, before: float = math.inf) -> None:
        """Take this connection out of a room, now: nothing of the room is written after this.

        Not if it entered at `before` (seconds of Redis' clock) or later.
        """
        if (listener := self.rooms.get(room)) is not None and listener.entered_at < before:
            del self.rooms[room]
            self._leave(room, listener, reason)
            self.soon(self.stop_typing, room)

    async def review(self) -> None:
        """Orders may have been missed: see whether this connection may still be here, and in its threads.

        Raises `redis.RedisError`.
        """
        if await revocation.must_leave(self.principal, self.namespace, self.opened_at):
            self.terminate(CloseCode.REVOKED)
            return
        entered = {
            thread_id: listener.entered_at
            for room, listener in self.rooms.items()
            if (thread_id := thread_of(room))
        }
        for thread_id in await revocation.expelled(*self.user, entered) if entered else ():
            self.expel(thread_room(thread_id), "expelled")
        for thread_id in self.threads():
            if not await self.may_join(thread_id):
                self.expel(thread_room(thread_id), "forbidden")

    def threads(self) -> set[str]:
        """Those that this connection is in."""
        return {thread_id for room in self.rooms if (thread_id := thread_of(room)) is not None}

    async def leave(self, room: str, reason: str | None = None) -> None:
        """Leave a room if in it; with a reason the client is told that it had to."""
        if (listener := self.rooms.pop(room, None)) is None:
            return
        self._leave(room, listener, reason)
        with contextlib.suppress(RedisError):  # an ephemeral event may be lost
            await self.stop_typing(room)

    def _leave(self, room: str, listener: Listener, reason: str | None) -> None:
        self.layer.leave(listener, self.channel_name)
        if reason is not None:
            self.write_event("room:left", {"room": room, "reason": reason})

    # --- Ephemeral events ------------------------------------------------------------------------

    async def emit(self, room: str, event: str, **data: Any) -> None:
        """Send an ephemeral event to a room, signed with who this is, in every namespace the event is meant for.

        Never stored, never replayed, not sent to this connection itself. Raises `redis.RedisError`.
        """
        author: dict[str, Any] = {
            "user_id": self.principal.user_id,
            "namespace": self.namespace,
            "name": self.principal.name,
        }
        if thread_id := thread_of(room):
            author["thread_id"] = thread_id
        frame = encode(event, {**author, **plain(data)}, room=room).encode()
        groups = groups_of(catalogue().server[event].namespaces, room)
        await self.layer.emit(groups, Ephemeral(room, frame, self.connection_id))

    async def start_typing(self, room: str) -> None:
        """The others see this user typing, until it stops, leaves, or says nothing for `TYPING_SECONDS`."""
        now = asyncio.get_running_loop().time()
        self.after(TYPING_SECONDS, f"typing {room}", self.stop_typing, room)
        if now - self._typing.get(room, -TYPING_PAUSE) >= TYPING_PAUSE:
            self._typing[room] = now
            await self.emit(room, "thread:typing", typing=True)

    async def stop_typing(self, room: str) -> None:
        """Tell the others, if they saw it typing."""
        if room in self._typing:
            del self._typing[room]
            self.cancel(f"typing {room}")
            await self.emit(room, "thread:typing", typing=False)

    async def _stop_typing_everywhere(self) -> None:
        for room in tuple(self._typing):
            await self.stop_typing(room)

    # --- Token -----------------------------------------------------------------------------------

    async def renew(self, principal: Principal) -> None:
        """Go on with a fresh token: enter what it newly allows, leave what it no longer does."""
        previous, self.principal = self.principal, principal
        self.node.refreshed(self, previous.jti)
        self._note_expiry()
        wanted = self.initial_rooms()
        for room in list(self.rooms):  # before anything is asked of Redis, which may be away
            if thread_of(room) is None and room not in wanted:
                await self.leave(room, "forbidden")
        await self._leave_forbidden()
        missing = self._that_fit([room for room in wanted if room not in self.rooms])
        self.spend_rooms(len(missing))
        if missing:
            await self._enter_rooms(missing)
            for room in missing:
                self._to_start.append(self.rooms[room])
                self.on_entered(room)
        await self.on_principal_changed(previous)

    async def _leave_forbidden(self) -> None:
        """Ask for the rights in all threads at once. One that cannot be had keeps its thread, and no other."""
        threads = sorted(self.threads())
        self.spend_rooms(len(threads))
        answers = await asyncio.gather(*map(self.may_join, threads), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        for thread_id, answer in zip(threads, answers, strict=True):
            if not answer:
                await self.leave(thread_room(thread_id), "forbidden")
        if failures:
            raise failures[0]

    # --- Time ------------------------------------------------------------------------------------

    def _note_expiry(self) -> None:
        """The token is new: when is its end to be told?"""
        remaining = self.principal.expires_at - time.time()
        self._notice_at = self.principal.expires_at - (
            EXPIRY_NOTICE if remaining > EXPIRY_NOTICE else remaining / 2
        )
        self._watch()

    def _watch(self) -> None:
        """One timer for whatever comes first: the notice, the end of the token, silence. It waits for no turn."""
        silent = asyncio.get_running_loop().time() - self._heard_at
        ends = self.principal.expires_at + leeway() - time.time()
        notice = self._notice_at - time.time() if self._notice_at else ends
        self.call_after(min(conf().presence_ttl - silent, ends, notice), "watch", self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        if time.time() >= self.principal.expires_at + leeway():
            self.terminate(CloseCode.TOKEN_EXPIRED)
        elif asyncio.get_running_loop().time() - self._heard_at >= conf().presence_ttl:
            self.terminate(CloseCode.SILENT)
        else:
            if self._notice_at and time.time() >= self._notice_at:
                self._notice_at = 0.0
                self.write_event("auth:expiring", {"expires_at": iso(self.principal.expires_at)})
            self._watch()


def _too_fast(retry_after: float) -> EventError:
    """Made where it is raised: kept by the frame that raises it, it would keep the client's frame, too."""
    wait = math.ceil(retry_after * 1000) / 1000
    return EventError(ErrorCode.RATE_LIMITED, "too many frames", retry_after=wait)


def _refusal(code: CloseCode, reason: str) -> handshake.Refused:
    """How a handshake is refused whose connection was ended before it was accepted."""
    if code == CloseCode.RESTARTING:
        return handshake.draining()
    return handshake.Refused(RefusalCode.TOKEN_INVALID, reason)


def _ending(message: Mapping[str, Any]) -> tuple[By, int, str]:
    """Who ended a connection, as far as servers tell that do not have our extension."""
    code, reason = message.get("code", NO_CODE), message.get("reason")
    is_lost = code == LOST or (code == NO_CODE and reason is None)
    return (By.LOST, LOST, "") if is_lost else (By.CLIENT, code, reason or "")
