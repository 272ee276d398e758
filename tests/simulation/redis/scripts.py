"""Lua scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any

import msgspec
from lupa import lua51

from tests.simulation.clock import Clock
from tests.simulation.redis.keys import Keys
from tests.simulation.redis.resp import Refused, Status, number_text


class Scripts(Keys):
    """The commands that load and run scripts."""

    run: Callable[[Any, Sequence[bytes]], Any]
    """A command that a script calls."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.scripts: dict[bytes, Any] = {}
        """What it knows; what was compiled is kept apart, which is no business of the one that restarts."""
        self._lua = Lua(self)

    def do_script(self, what: bytes, source: bytes) -> Any:
        assert what.upper() == b"LOAD", what
        sha = sha1(source, usedforsecurity=False).hexdigest().encode()
        self.scripts[sha] = self._lua.compile(sha, source)
        return sha

    def do_evalsha(self, sha: bytes, number: bytes, *arguments: bytes) -> Any:
        if (script := self.scripts.get(sha.lower())) is None:
            raise Refused("NOSCRIPT No matching script. Please use EVAL.")
        return self._lua.run(script, arguments[: int(number)], arguments[int(number) :])

    def do_eval(self, source: bytes, number: bytes, *arguments: bytes) -> Any:
        return self.do_evalsha(self.do_script(b"LOAD", source), number, *arguments)


class Lua:
    """Runs scripts as Redis does: Lua 5.1, `redis.call`, `cjson`."""

    _compiled: dict[bytes, Any] = {}
    runtime: Any = None
    _server: Scripts

    def __init__(self, server: Scripts) -> None:
        # One runtime for all servers of this process: its scripts run one after the other.
        self.server = server
        if Lua.runtime is None:
            Lua.runtime = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=False)
            self._table = Lua.runtime.table_from
            names = Lua.runtime.globals()
            names[b"redis"] = self._table(
                {
                    b"call": self._call,
                    b"pcall": self._pcall,
                    b"error_reply": lambda text: self._table({b"err": text}),
                    b"status_reply": lambda text: self._table({b"ok": text}),
                    b"sha1hex": lambda text: sha1(text, usedforsecurity=False).hexdigest().encode(),
                    b"log": lambda *_: None,
                    b"LOG_WARNING": 3,
                    b"replicate_commands": lambda: True,
                }
            )
            names[b"cjson"] = self._table({b"decode": self._decode, b"encode": self._encode, b"null": None})
        self._table = Lua.runtime.table_from

    def compile(self, sha: bytes, source: bytes) -> Any:
        if sha not in Lua._compiled:
            try:
                Lua._compiled[sha] = Lua.runtime.eval(b"function(KEYS, ARGV)\n" + source + b"\nend")
            except lua51.LuaError as error:
                raise Refused(f"ERR Error compiling script {error}") from error
        return Lua._compiled[sha]

    def run(self, script: Any, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        Lua._server = self.server
        try:
            return self._reply(script(self._table(keys), self._table(arguments)))
        except lua51.LuaError as error:
            raise Refused(f"ERR {error}") from error

    def _reply(self, value: Any) -> Any:
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, bytes):
            return value
        if isinstance(value, int | float):
            return int(value)
        if value[b"err"] is not None:
            return Refused(value[b"err"].decode())
        if value[b"ok"] is not None:
            return Status(value[b"ok"])
        return [self._reply(value[place]) for place in range(1, len(value) + 1)]

    @staticmethod
    def _call(name: bytes, *arguments: Any) -> Any:
        words = [name, *[each if isinstance(each, bytes) else _lua_number(each) for each in arguments]]
        return _to_lua(Lua._server.run(None, words))

    @staticmethod
    def _pcall(name: bytes, *arguments: Any) -> Any:
        try:
            return Lua._call(name, *arguments)
        except Refused as error:
            return Lua.runtime.table_from({b"err": str(error).encode()})

    @staticmethod
    def _decode(text: bytes) -> Any:
        return _json_to_lua(msgspec.json.decode(text))

    @staticmethod
    def _encode(value: Any) -> bytes:
        return msgspec.json.encode(_json_of(value))


def _lua_number(value: float) -> bytes:
    return b"%d" % value if isinstance(value, int) else (b"%.17g" % value)


def _to_lua(reply: Any) -> Any:
    match reply:
        case Status():
            return Lua.runtime.table_from({b"ok": bytes(reply)})
        case bytes() | int():
            return reply
        case None:
            return False
        case float():
            return number_text(reply)
        case dict():
            return _to_lua([part for pair in reply.items() for part in pair])
    return Lua.runtime.table_from([_to_lua(each) for each in reply])


def _json_to_lua(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return Lua.runtime.table_from([_json_to_lua(each) for each in value])
    if isinstance(value, dict):
        return Lua.runtime.table_from({name.encode(): _json_to_lua(each) for name, each in value.items()})
    return value


def _json_of(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or isinstance(value, bool | int | float):
        return value
    pairs = list(value.items())
    if pairs and all(isinstance(name, int) for name, _ in pairs):
        return [_json_of(value[place]) for place in range(1, len(value) + 1)]
    return {name.decode(): _json_of(each) for name, each in pairs}
