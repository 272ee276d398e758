"""The server: its process, its sessions, and the command that a name stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.simulation.clock import Clock
from tests.simulation.network import Link
from tests.simulation.redis.hashes import Hashes
from tests.simulation.redis.keys import Database
from tests.simulation.redis.lists import Lists
from tests.simulation.redis.pubsub import PubSub
from tests.simulation.redis.resp import OK, Refused, Status
from tests.simulation.redis.scripts import Scripts
from tests.simulation.redis.session import NOTHING, Session
from tests.simulation.redis.sets import Sets
from tests.simulation.redis.sorted_sets import SortedSets
from tests.simulation.redis.streams import Streams
from tests.simulation.redis.strings import Strings


class RedisServer(Strings, Hashes, Sets, SortedSets, Lists, Streams, PubSub, Scripts):
    """One server."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.is_up = True
        self.is_hanging = False
        self.sessions: dict[Session, None] = {}
        self.commands = 0

    # --- What the world does with it -------------------------------------------------------------

    def accept(self, link: Link) -> Session:
        session = Session(self, link)
        self.sessions[session] = None
        return session

    def forget(self, session: Session) -> None:
        self.sessions.pop(session, None)
        for channel in session.channels:
            self.channels[channel].pop(session, None)
        if session.blocked is not None:
            self.unblock(session.blocked)

    def stop(self, database: Database | None = None) -> None:
        """Its process ends: connections are refused until it starts again, with these keys (or none)."""
        self.is_up = False
        self.database = database or Database()
        for session in list(self.sessions):
            self.forget(session)
            session.link.close_from_server()
        self.scripts.clear()

    def start(self) -> None:
        """It is back."""
        self.is_up, self.is_hanging = True, False

    def hang(self) -> None:
        """It accepts what it is sent, and does nothing."""
        self.is_hanging = True

    def go_on(self) -> None:
        self.is_hanging = False
        for session in list(self.sessions):
            session.go_on()

    # --- Commands --------------------------------------------------------------------------------

    def run(self, session: Session | None, command: Sequence[bytes]) -> Any:
        """Run a command, of no session for None; returns its reply. Raises `Refused`."""
        self.commands += 1
        name = command[0].decode().lower()
        if (of_session := getattr(self, f"session_{name}", None)) is not None and session is not None:
            return of_session(session, *command[1:])
        return getattr(self, f"do_{name}")(*command[1:])

    # Connections

    def session_hello(self, session: Session, protocol: bytes = b"2", *_: bytes) -> Any:
        session.protocol = int(protocol)
        return {b"server": b"redis", b"version": b"7.4.0", b"proto": session.protocol, b"id": 1, b"mode": b"standalone",
                b"role": b"master", b"modules": []}  # fmt: skip

    def session_client(self, session: Session, what: bytes, *arguments: bytes) -> Any:
        match what.upper(), *arguments:
            case b"REPLY", b"SKIP":
                session.silent = 1
                return NOTHING
            case b"REPLY", b"ON":
                session.silent = 0
                return OK
            case ((b"SETINFO" | b"SETNAME"), *_):
                return OK
        raise Refused("ERR unknown subcommand")

    def do_select(self, number: bytes) -> Any:
        return OK

    def session_ping(self, session: Session, *message: bytes) -> Any:
        if session.channels and session.protocol == 2:
            return [b"pong", message[0] if message else b""]
        return message[0] if message else Status(b"PONG")

    def do_ping(self) -> Any:
        return Status(b"PONG")

    def do_time(self) -> Any:
        seconds, rest = divmod(self.now, 1)
        return [b"%d" % seconds, b"%d" % int(rest * 1e6)]
