"""The Python client's rules, against a server that does what it is told (docs/protocol.md, "Coming back")."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidURI
from websockets.http11 import Request, Response

from realtime.client import CallFailed, Client, Denied, Event
from realtime.client import client as module
from tests.e2e.harness import PATIENCE, QUIET, eventually

ROOM = "thread:42"
Answer = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]] | None


@dataclass
class Refusal:
    """A handshake that ends with an HTTP status."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": {"code": "some_code", "message": "some words"}}'


@dataclass
class Visit:
    """A connection, seen from the server."""

    websocket: ServerConnection
    sent: list[dict[str, Any]] = field(default_factory=list)
    """What the client sent."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends a `hang`."""

    @property
    def path(self) -> str:
        assert self.websocket.request is not None
        return self.websocket.request.path

    @property
    def token(self) -> str:
        assert self.websocket.request is not None
        return self.websocket.request.headers["Authorization"].removeprefix("Bearer ")

    def events(self, name: str) -> list[dict[str, Any]]:
        return [frame.get("data", {}) for frame in self.sent if frame["event"] == name]

    async def answer(self, event: str, data: dict[str, Any]) -> None:
        """Acknowledge the last frame of that event, which its script did not answer."""
        frame = await eventually(lambda: [frame for frame in self.sent if frame["event"] == event])
        await self.say("ack", data, id=frame[-1]["id"])

    async def say(self, event: str, data: dict[str, Any], **more: Any) -> None:
        await self.websocket.send(json.dumps({"event": event, "data": data, **more}))

    async def message(self, offset: str, room: str = ROOM) -> None:
        """A message in a room, named as its offset."""
        await self.say("thread:message", {"message_id": offset}, room=room, offset=offset)

    async def fail(self, code: int, reason: str = "") -> None:
        await self.websocket.close(code, reason)

    def drop(self) -> None:
        self.websocket.transport.abort()

    async def hang(self) -> None:
        going = asyncio.create_task(self.go.wait())
        gone = asyncio.create_task(self.websocket.wait_closed())
        await asyncio.wait([going, gone], return_when=asyncio.FIRST_COMPLETED)
        going.cancel()


def _resumed(data: dict[str, Any]) -> dict[str, Any]:
    return {"rooms": {r: {"recovered": True, "offset": o, "missed": 0} for r, o in data["rooms"].items()}}


