"""Plays a case of client/conformance (its README specifies the format) against the Python client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from realtime.client import CallFailed, Client, Denied, Event
from tests.asking import PATIENCE
from tests.client.scripted import Bucket, token, usual_answer

FOLDER = Path(__file__).parents[2] / "client" / "conformance"
READY = {
    "namespace": "hub",
    "user_id": "7",
    "role": "attendant",
    "heartbeat_interval": 30,
    "expires_at": "2030-01-01T00:00:00.000Z",
    "rooms": {"user:7": "100"},
}
REPORTS = {
    "connection:ready": "connected",
    "connection:lost": "lost",
    "connection:refused": "refused",
    "room:joined": "joined",
    "room:left": "left",
    "room:gap": "gap",
    "error": "error",
}
Value = Any


def cases() -> Iterable[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.glob("*.json")):
        for case in json.loads(path.read_text()):
            yield f"{path.stem}: {case['name']}", case


def contains(found: Value, expected: Value) -> bool:
    """Whether there is at least what is expected."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return all(name in found and contains(found[name], value) for name, value in expected.items())
    return bool(found == expected)


def make_token(spec: Mapping[str, Any]) -> str:
    if "raw" in spec:
        return str(spec["raw"])
    return token(spec["name"], spec.get("expires_in", 3600), spec.get("user_id", "7"))


