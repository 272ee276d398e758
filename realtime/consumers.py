"""One WebSocket connection: what `/hub` and `/portal` have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import uuid4

from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from realtime import handshake, metrics, revocation, seats, tracing
from realtime.acks import Resumption
from realtime.authentication import SUBPROTOCOL, Principal, leeway
from realtime.catalogue import catalogue
from realtime.closing import LOST, NO_CODE, REASONS, By, CloseCode, fitting_reason
from realtime.conf import conf
from realtime.delivery import Ephemeral, Run
from realtime.envelope import Envelope, ErrorCode, EventError, InvalidFrame, decode, encode, iso
from realtime.limits import Bucket
from realtime.logs import digest, speak_for, spelled
from realtime.membership import Membership, membership
from realtime.node import Node
from realtime.outlet import EXTENSION, ConnectionOutlet, FrameWriter
from realtime.payloads import InvalidPayload, Payload, parse_payload
from realtime.refusals import RefusalCode
from realtime.roomlog import Unrecoverable
from realtime.rooms import groups_of, thread_of, thread_room, user_room
from realtime.seats import Seat
from realtime.turns import Turns

logger = logging.getLogger(__name__)

EXPIRY_NOTICE = 60.0
"""Seconds before the token ends at which the client is told (half-way for a shorter life)."""
RESUME_SECONDS = 5.0
"""With `?resume=1` the automatic rooms keep still for so long at most."""
TYPING_PAUSE = 3.0
"""Who is known to be typing is not announced again for so long: clients repeat themselves every 5 s."""
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
        self.rooms: dict[str, int] = {}
        """The rooms this connection is in, each with the position of the last thing it got there."""
        self.accepted = False
        self.membership: Membership
        self.node = Node.current()
        self._expelled: set[str] = set()
        """Rooms that are about to be left: nothing of them is sent any more."""
        self._typing: dict[str, float] = {}
        """Rooms in which the others see this user typing, and when (loop time) they were last told."""
        self._seat: Seat | None = None
        self._replays: dict[str, int] = {}
        """Rooms in which something was missed, and since when; they listen once it has been sent."""
        self._resumes = False
        self._outlet: ConnectionOutlet | None = None
        """What is published comes through it, past `room_frame`."""
        self._handed_over = False
        """The server calls us for each event; nothing waits for the end of the connection."""
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
        speak_for(self)
        try:
            writer = (scope.get("extensions") or {}).get(EXTENSION)
            layer: Any = get_channel_layer(self.channel_layer_alias)
            if writer is not None and "rooms" in layer.extensions:
                await self._serve(scope, receive, send, layer, writer)
            else:
                await super().__call__(scope, receive, send)
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

    async def _serve(self, scope: Any, receive: Any, send: Any, layer: Any, writer: FrameWriter) -> None:
        """What Channels does in `__call__`, without waiting: layer and server call us when there is something."""
        self.scope = scope
        self.base_send = send
        self.channel_layer = layer
        self.channel_name = await layer.new_channel()
        self._outlet = ConnectionOutlet(self, writer)
        layer.attach(self.channel_name, self._outlet)
        await self.dispatch(await receive())
        kept: Any = {name: scope[name] for name in ("type", "path", "client", "principal")}
        self.scope = kept
        self._handed_over = True
        writer.hand_over(self._take)

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
        offered = self.scope.get("subprotocols") or ()
        await self.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        self.accepted = True
        metrics.HANDSHAKES.labels(self.namespace, "accepted").inc()
        tracing.end_handshake(self.scope, "accepted")
        metrics.CONNECTIONS.labels(self.namespace).inc()
        logger.info("connection opened", extra={"role": self.principal.role})
        await self.send_event(
            "connection:ready",
            {
                "connection_id": self.connection_id,
                "namespace": self.namespace,
                "user_id": self.principal.user_id,
                "role": self.principal.role,
                "heartbeat_interval": conf().heartbeat_interval,
                "expires_at": iso(self.principal.expires_at),
                "rooms": {room: str(position) for room, position in self.rooms.items()},
            },
        )
        self._heard_at = asyncio.get_running_loop().time()
        self._note_expiry()
        if self._resumes:
            self.after(RESUME_SECONDS, "resume", self.release)
        else:
            # Like who comes back: what was published since the ends above were read must not be left out.
            self._hold_back()
            await self._replay_pending()
        await self.on_ready()

    def resumed(self) -> None:
        """The first `resume` has come: after its acknowledgement the rooms held back for it go on."""
        if self._resumes:
            self._resumes = False
            self.cancel("resume")
            self._hold_back()

    def _hold_back(self) -> None:
        for room in self.initial_rooms():
            if room in self.rooms and room not in self._replays:
                self._replays[room] = self.rooms[room]

    async def release(self) -> None:
        """Let go of the rooms that were held back for a `resume`: what came meanwhile follows."""
        self.resumed()
        await self._replay_pending()

    async def _enter(self) -> None:
        self.membership = membership(self.channel_layer, self.namespace, self.channel_name)
        self._resumes = b"resume=1" in self.scope.get("query_string", b"").split(b"&")
        self.opened_at = await revocation.now()
        await self.node.start()
        handshake.check_capacity()  # nobody came in between: the next line takes the place
        self.node.add(self)
        rooms = self.initial_rooms()
        await self.membership.enter(rooms)
        # Joined first, checked second: a revoke in between is either found here or signalled to us.
        if await revocation.must_leave(self.principal, self.namespace, self.opened_at):
            raise handshake.Refused(
                RefusalCode.TOKEN_INVALID, "the token was revoked or its user disconnected"
            )
        self.rooms = await self.membership.positions(rooms)
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

    async def end(self, code: CloseCode, reason: str = "") -> None:
        """Close from our side; without a reason of its own the code's is sent."""
        if self.ended or not self.accepted:
            self.ended = True
            return
        self.ended = True
        reason = fitting_reason(reason) or REASONS[code]
        self._say_closed(By.SERVER, code, reason)
        await self.close(code=int(code), reason=reason)

    def _say_closed(self, by: By, code: int, reason: str) -> None:
        """Who ended this connection and why: once, and the first word counts."""
        if self.accepted and not self._said_closed:
            self._said_closed = True
            metrics.closed(by, code)
            logger.info("connection closed", extra={"by": str(by), "code": int(code), "reason": reason})

    async def websocket_disconnect(self, message: Any) -> None:
        self.ended = True
        self._say_closed(*(self._outlet.ending if self._outlet is not None else _ending(message)))
        raise StopConsumer

    async def _clean_up(self) -> None:
        if self._gone:
            return
        self._gone = self.ended = True
        tracing.end_handshake(self.scope, "gone")
        self._say_closed(*(self._outlet.ending if self._outlet is not None else (By.LOST, LOST, "")))
        self.cancel_all()
        self.node.remove(self)
        if self.accepted:
            metrics.CONNECTIONS.labels(self.namespace).dec()
        for step in (self._stop_typing_everywhere, self.on_gone, self._leave_rooms, self._give_up_seat):
            try:
                await step()
            except (RedisError, OSError) as error:
                logger.warning("clean-up incomplete", extra={"error": spelled(error)})
        if self._outlet is not None:
            layer: Any = self.channel_layer
            layer.detach(self.channel_name)

    async def _give_up_seat(self) -> None:
        if self._seat is not None:
            await seats.give_up(self._seat)

    async def _leave_rooms(self) -> None:
        if not self.opened_at:
            return  # it never got so far as to enter any
        for room in {*self.initial_rooms(), *self.rooms}:
            await self.membership.leave(room)
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
            self._check_rate()
            answer = await self._handle(frame)
        except EventError as error:
            if isinstance(error, InvalidFrame):
                frame_id = error.id
                error = self._too_fast() or error
            await self._refuse(error, frame_id)
            return
        self._invalid_in_a_row = 0
        if frame_id is not None:
            await self.send_event("ack", answer, id=frame_id)
        await self._replay_pending()

    def _too_fast(self) -> EventError | None:
        """The refusal of one frame more than this connection may send now."""
        limits = conf().limits
        if self._rate is None:
            self._rate = Bucket()
        wait = self._rate.take(self._heard_at, limits.rate, limits.burst)
        if not wait:
            return None
        return EventError(ErrorCode.RATE_LIMITED, "too many frames", retry_after=round(wait, 3))

    def _check_rate(self) -> None:
        if refusal := self._too_fast():
            raise refusal

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
                return await event.handler(self, payload) or {}
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

    async def _refuse(self, error: EventError, frame_id: str | int | None) -> None:
        metrics.ERRORS.labels(error.code).inc()
        await self.send_event(
            "error", {"code": error.code, "message": error.message, **error.data}, id=frame_id
        )
        if error.code in _COUNT_AS_INVALID:
            self._invalid_in_a_row += 1
            if self._invalid_in_a_row >= conf().limits.invalid_frames > 0:
                await self.end(CloseCode.INVALID_FRAMES)
        elif error.code == ErrorCode.RATE_LIMITED and self._rate and self._rate.is_persistent:
            await self.end(CloseCode.RATE_LIMITED)

    @property
    def is_behind(self) -> bool:
        """Whether the client does not read what is sent to it."""
        return self._outlet is not None and self._outlet.is_behind

    @property
    def unsent(self) -> int | None:
        """Bytes that wait for a client that does not keep up; None where the server does not say."""
        return None if self._outlet is None else self._outlet.unsent

    # --- Frames to the client --------------------------------------------------------------------

    async def send_event(
        self, event: str, data: Mapping[str, object], *, id: str | int | None = None
    ) -> None:
        """Send a frame to this connection alone."""
        if not self.ended:
            metrics.frames_out("direct", event).inc()
            await self._send_text(encode(event, data, id=id))

    async def _send_frame(self, frame: str, kind: str) -> None:
        if not self.ended:
            metrics.tally.sent(kind, frame.encode())
            await self._send_text(frame)

    async def _send_text(self, text: str) -> None:
        try:
            await self.send(text_data=text)
        except OSError:
            raise
        except Exception as error:
            # daphne has an exception of its own for a peer that is gone (autobahn's Disconnected).
            raise ConnectionResetError(spelled(error)) from error

    async def room_frame(self, message: dict[str, Any]) -> None:
        """From the channel layer: something was published in a room."""
        room, position = message["room"], int(message["offset"])
        known = self.rooms.get(room)
        if known is None or position <= known or room in self._expelled:
            return  # left meanwhile, refused, or had already
        self.rooms[room] = position
        if message.get("except") != self.connection_id:
            await self._send_frame(message["text"], "room")

    async def room_gap(self, message: dict[str, Any]) -> None:
        """From the channel layer: something in a room was lost for good."""
        room = message["room"]
        if room in self.rooms:
            self.rooms[room] = int(message["offset"])
            await self.say_gap(room, message["reason"])

    async def say_gap(self, room: str, reason: str) -> None:
        """The client must refetch what it shows of this room; it is live again from here."""
        await self.send_event("room:gap", {"room": room, "reason": reason})
        await self.on_gap(room)

    async def connection_replaced(self, message: dict[str, Any]) -> None:
        """From another connection of the same user, who has one too many: this is the oldest."""
        await self.end(CloseCode.REPLACED)

    async def channel_overflow(self, message: dict[str, Any]) -> None:
        """From the channel layer: more came than this connection could take."""
        await self.end(CloseCode.TOO_SLOW)

    async def room_ephemeral(self, message: dict[str, Any]) -> None:
        """From the channel layer: typing and the like, for everybody in the room but its sender."""
        if self.hears(message["room"]) and message["sender"] != self.connection_id:
            await self._send_frame(message["text"], "ephemeral")

    # --- Rooms -----------------------------------------------------------------------------------

    async def may_join(self, thread_id: str) -> bool:
        """Whether the user may enter the thread. Asked again on resume and when the token is refreshed."""
        raise NotImplementedError

    async def join(self, room: str) -> str:
        """Enter a room and return its end. Raises `EventError` when that is not allowed."""
        if room not in self.rooms:
            await self._enter_room(room)
            self._listen(room)
        return str(self.position(room))

    def position(self, room: str) -> int:
        """Up to where this connection has what was published in a room it is in."""
        if self._outlet is not None and room not in self._replays:
            return max(self.rooms[room], self.membership.position(room))
        return self.rooms[room]

    async def rejoin(self, room: str, since: str) -> Resumption:
        """Enter a room where an earlier connection stood: what it missed follows the acknowledgement.

        Raises `EventError` when the room is not allowed (any more).
        """
        keeps_still = self._resumes and thread_of(room) is None and room in self.rooms
        if not keeps_still:
            await self.leave(room)
            await self._enter_room(room)
        missed = await self.membership.missed(room, since)
        if missed is None:
            metrics.RECOVERIES.labels("lost").inc()
            self._listen(room)
            self.soon(self.on_gap, room)
            return {"recovered": False, "offset": str(self.rooms[room]), "missed": 0}
        self.rooms[room] = int(since)
        self._replays[room] = int(since)
        metrics.RECOVERIES.labels("recovered" if missed else "nothing_missed").inc()
        return {"recovered": True, "offset": since, "missed": missed}

    async def _enter_room(self, room: str) -> None:
        if len(self.rooms) >= (most := conf().limits.rooms) > 0:
            raise EventError(ErrorCode.LIMIT_EXCEEDED, f"at most {most} rooms a connection")
        await self.membership.enter([room])
        # Joined first (muted: nothing is passed on yet), checked second: a revoke in between is found or signalled.
        thread_id = thread_of(room)
        if thread_id is not None and not await self.may_join(thread_id):
            await self.membership.leave(room)
            raise EventError(ErrorCode.FORBIDDEN, f"not allowed in {room}")
        self.rooms |= await self.membership.positions([room])
        self.on_entered(room)

    def _listen(self, room: str) -> None:
        if room in self._expelled:
            return
        position = self.membership.listen(room)
        if position is not None:
            self.rooms[room] = position

    async def _replay_pending(self) -> None:
        """What was missed, room by room; each hands over to live without a gap."""
        while self._replays:
            room, position = self._replays.popitem()
            try:
                async for run in self.membership.replay(room, position):
                    if self.ended:
                        return
                    if room in self._expelled:
                        break
                    self.rooms[room] = run.publications[-1].position
                    await self._send_run(run)
                self._listen(room)
            except (Unrecoverable, RedisError, TimeoutError) as error:
                self._listen(room)
                reason = "lost" if isinstance(error, Unrecoverable) else "unavailable"
                metrics.GAPS.labels(reason).inc()
                await self.say_gap(room, reason)

    async def _send_run(self, run: Run) -> None:
        if self._outlet is not None:
            await self._outlet.replay(run)
        else:
            for publication in run.publications:
                if publication.exclude != self.connection_id:
                    await self._send_frame(publication.frame.decode(), "replay")

    def hears(self, room: str) -> bool:
        """Whether what is said in a room may be passed on."""
        return room in self.rooms and room not in self._expelled

    def expel(self, room: str, reason: str) -> None:
        """Take this connection out of a room: it gets nothing of it from now on, and is told so in its turn."""
        self._expelled.add(room)
        self.membership.mute(room)
        self.soon(self.leave, room, reason)

    async def look_again(self) -> None:
        """A signal may have been lost: see whether this connection may still be here, and in its threads."""
        try:
            if await revocation.must_leave(self.principal, self.namespace, self.opened_at):
                await self.end(CloseCode.REVOKED)
                return
            for thread_id in self.threads():
                if not await self.may_join(thread_id):
                    self.expel(thread_room(thread_id), "forbidden")
        except (RedisError, OSError):
            self.after(random.uniform(0.5, 2.0), "look again", self.look_again)  # noqa: S311

    def threads(self) -> set[str]:
        """Those that this connection is in."""
        return {thread_id for room in self.rooms if (thread_id := thread_of(room)) is not None}

    async def leave(self, room: str, reason: str | None = None) -> None:
        """Leave a room if in it; with a reason the client is told that it had to."""
        if room not in self.rooms:
            self._expelled.discard(room)
            return
        with contextlib.suppress(RedisError):  # of typing nobody has to hear, of leaving they do
            await self.stop_typing(room)
        del self.rooms[room]
        self._replays.pop(room, None)
        await self.membership.leave(room)
        self._expelled.discard(room)
        if reason is not None:
            await self.send_event("room:left", {"room": room, "reason": reason})

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
        frame = encode(event, {**author, **data}, room=room).encode()
        groups = groups_of(catalogue().server[event].namespaces, room)
        await self.membership.emit(groups, Ephemeral(room, frame, self.connection_id))

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
        self._note_expiry()
        for thread_id in self.threads():
            if not await self.may_join(thread_id):
                await self.leave(thread_room(thread_id), "forbidden")
        wanted = self.initial_rooms()
        for room in list(self.rooms):
            if thread_of(room) is None and room not in wanted:
                await self.leave(room, "forbidden")
        for room in wanted:
            await self.join(room)
        await self.on_principal_changed(previous)

    # --- Time ------------------------------------------------------------------------------------

    def _note_expiry(self) -> None:
        """The token is new: when is its end to be told?"""
        remaining = self.principal.expires_at - time.time()
        self._notice_at = self.principal.expires_at - (
            EXPIRY_NOTICE if remaining > EXPIRY_NOTICE else remaining / 2
        )
        self._watch()

    def _watch(self) -> None:
        """One timer for whatever comes first: the notice, the end of the token, silence."""
        silent = asyncio.get_running_loop().time() - self._heard_at
        ends = self.principal.expires_at + leeway() - time.time()
        notice = self._notice_at - time.time() if self._notice_at else ends
        self.after(min(conf().presence_ttl - silent, ends, notice), "watch", self._look_at_the_clock)

    async def _look_at_the_clock(self) -> None:
        if time.time() >= self.principal.expires_at + leeway():
            await self.end(CloseCode.TOKEN_EXPIRED)
        elif asyncio.get_running_loop().time() - self._heard_at >= conf().presence_ttl:
            await self.end(CloseCode.SILENT)
        else:
            if self._notice_at and time.time() >= self._notice_at:
                self._notice_at = 0.0
                await self.send_event("auth:expiring", {"expires_at": iso(self.principal.expires_at)})
            self._watch()


def _ending(message: Mapping[str, Any]) -> tuple[By, int, str]:
    """Who ended a connection, as far as servers tell that do not have our extension."""
    code, reason = message.get("code", NO_CODE), message.get("reason")
    is_lost = code == LOST or (code == NO_CODE and reason is None)
    return (By.LOST, LOST, "") if is_lost else (By.CLIENT, code, reason or "")
