"""People at browsers: they come, read more or less quickly, vanish, and come back for what they missed."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from realtime.protocol.principal import Principal
from tests.simulation.clock import EPOCH, Clock
from tests.simulation.sockets import Frame, Socket

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass
class Request:
    """A frame with an id, and what it asked for."""

    event: str
    data: dict[str, Any]


@dataclass(eq=False)
class Client:
    """One tab of one user. It keeps what it has seen of its rooms across connections, as the SDK does."""

    world: World
    random: Random
    name: str
    namespace: str
    user_id: str
    role: str
    groups: tuple[str, ...]
    threads: frozenset[str]
    """Of the token's claim."""
    wanted: set[str] = field(default_factory=set)
    """Threads that it wants to be in (sorted wherever it is iterated over)."""
    offsets: dict[str, str] = field(default_factory=dict)
    """What it has seen of each room."""
    joined: set[str] = field(default_factory=set)
    socket: Socket | None = None
    is_refused: bool = False
    """It was told to stay away."""
    pause: float = 0.0
    appetite: int = 1 << 30
    requests: dict[str, Request] = field(default_factory=dict)
    jti: str = ""
    _ids: int = 0
    _due: bool = False

    def __post_init__(self) -> None:
        self.clock: Clock = self.world.clock
        self.new_token()

    def __repr__(self) -> str:
        return self.name

    def new_token(self) -> None:
        self.jti = uuid4().hex

    @property
    def principal(self) -> Principal:
        return Principal(
            user_id=self.user_id,
            role=self.role,
            name=self.name,
            groups=self.groups,
            threads=self.threads,
            jti=self.jti,
            expires_at=EPOCH + 1e6,
        )

    # --- Connecting ------------------------------------------------------------------------------

    def connect(self) -> None:
        self._due = False
        if self.socket is not None or self.is_refused:
            return
        host = self.world.any_instance()
        if host is None:
            self.connect_later()
            return
        resumes = bool(self.offsets) and self.random.random() < 0.8
        self.joined.clear()
        self.requests.clear()
        self._resumes = resumes
        self.world.open(self, host, b"resume=1" if resumes else b"")

    def connect_later(self, least: float = 0.01) -> None:
        if not self._due and not self.is_refused:
            self._due = True
            self.clock.after(
                least + self.random.choice((0.0, 0.05, 0.5, 2.0)) * self.random.random(), self.connect
            )

    def on_closed(self, socket: Socket, code: int) -> None:
        if self.socket is not socket:
            return
        self.socket = None
        self.joined.clear()
        self.requests.clear()
        if code in {4403, 401, 403}:
            # The operator wanted this connection gone; the person logs in again, with a fresh token.
            self.new_token()
            self.connect_later(1.0)
        else:
            self.connect_later(0.5 if code == 503 else 0.01)

    def vanish(self) -> None:
        if self.socket is not None:
            socket, self.socket = self.socket, None
            socket.vanish()
            self.joined.clear()
            self.requests.clear()
            self.connect_later()

    # --- Asking ----------------------------------------------------------------------------------

    def ask(self, event: str, data: dict[str, Any]) -> None:
        if self.socket is None or self.socket.close_sent:
            return
        self._ids += 1
        id = f"{self.name}-{self._ids}"
        self.requests[id] = Request(event, data)
        self.world.note("ask", self.socket, id, event, data)
        self.world.checker.asked(self.socket, id, event, data)
        self.socket.send_from_client({"event": event, "data": data, "id": id})

    def tell(self, event: str, data: dict[str, Any]) -> None:
        if self.socket is not None:
            self.socket.send_from_client({"event": event, "data": data})

    def join(self, thread: str) -> None:
        self.wanted.add(thread)
        self.ask("join:thread", {"thread_id": thread})

    def rejoin(self, thread: str) -> None:
        if since := self.offsets.get(f"thread:{thread}"):
            self.wanted.add(thread)
            self.ask("join:thread", {"thread_id": thread, "since": since})

    def leave(self, thread: str) -> None:
        self.wanted.discard(thread)
        self.ask("leave:thread", {"thread_id": thread})

    def come_back(self, thread: str) -> None:
        """Leave and join again at once."""
        self.leave(thread)
        self.join(thread)

    def resume(self) -> None:
        rooms = {
            room: since
            for room, since in sorted(self.offsets.items())
            if not room.startswith("thread:") or room[7:] in self.wanted
        }
        if rooms:
            self.ask("resume", {"rooms": rooms})

    def _asks_for(self, thread: str) -> bool:
        """Whether it waits for an answer to a join."""
        return any(
            request.event == "join:thread" and request.data["thread_id"] == thread
            for request in self.requests.values()
        )

    def enter_wanted(self) -> None:
        """Join what it wants to be in and is not."""
        resuming = any(request.event == "resume" for request in self.requests.values())
        for thread in sorted(self.wanted):
            if f"thread:{thread}" not in self.joined and not self._asks_for(thread) and not resuming:
                since = self.offsets.get(f"thread:{thread}")
                self.ask("join:thread", {"thread_id": thread, **({"since": since} if since else {})})

    # --- Reading ---------------------------------------------------------------------------------

    def on_frame(self, socket: Socket, frame: Frame) -> None:
        if socket is not self.socket:
            return
        match frame["event"]:
            case "connection:ready":
                self._on_ready(frame["data"])
            case "ack" | "error" if "id" in frame:
                self._on_answer(frame)
            case "room:left":
                room = frame["data"]["room"]
                self.joined.discard(room)
                self.wanted.discard(room[7:])
            case "room:gap":
                pass  # the next frame says where it is
        if "offset" in frame and "room" in frame:
            self.offsets[frame["room"]] = frame["offset"]

    def _on_ready(self, data: dict[str, Any]) -> None:
        self.joined |= set(data["rooms"])
        if self._resumes:
            self.resume()
        else:
            for room, offset in data["rooms"].items():
                self.offsets[room] = offset
        self.enter_wanted()

    def _on_answer(self, frame: Frame) -> None:
        request = self.requests.pop(frame["id"], None)
        if request is None:
            return
        if frame["event"] == "error":
            self._on_error(request, frame["data"]["code"])
        elif request.event == "join:thread":
            room = frame["data"]["room"]
            self.joined.add(room)
            self.offsets[room] = frame["data"]["offset"]
        elif request.event == "leave:thread":
            self.joined.discard(f"thread:{request.data['thread_id']}")
        elif request.event == "resume":
            for room, answer in frame["data"]["rooms"].items():
                if "error" in answer:
                    self.joined.discard(room)
                    if answer["error"] == "forbidden":
                        self.wanted.discard(room[7:])
                else:
                    self.joined.add(room)
                    self.offsets[room] = answer["offset"]

    def _on_error(self, request: Request, code: str) -> None:
        if request.event == "join:thread":
            thread = request.data["thread_id"]
            self.joined.discard(f"thread:{thread}")
            if code != "forbidden":
                self.clock.after(0.3 + self.random.random(), self.enter_wanted)
            elif not self._asks_for(thread):
                self.wanted.discard(thread)
        elif request.event == "leave:thread":
            self.clock.after(0.3 + self.random.random(), self.leave, request.data["thread_id"])
        elif request.event == "resume":
            self.clock.after(0.3 + self.random.random(), self.resume)