@dataclass(eq=False)
class Handshake:
    """One that waits for the script to accept or to refuse it."""

    websocket: ServerConnection
    request: Request
    answer: asyncio.Future[Response | None] = field(default_factory=asyncio.Future)

    @property
    def token(self) -> str:
        bearing = [value.removeprefix("Bearer ") for value in self.request.headers.get_all("Authorization")]
        offered = [p.strip() for p in self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        tokens = [*bearing, *(p.removeprefix("bearer.") for p in offered if p.startswith("bearer."))]
        assert len(tokens) == 1, f"expected one credential, got {len(tokens)}"
        assert bearing or "realtime.v1" in offered, offered
        assert tokens[0] not in self.request.path
        return tokens[0]


class CaseServer:
    """The server of a case, as its script has it."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        limit = case.get("limit")
        self._bucket = Bucket(limit["rate"], limit["burst"]) if limit else None
        specs = case.get("tokens", [{"name": "a"}])
        self._tokens = [make_token(spec) for spec in specs]
        self._named = {spec.get("name"): text for spec, text in zip(specs, self._tokens, strict=True)}
        self._handshakes: asyncio.Queue[Handshake] = asyncio.Queue()
        self._answers: list[asyncio.Future[Response | None]] = []
        self._refusal: Response | None = None
        self._ended_at = 0.0
        self._handshake: Handshake | None = None
        self._numbers = 0
        self._frames: list[dict[str, Any]] = []
        self._optional: list[dict[str, Any]] = []
        self._last_id: Any = None
        self._changed = asyncio.Event()

    def secrets(self) -> list[str]:
        return [text.strip() for text in self._tokens if len(text.strip()) > 6]

    async def look(self, websocket: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" not in request.headers:
            return self._refusal or websocket.respond(HTTPStatus.NO_CONTENT, "")
        handshake = Handshake(websocket, request)
        self._answers.append(handshake.answer)
        self._handshakes.put_nowait(handshake)
        return await handshake.answer

    def forget_handshakes(self) -> None:
        """Let no server wait until those that no step has taken are too old."""
        for answer in self._answers:
            answer.cancel()

    async def serve(self, websocket: ServerConnection) -> None:
        self._changed.set()
        try:
            async for text in websocket:
                frame = json.loads(text)
                if self._bucket is not None:
                    self._bucket.takes()
                if frame["event"] == "heartbeat" and "id" in frame:
                    await websocket.send(json.dumps({"event": "ack", "id": frame["id"], "data": {}}))
                self._frames.append(frame)
                self._changed.set()
        except ConnectionClosed:
            pass

    @staticmethod
    def subprotocol(websocket: ServerConnection, offered: Iterable[Subprotocol]) -> Subprotocol | None:
        return next((each for each in offered if each == "realtime.v1"), None)

    async def _next_handshake(self, step: Mapping[str, Any]) -> Handshake:
        handshake = await asyncio.wait_for(self._handshakes.get(), PATIENCE)
        waited = time.monotonic() - self._ended_at
        assert waited >= step.get("not_before", 0), f"the next attempt came after {waited:.2f} s"
        if "token" in step:
            assert handshake.token == self._named.get(step["token"], step["token"])
        assert handshake.token
        if "resume" in step:
            query = dict(parse_qsl(urlsplit(handshake.request.path).query))
            assert (query.get("resume") == "1") is step["resume"], handshake.request.path
        return handshake

    async def accept(self, step: Mapping[str, Any]) -> None:
        self._check_frames()
        self._handshake = handshake = await self._next_handshake(step)
        self._refusal, self._frames = None, []
        handshake.answer.set_result(None)
        self._numbers += 1
        await self._until(lambda: handshake.websocket.state.name == "OPEN")
        if (ready := step.get("ready", {})) is not None:
            data = {"connection_id": f"c{self._numbers}", **READY, **ready}
            await self._websocket.send(json.dumps({"event": "connection:ready", "data": data}))

    async def refuse(self, step: Mapping[str, Any]) -> None:
        handshake = await self._next_handshake(step)
        if step["status"]:
            body = step.get("body", "")
            if "error" in step:
                body = json.dumps({"error": step["error"]}).replace("$token", handshake.token)
            response = handshake.websocket.respond(HTTPStatus(step["status"]), body)
            response.headers.update(step.get("headers", {}))
            self._refusal = response
            handshake.answer.set_result(response)
        else:
            handshake.websocket.transport.abort()
            handshake.answer.set_result(None)
        self._ended_at = time.monotonic()

    @property
    def _websocket(self) -> ServerConnection:
        assert self._handshake is not None
        return self._handshake.websocket

    async def expect(self, wanted: Mapping[str, Any], step: Mapping[str, Any]) -> None:
        for _ in range(step.get("times", 1)):
            frame = await self._until(lambda: self._take_frame(wanted))
            self._last_id = frame.get("id")
            answer = (
                step["answer"] if "answer" in step else usual_answer(frame["event"], frame.get("data", {}))
            )
            if self._last_id is None or frame["event"] == "heartbeat":
                continue
            if "error" in step:
                await self.send({"event": "error", "id": self._last_id, "data": step["error"]})
            elif answer is not None:
                await self.send({"event": "ack", "id": self._last_id, "data": answer})

    def _take_frame(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        expected = self._filled(wanted)
        for frame in self._frames:
            if frame["event"] == expected["event"] and (
                "data" not in expected or frame.get("data", {}) == expected["data"]
            ):
                self._frames.remove(frame)
                return frame
        return None

    async def send(self, frame: Mapping[str, Any]) -> None:
        filled = self._filled(frame)
        await self._websocket.send(json.dumps(filled))

    def _filled(self, value: Value) -> Value:
        """A value with what stands for tokens, long texts and the id of the last frame."""
        if isinstance(value, Mapping):
            if "$token" in value:
                return self._named[value["$token"]]
            if "$text" in value:
                return "x" * value["$text"]
            return {name: self._filled(item) for name, item in value.items()}
        return self._last_id if value == "$last" else value

    async def close(self, step: Mapping[str, Any]) -> None:
        self._ended_at = time.monotonic()
        await self._websocket.close(step["code"], step.get("reason", ""))

    async def cut(self, step: Mapping[str, Any]) -> None:
        self._ended_at = time.monotonic()
        self._websocket.transport.abort()

    def _check_frames(self) -> None:
        left = [
            frame
            for frame in self._frames
            if frame["event"] != "heartbeat"
            and not any(contains(frame, self._filled(wanted)) for wanted in self._optional)
        ]
        assert not left, f"no step took {left}"

    async def _until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(PATIENCE):
            while not (found := condition()):
                self._changed.clear()
                try:
                    await asyncio.wait_for(self._changed.wait(), 0.05)
                except TimeoutError:
                    continue
        return found


class Player(CaseServer):
    """The program that uses the client, and the script that it and the server follow."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        super().__init__(case)
        self._steps: list[dict[str, Any]] = case["steps"]
        self._asked = 0
        self._reports: list[tuple[str, Mapping[str, Any]]] = []
        self._calls: dict[str, asyncio.Task[Any]] = {}
        self.seen: list[str] = []
        """Everything that the client has reported, as text."""
        self.client: Client | None = None

    def get_token(self) -> str:
        self._asked += 1
        return self._tokens[min(self._asked, len(self._tokens)) - 1]

    # --- The program -----------------------------------------------------------------------------

    async def read(self, client: Client) -> None:
        try:
            async for event in client:
                self._report(event)
        except Denied as denied:
            self.seen += [repr(denied), denied.reason, denied.message]
            self._tell("denied", {})
        except ConnectionError as error:
            self.seen.append(repr(error))
            self._tell("stopped", {})
        else:
            self._tell("stopped", {})

    def _report(self, event: Event) -> None:
        if name := REPORTS.get(event.name):
            self._tell(name, event.data if name != "connected" else {})
        else:
            seen = {"event": event.name, "data": event.data, "room": event.room, "offset": event.offset}
            self._tell("event", seen)

    def _tell(self, name: str, data: Mapping[str, Any]) -> None:
        self.seen.append(repr(data))
        self._reports.append((name, data))
        self._changed.set()

    def _take_report(self, name: str, data: Mapping[str, Any]) -> Any:
        for report in self._reports:
            if report[0] == name and contains(report[1], data):
                self._reports.remove(report)
                return report
        return None

    async def do(self, step: Mapping[str, Any]) -> None:
        for number in range(step.get("times", 1)):
            room = number if step.get("room") == "$n" else step.get("room")
            if not step.get("fails"):
                await self._do(step, room)
                continue
            try:
                await self._do(step, room)
            except (TypeError, ValueError):
                continue
            raise AssertionError(f"{step} did not fail")

    async def _do(self, step: Mapping[str, Any], room: Any) -> None:
        assert self.client is not None
        data = self._filled(step.get("data", {}))
        match step["do"]:
            case "join":
                self.client.join(room)
            case "leave":
                self.client.leave(room)
            case "send":
                await self.client.send(step["event"], data)
            case "call":
                self._calls[step["as"]] = asyncio.create_task(self.client.call(step["event"], data))
                await asyncio.sleep(0)
            case "stop":
                await self.client.__aexit__(None, None, None)

    async def _failure(self, name: str) -> str:
        try:
            answer = await asyncio.wait_for(self._calls[name], PATIENCE)
        except CallFailed as failed:
            self.seen.append(repr(failed))
            return failed.code
        raise AssertionError(f"expected an error, got {answer}")

    # --- The script ------------------------------------------------------------------------------

    async def play(self) -> None:
        for number, step in enumerate(self._steps):
            try:
                await self._step(step)
            except (AssertionError, TimeoutError) as error:
                raise AssertionError(
                    f"step {number}, {step}: {error}; frames {self._frames}, reports {self._reports}"
                ) from error
        self._check_frames()
        assert self._bucket is None or not self._bucket.refused, (
            f"{self._bucket.refused} frames were too fast"
        )

    async def _step(self, step: Mapping[str, Any]) -> None:
        simple: dict[str, Callable[[Mapping[str, Any]], Awaitable[None]]] = {
            "accept": self.accept,
            "refuse": self.refuse,
            "close": self.close,
            "cut": self.cut,
        }
        match step:
            case {"do": _}:
                await self.do(step)
            case {"expect": wanted}:
                await self.expect(wanted, step)
            case {"may": wanted}:
                self._optional.append(wanted)
            case {"send": frame}:
                for _ in range(step.get("times", 1)):
                    await self.send(frame)
            case {"told": name}:
                for _ in range(step.get("times", 1)):
                    await self._until(lambda: self._take_report(name, step.get("data", {})))
            case {"not_told": name}:
                assert self._take_report(name, step.get("data", {})) is None
            case {"result": name}:
                assert contains(await asyncio.wait_for(self._calls[name], PATIENCE), step.get("data", {}))
            case {"failure": name}:
                assert await self._failure(name) == step["code"]
            case {"no_handshake": seconds}:
                await asyncio.sleep(seconds)
                assert self._handshakes.empty(), "there was another attempt"
            case _:
                name = next(iter(step))
                await simple[name](step[name])