class ScriptedServer:
    """Accepts, unless its script says otherwise, and acknowledges everything."""

    def __init__(self) -> None:
        self.script: deque[Refusal | str] = deque()
        """What happens to the next handshakes: a refusal, `drop`, `hang` (accepted, and then nothing), `accept`."""
        self.heartbeat_interval = 30.0
        self.rooms = {"user:7": "100"}
        self.answers: dict[str, Answer] = {
            "join:thread": lambda data: {"room": f"thread:{data['thread_id']}", "offset": "200"},
            "resume": _resumed,
        }
        """By event; None: no answer; with a `code` in it: an error."""
        self.visits: list[Visit] = []
        self.handshakes = 0
        self.url = ""

    async def look(self, websocket: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        match self.script[0] if self.script else "accept":
            case Refusal(status, headers, body):
                self.script.popleft()
                response = websocket.respond(HTTPStatus(status), body)
                response.headers.update(headers)
                return response
            case "drop":
                self.script.popleft()
                websocket.transport.abort()
        return None

    async def serve(self, websocket: ServerConnection) -> None:
        visit = Visit(websocket)
        self.visits.append(visit)
        try:
            if self.script and self.script.popleft() == "hang":
                await visit.hang()
            ready = {"connection_id": f"c{len(self.visits)}", "heartbeat_interval": self.heartbeat_interval}
            await visit.say("connection:ready", {**ready, "rooms": self.rooms})
            async for text in websocket:
                await self._take(visit, json.loads(text))
        except ConnectionClosed:
            pass

    async def _take(self, visit: Visit, frame: dict[str, Any]) -> None:
        visit.sent.append(frame)
        answer = self.answers.get(frame["event"], {})
        if callable(answer):
            answer = answer(frame["data"])
        if answer is not None and "id" in frame:
            await visit.say("error" if "code" in answer else "ack", answer, id=frame["id"])

    async def visit(self, number: int) -> Visit:
        """Wait for the connection of that number, the first being 1, and until the client has its first frame."""
        await eventually(lambda: len(self.visits) >= number)
        return self.visits[number - 1]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    running: Server
    async with serve(scripted.serve, "127.0.0.1", 0, process_request=scripted.look) as running:
        scripted.url = f"ws://127.0.0.1:{running.sockets[0].getsockname()[1]}/hub/"
        yield scripted


class Reader:
    """Reads a client to its end, and keeps what it said."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events: list[Event] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.client:
            self.events.append(event)

    def named(self, *names: str) -> list[Event]:
        return [event for event in self.events if event.name in names]

    async def heard(self, name: str, count: int = 1) -> Event:
        """Wait for the event of that name and number, the first being 1."""
        await eventually(lambda: len(self.named(name)) >= count)
        return self.named(name)[count - 1]

    async def end(self) -> None:
        """Wait for its end; raises what that was."""
        await asyncio.wait_for(asyncio.shield(self.task), PATIENCE)


@asynccontextmanager
async def reading(
    server: ScriptedServer, get_token: Any = lambda: "x", **options: Any
) -> AsyncIterator[Reader]:
    """A client of the server, and who reads it."""
    options = {"reconnection_delay": 0.01, "reconnection_delay_max": 0.02, **options}
    async with Client(server.url, get_token, **options) as client:
        reader = Reader(client)
        try:
            yield reader
        finally:
            reader.task.cancel()
            await asyncio.gather(reader.task, return_exceptions=True)


def token(mark: str = "x", seconds: float = 3600.0) -> str:
    """One that looks like a JWT that ends so soon."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + seconds}).encode()).decode()
    return f"{mark}.{claims.rstrip('=')}.sig"


class Tokens:
    """A `get_token` that counts; each token has its number in front."""

    def __init__(self, seconds: Iterable[float] = ()) -> None:
        self.asked = 0
        self._seconds = deque(seconds)

    async def __call__(self) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        return token(str(self.asked), self._seconds.popleft() if self._seconds else 3600)


# --- The token ---------------------------------------------------------------------------------------


async def test_token_is_sent_in_a_header_and_never_in_the_address(server: ScriptedServer):
    async with reading(server, lambda: "secret"):
        visit = await server.visit(1)
        assert (visit.token, visit.path) == ("secret", "/hub/")


async def test_token_is_asked_for_once_and_kept_until_shortly_before_it_ends(server: ScriptedServer):
    tokens = Tokens([9.0, 3600.0])  # the first is as good as over: ten seconds are left for the way
    async with reading(server, tokens) as reader:
        for number in range(1, 4):
            visit = await server.visit(number)
            await reader.heard("connection:ready", number)
            assert visit.token.startswith(f"{min(number, 2)}.")
            visit.drop()
        await server.visit(4)
        assert tokens.asked == 2


async def test_token_that_says_nothing_of_its_end_is_asked_for_every_time(server: ScriptedServer):
    asked: list[str] = []

    def get_token() -> str:
        asked.append(f"opaque{len(asked)}")
        return asked[-1]

    async with reading(server, get_token):
        for number in range(1, 4):
            (await server.visit(number)).drop()
        assert (await server.visit(4)).token == "opaque3"


async def test_expired_token_is_replaced_before_coming_back(server: ScriptedServer):
    async with reading(server, Tokens()):
        await (await server.visit(1)).fail(4401)
        assert (await server.visit(2)).token.startswith("2.")


async def test_refused_token_is_replaced_once_and_at_once(server: ScriptedServer):
    server.script.extend([Refusal(401), "accept", "accept"])
    async with reading(server, Tokens(), reconnection_attempts=0):
        assert (await server.visit(1)).token.startswith("2.")
    server.script.clear()
    server.script.extend([Refusal(401), Refusal(401)])
    async with reading(server, Tokens()) as reader:
        with pytest.raises(Denied, match="401"):
            await reader.end()
        assert server.handshakes == 4


async def test_token_is_only_denied_when_it_is_a_fresh_one_that_is_refused(server: ScriptedServer):
    server.script.extend([Refusal(401), Refusal(503), Refusal(401)])
    async with reading(server, Tokens()):
        assert (await server.visit(1)).token.startswith("3.")


async def test_tries_again_when_there_is_no_token_to_be_had(server: ScriptedServer):
    failures = ["session server is down", "still"]

    def get_token() -> str:
        if failures:
            raise LookupError(failures.pop())
        return token()

    async with reading(server, get_token):
        await server.visit(1)


async def test_token_that_does_not_come_is_given_up(server: ScriptedServer):
    asked = 0

    async def get_token() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return token()

    async with reading(server, get_token, connect_timeout=1) as reader:
        assert "get_token" in (await reader.heard("connection:lost")).data["reason"]
        await server.visit(1)


async def test_end_of_a_session_is_the_end(server: ScriptedServer):
    def get_token() -> str:
        raise Denied(401, "nobody is logged in")

    async with reading(server, get_token) as reader:
        with pytest.raises(Denied, match="nobody is logged in"):
            await reader.end()
        assert server.handshakes == 0


async def test_session_that_ends_while_there_is_a_connection_ends_with_it(server: ScriptedServer):
    asked = 0

    def get_token() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise Denied(401, "nobody is logged in")
        return token()

    async with reading(server, get_token) as reader:
        visit = await server.visit(1)
        await visit.say("auth:expiring", {})
        await eventually(lambda: asked == 2)
        await reader.client.call("heartbeat")
        await visit.fail(4401)
        with pytest.raises(Denied, match="nobody is logged in"):
            await reader.end()


async def test_token_is_refreshed_in_band_with_a_fresh_one(server: ScriptedServer):
    tokens = Tokens()
    async with reading(server, tokens):
        visit = await server.visit(1)
        await visit.say("auth:expiring", {"expires_at": "2030-01-01T00:00:00.000Z"})
        [refresh] = await eventually(lambda: visit.events("auth:refresh"))
        assert refresh["token"].startswith("2.")
        visit.drop()
        assert (await server.visit(2)).token == refresh["token"]
        assert tokens.asked == 2


async def test_token_asked_for_when_the_connection_is_lost_is_waited_for_and_not_asked_for_again(
    server: ScriptedServer,
):
    asked = 0
    give = asyncio.Event()

    async def get_token() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            await give.wait()
        return token(str(asked))

    async with reading(server, get_token) as reader:
        visit = await server.visit(1)
        await visit.say("auth:expiring", {})
        await visit.message("1")
        await reader.heard("thread:message")
        await eventually(lambda: asked == 2)
        await visit.fail(4401)
        await eventually(lambda: reader.client.connection_id is None)
        give.set()
        assert (await server.visit(2)).token.startswith("2.")
        assert asked == 2


async def test_refresh_that_fails_is_no_end(server: ScriptedServer):
    asked = 0

    def get_token() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise LookupError("session server is down")
        return token(str(asked))

    async with reading(server, get_token):
        visit = await server.visit(1)
        await visit.say("auth:expiring", {})
        await eventually(lambda: asked == 2)
        await visit.fail(4401)
        assert (await server.visit(2)).token.startswith("3.")


# --- Connecting --------------------------------------------------------------------------------------


async def test_connections_are_made_by_whom_one_wants(server: ScriptedServer):
    async with reading(server, connect=partial(connect, user_agent_header="our bot")):
        visit = await server.visit(1)
        assert visit.websocket.request is not None
        assert visit.websocket.request.headers["User-Agent"] == "our bot"


async def test_address_is_chosen_anew_for_every_attempt(server: ScriptedServer):
    addresses = itertools.cycle([server.url, f"{server.url}?second"])
    async with Client(addresses.__next__, token, reconnection_delay=0.01):
        (await server.visit(1)).drop()
        assert (await server.visit(2)).path == "/hub/?second&resume=1"


# --- Losing it ---------------------------------------------------------------------------------------


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many attempts had failed before each wait."""
    waits: list[int] = []

    def backoff(attempt: int, first: float, most: float) -> float:
        waits.append(attempt)
        return 0.0

    monkeypatch.setattr(module, "backoff", backoff)
    return waits


@pytest.mark.parametrize("code", [1001, 1011, 1012, 4408, 4413, 4429])
async def test_closed_connection_comes_back(
    server: ScriptedServer, code: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    async with reading(server) as reader:
        await (await server.visit(1)).fail(code, "some reason")
        lost = await reader.heard("connection:lost")
        assert (lost.data["code"], lost.data["reason"]) == (code, "some reason")
        await server.visit(2)


@pytest.mark.parametrize("code", [1002, 1007, 1009, 4400, 4403, 4409])
async def test_closed_connection_does_not_come_back(server: ScriptedServer, code: int):
    async with reading(server) as reader:
        await (await server.visit(1)).fail(code, "some reason")
        with pytest.raises(Denied, match="some reason") as denied:
            await reader.end()
        assert (denied.value.code, denied.value.reason) == (code, "some reason")
        assert server.handshakes == 1


async def test_normal_close_is_the_end(server: ScriptedServer):
    async with reading(server) as reader:
        await (await server.visit(1)).fail(1000)
        await reader.end()
        assert server.handshakes == 1


async def test_connection_that_breaks_comes_back(server: ScriptedServer):
    async with reading(server) as reader:
        (await server.visit(1)).drop()
        assert (await reader.heard("connection:lost")).data["code"] == 1006
        await server.visit(2)


async def test_who_was_too_fast_stays_away_for_a_while(server: ScriptedServer):
    async with reading(server) as reader:
        await (await server.visit(1)).fail(4429)
        assert (await reader.heard("connection:lost")).data["retry_in"] >= 5


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_refused_handshake_is_the_end_and_says_why(server: ScriptedServer, status: int):
    server.script.extend([Refusal(status), Refusal(status)])
    async with reading(server) as reader:
        with pytest.raises(Denied) as denied:
            await reader.end()
        assert (denied.value.code, denied.value.reason) == (status, "some_code: some words")


async def test_refusal_of_something_in_between_has_the_reason_of_its_status(server: ScriptedServer):
    server.script.append(Refusal(403, body="<html>"))
    async with reading(server) as reader:
        with pytest.raises(Denied, match="403 Forbidden"):
            await reader.end()


async def test_full_server_is_asked_again_after_as_long_as_it_says(server: ScriptedServer):
    server.script.append(Refusal(503, {"Retry-After": "7"}))
    async with reading(server) as reader:
        lost = (await reader.heard("connection:lost")).data
        assert (lost["code"], lost["reason"]) == (503, "some_code: some words")
        assert 7 <= lost["retry_in"] <= 7.02


@pytest.mark.parametrize("header", ["Fri, 31 Dec 2027 23:59:59 GMT", "nan", "-1", ""])
async def test_retry_after_that_is_no_number_of_seconds_counts_as_none(server: ScriptedServer, header: str):
    server.script.append(Refusal(503, {"Retry-After": header}))
    async with reading(server):
        await server.visit(1)


async def test_waits_grow_until_a_connection_was_stable(
    server: ScriptedServer, attempts: list[int], monkeypatch: pytest.MonkeyPatch
):
    async with reading(server):
        for number in range(1, 5):
            (await server.visit(number)).drop()
        await server.visit(5)
        assert attempts == [0, 1, 2, 3]
        monkeypatch.setattr(module, "STABLE_SECONDS", 0.0)
        server.script.extend(["hang"] * 2)
        (await server.visit(5)).drop()
        for number in (6, 7):
            await (await server.visit(number)).fail(1011)  # never ready: it does not count
        await server.visit(8)
        assert attempts[4:] == [0, 1, 2]


async def test_it_gives_up_after_as_many_attempts_as_it_is_told(server: ScriptedServer, attempts: list[int]):
    server.script.extend([Refusal(503)] * 9)
    async with reading(server, reconnection_attempts=2) as reader:
        with pytest.raises(ConnectionError, match=r"3 attempts, the last: 503 some_code"):
            await reader.end()
        assert server.handshakes == 3
        assert attempts == [0, 1]


async def test_handshake_that_hangs_is_given_up(server: ScriptedServer):
    server.script.append("hang")
    async with reading(server, connect_timeout=1) as reader:
        lost = (await reader.heard("connection:lost")).data
        assert (lost["code"], lost["reason"]) == (None, "TimeoutError")
        await server.visit(2)


async def test_handshake_without_an_answer_is_tried_again(server: ScriptedServer):
    server.script.append("drop")
    async with reading(server):
        await server.visit(1)


async def test_mistake_reaches_whoever_reads_or_waits():
    async with Client("http://example.com/hub/", lambda: "x") as client:
        for _ in range(2):
            with pytest.raises(InvalidURI):
                await anext(aiter(client))
        with pytest.raises(InvalidURI):
            await client.connected()


async def test_whoever_waits_for_a_connection_hears_that_there_will_be_none(server: ScriptedServer):
    server.script.extend([Refusal(403), Refusal(503)])
    async with Client(server.url, token) as client:
        with pytest.raises(Denied):
            await client.connected()
    async with Client(server.url, token, reconnection_attempts=0) as client:
        with pytest.raises(ConnectionError):
            await client.connected()
    async with reading(server) as reader:
        await reader.client.connected()
        await (await server.visit(1)).fail(1000)
        await reader.end()
        with pytest.raises(ConnectionError):
            await reader.client.connected()


async def test_heartbeats_begin_somewhere_in_the_interval_and_then_keep_it(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    waits: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        waits.append((least, most))
        return least

    monkeypatch.setattr(module.random, "uniform", uniform)
    server.heartbeat_interval = 0.02
    async with reading(server):
        visit = await server.visit(1)
        await eventually(lambda: len(visit.events("heartbeat")) > 3)
        assert waits == [(0.5, 1)]


async def test_who_knows_of_another_network_comes_again_after_a_first_wait(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "backoff", lambda attempt, *_: 3600.0 if attempt else 0.0)
    server.script.extend([Refusal(503)] * 2)
    async with reading(server, reconnection_attempts=2) as reader:
        await reader.heard("connection:lost", 2)
        reader.client.reconnect()  # while it waits for the next attempt
        (await server.visit(1)).drop()
        await reader.heard("connection:ready", 2)
        reader.client.reconnect()  # from a connection
        await reader.heard("connection:ready", 3)


async def test_hurry_does_not_matter_to_a_server_that_wants_to_be_left_alone(server: ScriptedServer):
    server.script.append(Refusal(503, {"Retry-After": "9999"}))
    async with reading(server) as reader:
        lost = await reader.heard("connection:lost")
        reader.client.reconnect()
        await asyncio.sleep(QUIET)
        assert server.handshakes == 1
        assert 600 <= lost.data["retry_in"] < 601


async def test_hurry_is_over_with_the_next_connection(server: ScriptedServer, attempts: list[int]):
    server.script.append("hang")
    async with reading(server) as reader:
        visit = await server.visit(1)
        reader.client.reconnect()
        visit.go.set()
        await reader.client.connected()
        visit.drop()
        await server.visit(2)
        assert attempts == [0]


# --- Frames ------------------------------------------------------------------------------------------


class Flood:
    """Sends more than the network takes at once."""

    size = 500

    def __init__(self, client: Client) -> None:
        self.sent = 0
        self.task = asyncio.create_task(self._send(client))

    async def _send(self, client: Client) -> None:
        for _ in range(self.size):
            await client.send("cursor:move", {"position": "x" * 50_000})
            self.sent += 1

    async def is_stuck(self) -> bool:
        """Nothing has been sent for a moment."""
        before = self.sent
        await asyncio.sleep(0.2)
        return 0 < before == self.sent < self.size


async def test_frames_are_sent_in_the_order_in_which_they_were_asked_for(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
        visit = await server.visit(1)
        reader.client.join("42")
        await reader.client.send("typing:start", {"thread_id": "42"})
        reader.client.leave("42")
        reader.client.join("42")
        await reader.client.call("heartbeat")
        events = [frame["event"] for frame in visit.sent]
        assert events == ["join:thread", "typing:start", "leave:thread", "join:thread", "heartbeat"]


async def test_call_has_the_data_of_its_acknowledgement_or_the_error(server: ScriptedServer):
    server.answers["presence:away"] = {"code": "rate_limited", "message": "too fast", "retry_after": 2.0}
    server.answers["ticket:watch"] = {"watching": True}
    async with reading(server) as reader:
        await reader.client.connected()
        assert await reader.client.call("ticket:watch") == {"watching": True}
        with pytest.raises(CallFailed, match="too fast") as failed:
            await reader.client.call("presence:away")
        assert (failed.value.code, failed.value.retry_after) == ("rate_limited", 2.0)


async def test_call_without_an_answer_times_out_and_what_comes_later_is_nobodys(server: ScriptedServer):
    server.answers["presence:away"] = None
    async with reading(server, ack_timeout=1) as reader:
        await reader.client.connected()
        with pytest.raises(CallFailed, match="timeout"):
            await reader.client.call("presence:away")
        visit = await server.visit(1)
        await visit.answer("presence:away", {})
        await visit.message("1")
        await reader.heard("thread:message")
        assert reader.named("ack") == []


async def test_call_whose_connection_is_lost_fails(server: ScriptedServer):
    server.answers["presence:away"] = None
    async with reading(server) as reader:
        with pytest.raises(CallFailed, match="closed"):
            await reader.client.call("presence:away")
        await reader.client.connected()
        calling = asyncio.create_task(reader.client.call("presence:away"))
        visit = await server.visit(1)
        await eventually(lambda: visit.events("presence:away"))
        visit.drop()
        with pytest.raises(CallFailed, match="closed"):
            await calling


async def test_events_wait_for_a_connection_but_for_typing_and_not_without_end(server: ScriptedServer):
    server.script.append("hang")
    async with reading(server, queue_size=2) as reader:
        visit = await server.visit(1)
        reader.client.join("42")
        await reader.client.send("typing:start", {"thread_id": "42"})
        for _ in range(2):
            await reader.client.send("ticket:watch", {"thread_id": "42"})
        with pytest.raises(CallFailed, match="queue_full"):
            await reader.client.send("ticket:watch", {"thread_id": "42"})
        visit.go.set()
        await reader.client.connected()
        await reader.client.call("heartbeat")
        events = [frame["event"] for frame in visit.sent]
        assert events == ["join:thread", "ticket:watch", "ticket:watch", "heartbeat"]


async def test_event_that_will_never_be_sent_fails(server: ScriptedServer):
    async with reading(server) as reader:
        await (await server.visit(1)).fail(4403)
        with pytest.raises(Denied):
            await reader.end()
        with pytest.raises(CallFailed, match="closed"):
            await reader.client.send("ticket:watch")


async def test_more_than_the_network_takes_is_waited_for(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
        visit = await server.visit(1)
        visit.websocket.transport.pause_reading()
        flood = Flood(reader.client)
        await eventually(flood.is_stuck)
        visit.websocket.transport.resume_reading()
        await flood.task
        await eventually(lambda: len(visit.events("cursor:move")) == Flood.size)


async def test_nobody_waits_for_a_connection_that_broke_while_it_took_nothing(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
        visit = await server.visit(1)
        visit.websocket.transport.pause_reading()
        flood = Flood(reader.client)
        await eventually(flood.is_stuck)
        visit.drop()
        await flood.task


async def test_error_that_belongs_to_no_call_is_passed_on(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await server.visit(1)
        await visit.say("error", {"code": "not_in_room", "message": "join first"})
        assert (await reader.heard("error")).data["code"] == "not_in_room"


async def test_what_is_no_frame_is_passed_over(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await server.visit(1)
        for odd in ("{", "[]", "7", '{"data": {}}', b"\xff"):
            await visit.websocket.send(odd)
        await visit.message("1")
        await reader.heard("thread:message")


async def test_frame_without_data_has_none(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await server.visit(1)
        await visit.websocket.send('{"event": "queue:emptied"}')
        assert (await reader.heard("queue:emptied")).data == {}


# --- Rooms -------------------------------------------------------------------------------------------


async def joined(server: ScriptedServer, reader: Reader) -> Visit:
    """The client is in thread 42, in its first connection."""
    reader.client.join("42")
    await reader.heard("room:joined")
    return await server.visit(1)


async def resumes(visit: Visit) -> dict[str, str]:
    """Where the client says that it stands."""
    return (await eventually(lambda: visit.events("resume")))[0]["rooms"]


async def test_room_is_resumed_from_what_was_seen_last(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        await visit.message("205")
        await reader.heard("thread:message")
        visit.drop()
        back = await server.visit(2)
        assert back.path == "/hub/?resume=1"
        assert await resumes(back) == {"user:7": "100", ROOM: "205"}
        assert back.events("join:thread") == []


async def test_address_with_a_query_keeps_it(server: ScriptedServer):
    server.url += "?tenant=7"
    async with reading(server):
        (await server.visit(1)).drop()
        assert (await server.visit(2)).path == "/hub/?tenant=7&resume=1"


async def test_rooms_one_is_in_are_those_of_this_connection(server: ScriptedServer):
    async with reading(server) as reader:
        client = reader.client
        assert client.rooms == set()
        visit = await joined(server, reader)
        assert client.rooms == {"user:7", ROOM}
        server.answers["resume"] = None
        visit.drop()
        await reader.heard("connection:ready", 2)
        assert client.rooms == set()  # on the way, but not there yet
        await (await server.visit(2)).answer("resume", _resumed({"rooms": {"user:7": "100", ROOM: "200"}}))
        await eventually(lambda: client.rooms == {"user:7", ROOM})
        client.leave("42")
        assert client.rooms == {"user:7"}


async def test_gap_of_a_resume_is_said_before_what_is_new(server: ScriptedServer):
    lost = {"rooms": {ROOM: {"recovered": False, "offset": "300", "missed": 0}}}
    server.answers["resume"] = None
    async with reading(server) as reader:
        (await joined(server, reader)).drop()
        back = await server.visit(2)
        await resumes(back)
        await asyncio.gather(back.answer("resume", lost), back.message("301"))
        await reader.heard("thread:message")
        assert [(event.name, event.data) for event in reader.events[-2:]] == [
            ("room:gap", {"room": ROOM, "reason": "not recovered"}),
            ("thread:message", {"message_id": "301"}),
        ]


async def test_room_that_was_not_recovered_goes_on_from_its_end(server: ScriptedServer):
    server.answers["resume"] = {"rooms": {ROOM: {"recovered": False, "offset": "300", "missed": 0}}}
    async with reading(server) as reader:
        (await joined(server, reader)).drop()
        await reader.heard("room:gap")
        (await server.visit(2)).drop()
        assert (await resumes(await server.visit(3)))[ROOM] == "300"


async def test_answer_to_a_resume_may_take_longer_than_a_call(server: ScriptedServer):
    server.answers["resume"] = None
    async with reading(server, ack_timeout=1) as reader:
        (await joined(server, reader)).drop()
        back = await server.visit(2)
        await resumes(back)
        server.answers["presence:away"] = None
        with pytest.raises(CallFailed, match="timeout"):
            await reader.client.call("presence:away")
        await back.answer("resume", {"rooms": {ROOM: {"recovered": False, "offset": "300", "missed": 0}}})
        await reader.heard("room:gap")


@pytest.mark.parametrize("room", ["user:7", ROOM])
async def test_room_with_a_gap_is_resumed_from_before_it_so_that_no_loss_goes_unsaid(
    server: ScriptedServer, room: str
):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        await visit.message("205", room)
        await visit.say("room:gap", {"room": room, "reason": "lost"})
        await reader.heard("room:gap")
        visit.drop()
        back = await server.visit(2)
        assert (await resumes(back))[room] == "205"


async def test_resume_that_is_refused_as_a_whole_is_asked_for_again(server: ScriptedServer):
    server.answers["resume"] = {"code": "unavailable", "message": "Redis is down", "retry_after": 0.01}
    async with reading(server) as reader:
        (await joined(server, reader)).drop()
        back = await server.visit(2)
        await eventually(lambda: len(back.events("resume")) > 1)
        await back.message("202")  # it will come again
        await reader.client.call("heartbeat")
        server.answers["resume"] = _resumed
        await eventually(lambda: reader.client.rooms == {"user:7", ROOM})
        assert back.events("resume")[-1]["rooms"] == {"user:7": "100", ROOM: "200"}
        assert reader.named("thread:message") == []
        assert len(server.visits) == 2


async def test_thread_left_while_it_could_not_be_resumed_may_be_joined_anew(server: ScriptedServer):
    server.answers["resume"] = {"code": "unavailable", "message": "Redis is down", "retry_after": 0.01}
    async with reading(server) as reader:
        (await joined(server, reader)).drop()
        back = await server.visit(2)
        await resumes(back)
        for call in (reader.client.leave, reader.client.join):
            call("42")
        await reader.heard("room:joined", 2)
        await back.message("301")
        await reader.heard("thread:message")
        server.answers["resume"] = _resumed
        await eventually(lambda: reader.client.rooms == {"user:7", ROOM})
        assert back.events("resume")[-1]["rooms"] == {"user:7": "100"}


async def test_what_comes_before_the_answer_to_a_resume_comes_again_after_it(server: ScriptedServer):
    server.answers["resume"] = None
    async with reading(server) as reader:
        (await joined(server, reader)).drop()
        back = await server.visit(2)
        await back.message("202")  # the server waited for five seconds, and no longer
        await back.answer("resume", {"rooms": {ROOM: {"recovered": True, "offset": "200", "missed": 2}}})
        for offset in ("201", "202"):
            await back.message(offset)
        await reader.heard("thread:message", 2)
        assert [event.offset for event in reader.named("thread:message")] == ["201", "202"]


async def test_room_that_may_not_be_entered_any_more_is_said_to_be_left(server: ScriptedServer):
    server.answers["resume"] = {"rooms": {ROOM: {"error": "forbidden"}}}
    async with reading(server) as reader:
        (await joined(server, reader)).drop()
        assert (await reader.heard("room:left")).data == {"room": ROOM, "reason": "forbidden"}
        (await server.visit(2)).drop()
        assert await resumes(await server.visit(3)) == {"user:7": "100"}


async def test_room_one_was_taken_out_of_is_not_asked_for_again(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        await visit.say("room:left", {"room": ROOM, "reason": "forbidden"})
        await reader.heard("room:left")
        visit.drop()
        back = await server.visit(2)
        assert await resumes(back) == {"user:7": "100"}
        assert back.events("join:thread") == []


async def test_thread_that_is_refused_is_said_to_be_left_and_not_asked_for_again(server: ScriptedServer):
    server.answers["join:thread"] = {"code": "forbidden", "message": "not yours"}
    async with reading(server) as reader:
        reader.client.join("42")
        assert (await reader.heard("room:left")).data == {"room": ROOM, "reason": "forbidden"}
        (await server.visit(1)).drop()
        back = await server.visit(2)
        await resumes(back)
        assert back.events("join:thread") == []


@pytest.mark.parametrize("code", ["unavailable", "rate_limited", "internal"])
async def test_thread_that_cannot_be_joined_just_now_is_asked_for_again(server: ScriptedServer, code: str):
    server.answers["join:thread"] = {"code": code, "message": "not now", "retry_after": 0.01}
    async with reading(server) as reader:
        reader.client.join("42")
        visit = await server.visit(1)
        await eventually(lambda: visit.events("join:thread"))
        server.answers["join:thread"] = {"room": ROOM, "offset": "200"}
        await reader.heard("room:joined")


async def test_thread_that_cannot_be_left_just_now_is_left_later(server: ScriptedServer):
    server.answers["leave:thread"] = {"code": "rate_limited", "message": "too fast", "retry_after": 0.01}
    async with reading(server) as reader:
        visit = await joined(server, reader)
        reader.client.leave("42")
        await eventually(lambda: visit.events("leave:thread"))
        server.answers["leave:thread"] = {}
        await eventually(lambda: len(visit.events("leave:thread")) == 2)
        assert reader.named("error") == []


async def test_thread_left_while_the_connection_is_away_is_not_resumed(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        server.script.append("hang")
        visit.drop()
        back = await server.visit(2)
        reader.client.leave("42")
        back.go.set()
        assert await resumes(back) == {"user:7": "100"}


async def test_thread_left_is_not_resumed_for_what_was_still_on_its_way(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        server.answers["join:thread"] = None
        reader.client.join("43")
        for thread_id in ("42", "43"):
            reader.client.leave(thread_id)
        await visit.message("201")
        await visit.answer("join:thread", {"room": "thread:43", "offset": "200"})
        await reader.client.call("heartbeat")
        visit.drop()
        assert await resumes(await server.visit(2)) == {"user:7": "100"}


async def test_thread_is_entered_once_and_left_with_the_last_who_wanted_it(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        for call in (reader.client.join, reader.client.leave):
            call("42")
        await reader.client.call("heartbeat")
        assert (len(visit.events("join:thread")), visit.events("leave:thread")) == (1, [])
        for _ in range(2):
            reader.client.leave("42")
        await reader.client.call("heartbeat")
        assert visit.events("leave:thread") == [{"thread_id": "42"}]


async def test_thread_one_was_taken_out_of_can_be_wanted_anew(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        await visit.say("room:left", {"room": ROOM, "reason": "forbidden"})
        await reader.heard("room:left")
        reader.client.leave("42")
        reader.client.join("42")
        await reader.heard("room:joined", 2)
        assert visit.events("leave:thread") == []


# --- A reader that is slow ------------------------------------------------------------------------------


class Talk:
    """The server says more than fits into a slow reader and the network."""

    size = 400

    def __init__(self, visit: Visit) -> None:
        self.said = 0
        self.task = asyncio.create_task(self._say(visit))

    async def _say(self, visit: Visit) -> None:
        for number in range(self.size):
            data = {"message_id": str(number), "body": "x" * 50_000}
            await visit.say("thread:message", data, room=ROOM, offset=str(1000 + number))
            self.said += 1

    async def is_stuck(self) -> bool:
        """Nothing has been said for a moment."""
        before = self.said
        await asyncio.sleep(0.2)
        return 0 < before == self.said < self.size


async def test_slow_reader_holds_up_the_server_and_misses_nothing(server: ScriptedServer):
    async with Client(server.url, token, max_unread=10) as client:
        client.join("42")
        await client.connected()
        talk = Talk(await server.visit(1))
        await eventually(talk.is_stuck)
        assert len(client._unread) == 10
        reader = Reader(client)
        await talk.task
        await reader.heard("thread:message", Talk.size)
        seen = [event.data["message_id"] for event in reader.named("thread:message")]
        assert seen == [str(number) for number in range(Talk.size)]


async def test_slow_reader_whose_connection_is_lost_goes_on_from_the_last_event_that_came(
    server: ScriptedServer,
):
    async with Client(server.url, token, max_unread=10, reconnection_delay=0.01) as client:
        client.join("42")
        await client.connected()
        visit = await server.visit(1)
        talk = Talk(visit)
        await eventually(talk.is_stuck)
        visit.drop()
        await asyncio.gather(talk.task, return_exceptions=True)
        assert len(client._unread) == 10
        assert server.handshakes == 1
        reader = Reader(client)
        since = (await resumes(await server.visit(2)))[ROOM]
        messages = reader.named("thread:message")
        assert [event.offset for event in messages] == [str(1000 + n) for n in range(len(messages))]
        assert since == messages[-1].offset


async def test_frame_may_be_as_large_as_the_server_wants(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await server.visit(1)
        await visit.say("presence:state", {"members": ["x" * 100] * 50_000})
        assert len((await reader.heard("presence:state")).data["members"]) == 50_000


# --- Leaving -----------------------------------------------------------------------------------------


def tasks_of_clients() -> list[str]:
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("client")]


async def test_leaving_closes_the_connection_normally(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
    visit = await server.visit(1)
    await visit.websocket.wait_closed()
    assert visit.websocket.close_code == 1000


@pytest.mark.parametrize("moment", ["connected", "waiting", "shaking hands", "getting a token", "unread"])
async def test_leaving_leaves_no_task(server: ScriptedServer, moment: str):
    asked = asyncio.Event()

    async def get_token() -> str:
        asked.set()
        if moment == "getting a token":
            await asyncio.Event().wait()
        return token()

    if moment == "waiting":
        server.script.append(Refusal(503, {"Retry-After": "3600"}))
    elif moment == "shaking hands":
        server.script.append("hang")
    async with Client(server.url, get_token, max_unread=10) as client:
        await asked.wait()
        match moment:
            case "connected":
                await client.connected()
            case "waiting":
                await anext(aiter(client))
            case "shaking hands":
                await server.visit(1)
            case "unread":
                visit = await server.visit(1)
                for number in range(20):
                    await visit.message(str(number))
        assert tasks_of_clients()
    assert tasks_of_clients() == []


async def test_cancelling_leaves_no_task_and_no_connection(server: ScriptedServer):
    async def use() -> None:
        async with Client(server.url, token) as client:
            async for _ in client:
                pass

    using = asyncio.create_task(use())
    visit = await server.visit(1)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert tasks_of_clients() == []
    await visit.websocket.wait_closed()
