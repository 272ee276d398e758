"""One WebSocket connection: what `/hub` and `/portal` have in common."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar
from uuid import uuid4

from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from redis.exceptions import RedisError

from realtime import handshake, metrics, positions, revocation
from realtime.authentication import SUBPROTOCOL, Principal, leeway
from realtime.catalogue import catalogue
from realtime.closing import REASONS, CloseCode, fitting_reason
from realtime.conf import conf
from realtime.envelope import Envelope, ErrorCode, EventError, InvalidFrame, decode, encode, iso
from realtime.node import Node
from realtime.payloads import InvalidPayload, Payload, parse_payload
from realtime.rooms import group_name, thread_of, user_room
from realtime.turns import Turns

logger = logging.getLogger(__name__)

EXPIRY_NOTICE = 60.0
"""Seconds before the token ends at which the client is told (half-way for a shorter life)."""
TYPING_SECONDS = 10.0
"""A typist who says nothing for so long is reported as stopped."""
_COUNT_AS_INVALID = frozenset(
    {ErrorCode.INVALID_JSON, ErrorCode.INVALID_ENVELOPE, ErrorCode.UNKNOWN_EVENT, ErrorCode.INVALID_PAYLOAD}
)


class NamespaceConsumer(Turns, AsyncJsonWebsocketConsumer):
    """A connection to one namespace. Handlers of client events (`@client_event`) get it as their first argument.

    Everything that happens to a connection — its frames, what its rooms receive, its timers, signals — happens
    one at a time, in turn.
    """

    namespace: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection_id = uuid4().hex
        self.principal: Principal
        self.opened_at = 0.0
        """When the handshake began: seconds of Redis' clock."""
        self.rooms: dict[str, str] = {}
        """The rooms this connection is in, each with the position of the last thing it got there."""
        self.accepted = False
        self.node = Node.current()
        self._groups: set[str] = set()
        self._typing: set[str] = set()
        self._invalid_in_a_row = 0
        self._heard_at = 0.0

    @property
    def user(self) -> tuple[str, str]:
        """Namespace and user id."""
        return self.namespace, self.principal.user_id

    @property
    def facts(self) -> dict[str, str]:
        """What every log line about this connection says."""
        return {"connection_id": self.connection_id, "namespace": self.namespace}

    # --- Life cycle ------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.principal = scope["principal"]
        try:
            await super().__call__(scope, receive, send)
        except OSError:
            logger.info("peer gone", extra=self.facts)
        except RedisError as error:
            # The channel layer could not even make a channel for this connection.
            logger.warning("handshake failed", extra={**self.facts, "error": repr(error)})
            if not self.accepted:
                await handshake.deny(scope, send, handshake.unavailable(), self.namespace)
        finally:
            # Not in disconnect(): Channels skips that when a handler raised or the task was cancelled.
            await self._clean_up()

    async def dispatch(self, message: Any) -> None:
        """Run the handler of one message, contained: what goes wrong in it ends neither this connection nor others.

        (Channels' own version also visits a thread before every message to close old database connections.)
        """
        async with self.turn:
            handler = getattr(self, get_handler_name(message), None)
            if handler is None:
                logger.error("no handler for message", extra={**self.facts, "type": message["type"]})
                return
            try:
                await handler(message)
            except (StopConsumer, OSError):
                raise
            except Exception:
                logger.exception("handler failed", extra={**self.facts, "type": message["type"]})
                metrics.ERRORS.labels(ErrorCode.INTERNAL).inc()

    async def websocket_connect(self, message: Any) -> None:
        try:
            await self.connect()
        except (OSError, StopConsumer):
            raise
        except Exception as error:
            if not isinstance(error, handshake.Refused):
                logger.exception("handshake failed", extra=self.facts)
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
            logger.warning("handshake failed", extra={**self.facts, "error": repr(error)})
            raise handshake.unavailable() from error
        offered = self.scope.get("subprotocols") or ()
        await self.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        self.accepted = True
        metrics.HANDSHAKES.labels(self.namespace, "accepted").inc()
        metrics.CONNECTIONS.labels(self.namespace).inc()
        logger.info("connection opened", extra={**self.facts, "role": self.principal.role})
        await self.send_event(
            "connection:ready",
            {
                "connection_id": self.connection_id,
                "namespace": self.namespace,
                "user_id": self.principal.user_id,
                "role": self.principal.role,
                "heartbeat_interval": conf().heartbeat_interval,
                "expires_at": iso(self.principal.expires_at),
                "rooms": self.rooms,
            },
        )
        self._heard_at = asyncio.get_running_loop().time()
        self._watch_expiry()
        self._watch_silence()
        await self.on_ready()

    async def _enter(self) -> None:
        self.opened_at = await revocation.now()
        await self.node.start()
        self.node.add(self)
        rooms = self.initial_rooms()
        await self._group_add(rooms)
        # Joined first, checked second: a revoke in between is either found here or signalled to us.
        if await revocation.must_leave(self.principal, self.namespace, self.opened_at):
            raise handshake.Refused(401, "token_invalid", "the token was revoked or its user disconnected")
        self.rooms = await self._ends(rooms)
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

    async def on_principal_changed(self, previous: Principal) -> None:
        """Hook: the token was refreshed, with other claims perhaps."""

    async def on_gone(self) -> None:
        """Hook: the connection is over, whatever ended it. Called once, also for one that was refused."""

    async def end(self, code: CloseCode, reason: str = "") -> None:
        """Close from our side; without a reason of its own the code's is sent."""
        if self.ended or not self.accepted:
            self.ended = True
            return
        self.ended = True
        metrics.CLOSES.labels(str(int(code))).inc()
        logger.info("connection closed by server", extra={**self.facts, "code": int(code)})
        await self.close(code=int(code), reason=fitting_reason(reason) or REASONS[code])

    async def disconnect(self, code: int) -> None:
        logger.info("connection over", extra={**self.facts, "code": code})

    async def websocket_disconnect(self, message: Any) -> None:
        self.ended = True
        await self.disconnect(message["code"])
        raise StopConsumer

    async def _clean_up(self) -> None:
        self.ended = True
        self.cancel_all()
        self.node.remove(self)
        if self.accepted:
            metrics.CONNECTIONS.labels(self.namespace).dec()
        for step in (self._stop_typing_everywhere, self.on_gone, self._leave_groups):
            try:
                await step()
            except (RedisError, OSError) as error:
                logger.warning("clean-up incomplete", extra={**self.facts, "error": repr(error)})

    async def _leave_groups(self) -> None:
        for room in {*self._groups, *self.rooms}:
            await self.channel_layer.group_discard(group_name(self.namespace, room), self.channel_name)
        self.rooms = {}

    # --- Frames from the client ------------------------------------------------------------------

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None, **_: Any) -> None:
        """One frame: exactly one answer when it has an id, an error when it is refused."""
        self._heard_at = asyncio.get_running_loop().time()
        frame_id: str | int | None = None
        try:
            if text_data is None:
                raise InvalidFrame(ErrorCode.INVALID_ENVELOPE, "expected a text frame, got a binary one")
            frame = decode(text_data)
            frame_id = frame.id
            answer = await self._handle(frame)
        except EventError as error:
            await self._refuse(error, error.id if isinstance(error, InvalidFrame) else frame_id)
            return
        self._invalid_in_a_row = 0
        if frame_id is not None:
            await self.send_event("ack", answer, id=frame_id)

    async def _handle(self, frame: Envelope) -> Mapping[str, Any]:
        event = catalogue().client.get(frame.event)
        if event is None:
            raise EventError(ErrorCode.UNKNOWN_EVENT, f"unknown event {frame.event[:64]!r}")
        if self.namespace not in event.namespaces:
            raise EventError(ErrorCode.FORBIDDEN, f"{event.name} is not for {self.namespace}")
        try:
            payload: Payload = parse_payload(event.payload, frame.data)
        except InvalidPayload as error:
            raise EventError(ErrorCode.INVALID_PAYLOAD, str(error)) from error
        metrics.FRAMES_IN.labels(event.name).inc()
        try:
            return await event.handler(self, payload) or {}
        except EventError:
            raise
        except (RedisError, TimeoutError) as error:
            logger.warning("event failed", extra={**self.facts, "event": event.name, "error": repr(error)})
            raise EventError(ErrorCode.UNAVAILABLE, "not possible right now; try again") from error
        except OSError:
            raise
        except Exception as error:
            logger.exception("event handler failed", extra={**self.facts, "event": event.name})
            raise EventError(ErrorCode.INTERNAL, "something went wrong here") from error

    async def _refuse(self, error: EventError, frame_id: str | int | None) -> None:
        metrics.ERRORS.labels(error.code).inc()
        await self.send_event(
            "error", {"code": error.code, "message": error.message, **error.data}, id=frame_id
        )
        if error.code in _COUNT_AS_INVALID:
            self._invalid_in_a_row += 1
            if self._invalid_in_a_row >= conf().limits.invalid_frames > 0:
                await self.end(CloseCode.INVALID_FRAMES)

    # --- Frames to the client --------------------------------------------------------------------

    async def send_event(self, event: str, data: Mapping[str, Any], *, id: str | int | None = None) -> None:
        """Send a frame to this connection alone."""
        await self._send_text(encode(event, data, id=id), "direct")

    async def _send_text(self, text: str, kind: str) -> None:
        if self.ended:
            return
        metrics.FRAMES_OUT.labels(kind).inc()
        try:
            await self.send(text_data=text)
        except OSError:
            raise
        except Exception as error:
            # daphne has an exception of its own for a peer that is gone (autobahn's Disconnected).
            raise ConnectionResetError(repr(error)) from error

    async def room_frame(self, message: dict[str, Any]) -> None:
        """From the channel layer: something was published in a room."""
        room, offset = message["room"], message["offset"]
        known = self.rooms.get(room)
        if known is None or int(offset) <= int(known):
            return  # left meanwhile, refused, or had already
        self.rooms[room] = offset
        if message.get("except") != self.connection_id:
            await self._send_text(message["text"], "room")

    async def room_ephemeral(self, message: dict[str, Any]) -> None:
        """From the channel layer: typing and the like, for everybody in the room but its sender."""
        if message["room"] in self.rooms and message["sender"] != self.connection_id:
            await self._send_text(message["text"], "ephemeral")

    # --- Rooms -----------------------------------------------------------------------------------

    async def may_join(self, thread_id: str) -> bool:
        """Whether the user may enter the thread. Asked again on resume and when the token is refreshed."""
        raise NotImplementedError

    async def join(self, room: str) -> str:
        """Enter a room and return its end. Raises `EventError` when that is not allowed."""
        if room in self.rooms:
            return self.rooms[room]
        await self._group_add([room])
        # Joined first (muted: nothing is passed on for a room not in self.rooms), checked second.
        thread_id = thread_of(room)
        if thread_id is not None and not await self.may_join(thread_id):
            await self._group_discard(room)
            raise EventError(ErrorCode.FORBIDDEN, f"not allowed in {room}")
        self.rooms |= await self._ends([room])
        return self.rooms[room]

    async def leave(self, room: str, reason: str | None = None) -> None:
        """Leave a room if in it; with a reason the client is told that it had to."""
        if room not in self.rooms:
            return
        await self.stop_typing(room)
        del self.rooms[room]
        await self._group_discard(room)
        if reason is not None:
            await self.send_event("room:left", {"room": room, "reason": reason})

    async def _group_add(self, rooms: Iterable[str]) -> None:
        for room in rooms:
            self._groups.add(room)
            await self.channel_layer.group_add(group_name(self.namespace, room), self.channel_name)

    async def _group_discard(self, room: str) -> None:
        await self.channel_layer.group_discard(group_name(self.namespace, room), self.channel_name)
        self._groups.discard(room)

    async def _ends(self, rooms: Iterable[str]) -> dict[str, str]:
        found = await positions.ends((self.namespace, room) for room in rooms)
        return {room: position for (_, room), position in found.items()}

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
        text = encode(event, {**author, **data}, room=room)
        for namespace in sorted(catalogue().server[event].namespaces):
            await self.channel_layer.group_send(
                group_name(namespace, room),
                {"type": "room.ephemeral", "room": room, "text": text, "sender": self.connection_id},
            )

    async def start_typing(self, room: str) -> None:
        """The others see this user typing, until it stops, leaves, or says nothing for `TYPING_SECONDS`."""
        self._typing.add(room)
        self.after(TYPING_SECONDS, f"typing {room}", self.stop_typing, room)
        await self.emit(room, "thread:typing", typing=True)

    async def stop_typing(self, room: str) -> None:
        """Tell the others, if they saw it typing."""
        if room in self._typing:
            self._typing.remove(room)
            self.cancel(f"typing {room}")
            await self.emit(room, "thread:typing", typing=False)

    async def _stop_typing_everywhere(self) -> None:
        for room in tuple(self._typing):
            await self.stop_typing(room)

    # --- Token -----------------------------------------------------------------------------------

    async def renew(self, principal: Principal) -> None:
        """Go on with a fresh token: enter what it newly allows, leave what it no longer does."""
        previous, self.principal = self.principal, principal
        self._watch_expiry()
        for room in list(self.rooms):
            thread_id = thread_of(room)
            if thread_id is not None and not await self.may_join(thread_id):
                await self.leave(room, "forbidden")
        wanted = self.initial_rooms()
        for room in list(self.rooms):
            if thread_of(room) is None and room not in wanted:
                await self.leave(room, "forbidden")
        for room in wanted:
            await self.join(room)
        await self.on_principal_changed(previous)

    def _watch_expiry(self) -> None:
        remaining = self.principal.expires_at - time.time()
        notice = EXPIRY_NOTICE if remaining > EXPIRY_NOTICE else remaining / 2
        self.after(remaining - notice, "expiring", self._say_expiring)
        self.after(remaining + leeway(), "expired", self._expire)

    async def _say_expiring(self) -> None:
        if self.principal.expires_at > time.time() + EXPIRY_NOTICE + 0.5:
            self._watch_expiry()  # further away than a timer reaches, or the clock was set back
            return
        await self.send_event("auth:expiring", {"expires_at": iso(self.principal.expires_at)})

    async def _expire(self) -> None:
        if self.principal.expires_at + leeway() > time.time() + 0.5:
            self._watch_expiry()  # further away than a timer reaches, or the clock was set back
            return
        await self.end(CloseCode.TOKEN_EXPIRED)

    # --- Silence ---------------------------------------------------------------------------------

    def _watch_silence(self) -> None:
        silent = asyncio.get_running_loop().time() - self._heard_at
        self.after(conf().presence_ttl - silent, "silence", self._check_silence)

    async def _check_silence(self) -> None:
        if asyncio.get_running_loop().time() - self._heard_at >= conf().presence_ttl:
            await self.end(CloseCode.SILENT)
        else:
            self._watch_silence()
