"""Known ways to break the promises, each a small change of the real code: the simulation has to notice every one.

A mutation replaces one piece of source text, as the code is imported; the file itself stays as it is. One whose text is
not there any more is reported, so that this list keeps up with the code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """One change of one file."""

    name: str
    file: str
    old: str
    new: str
    seed: int = 1
    """From which on seeds are tried; one that finds it."""

    def apply(self) -> None:
        """Break the code, before any of it is imported. Raises `LookupError` when there is nothing to break."""
        source = (ROOT / self.file).read_text()
        if source.count(self.old) != 1:
            raise LookupError(f"{self.name}: {self.old!r} is in {self.file} {source.count(self.old)} times")
        if self.file.endswith(".py"):
            module = self.file.removesuffix(".py").replace("/", ".")
            assert module not in sys.modules, module
            sys.meta_path.insert(0, _Finder(module, self._mutate))  # type: ignore[arg-type]
        else:
            read = Path.read_bytes
            patch.object(
                Path,
                "read_bytes",
                lambda path: self._mutate(read(path)) if path == ROOT / self.file else read(path),
            ).start()

    def _mutate(self, source: bytes) -> bytes:
        return source.replace(self.old.encode(), self.new.encode())


class _Loader(SourceFileLoader):
    mutate: Callable[[bytes], bytes]

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return compile(self.mutate(Path(path).read_bytes()), path, "exec", dont_inherit=True)


class _Finder:
    def __init__(self, module: str, mutate: Callable[[bytes], bytes]) -> None:
        self._module = module
        self._mutate = mutate

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._module or (spec := PathFinder.find_spec(name, path, target)) is None:
            return None
        assert spec.origin is not None
        loader = _Loader(name, spec.origin)
        loader.mutate = self._mutate
        spec.loader = loader
        return spec


MUTATIONS = [
    Mutation(
        "a listener does not look for holes",
        "realtime/layers/listener.py",
        "        if new.previous != self.position:\n            self.catch_up()\n        else:\n"
        "            self._write(new)",
        "        self._write(new)",
        seed=9,
    ),
    Mutation(
        "fan-out does not look where a listener stands",
        "realtime/layers/fanout.py",
        "if listener.position == previous and listener.state is live and is_for_all:",
        "if listener.state is live and is_for_all:",
        seed=2,
    ),
    Mutation(
        "fan-out reaches listeners that are not live",
        "realtime/layers/fanout.py",
        "if listener.position == previous and listener.state is live and is_for_all:",
        "if listener.position == previous and is_for_all:",
        seed=8,
    ),
    Mutation(
        "a listener goes live without looking at the tail",
        "realtime/layers/listener.py",
        "            elif self.position >= self.group.tail and self.state",
        "            elif self.state",
    ),
    Mutation(
        "a listener starts live without looking at the tail",
        "realtime/layers/listener.py",
        "            if self.position >= self.group.tail:\n                self._go_live()\n            else:",
        "            if True:\n                self._go_live()\n            else:",
    ),
    Mutation(
        "a listener believes the end that it is compared with",
        "realtime/layers/listener.py",
        "        if self.state is State.LIVE and self.position != end:\n            self.catch_up()",
        "        if self.state is State.LIVE:\n            self.position = max(self.position, end)",
    ),
    Mutation(
        "rooms are not compared after the subscription was lost",
        "realtime/layers/gap_repair.py",
        "        self._hears_orders.set()\n        await self._compare(tuple(self._groups.values()))",
        "        self._hears_orders.set()",
        seed=3,
    ),
    Mutation(
        "a gap is not told",
        "realtime/layers/listener.py",
        '        self.outlet.gap(self.group.room or "", "lost")',
        "        pass",
        seed=9,
    ),
    Mutation(
        "what is given up waiting for is not compared",
        "realtime/layers/group.py",
        "        self.clear()\n        self.put(Compare(self.tail))\n",
        "        self.clear()\n",
        seed=7,
    ),
    Mutation(
        "an older end replaces a newer tail",
        "realtime/layers/group.py",
        "        if self.tail == tail or end > self.tail:",
        "        if True:",
        seed=9,
    ),
    Mutation(
        "a history of which Redis has lost a part is not cut",
        "realtime/layers/scripts/cut.lua",
        "  if received == last or received == '0' then return last end\n",
        "  if true then return last end\n",
        seed=38,
    ),
    Mutation(
        "a rejoin does not pause the room",
        "realtime/connections/rooms.py",
        "        listener.pause()\n",
        "",
        seed=12,
    ),
    Mutation(
        "a room starts before the acknowledgement",
        "realtime/connections/rooms.py",
        "        self._entered.append(listener)\n        self._connection.on_entered(room)",
        "        listener.start()\n        self._connection.on_entered(room)",
    ),
    Mutation(
        "a listener that left is not closed",
        "realtime/layers/loop_layer.py",
        '        """Leave a room."""\n        listener.close()',
        '        """Leave a room."""\n        return',
    ),
    Mutation(
        "an expel waits for its turn",
        "realtime/connections/rooms.py",
        "            del self._listeners[room]\n            self._leave(room, listener, reason)\n"
        "            self._connection.soon(self._typing.stop, room)",
        "            self._connection.soon(self.leave, room, reason)",
        seed=38,
    ),
    Mutation(
        "rights are not reviewed after orders may have been missed",
        "realtime/layers/gap_repair.py",
        "        await self._review()\n",
        "",
        seed=30,
    ),
    Mutation(
        "rooms are served while orders may be missed",
        "realtime/layers/gap_repair.py",
        "                self._hears_orders.clear()\n",
        "",
        seed=29,
    ),
    Mutation(
        "a wiped Redis is not noticed",
        "realtime/layers/liveness.py",
        "        if known is not None and known != self._epoch:",
        "        if False:",
        seed=58,
    ),
    Mutation(
        "a connection is judged dead because we are late",
        "realtime/redis/connection.py",
        "        self._silent = 0 if is_late else self._silent + 1",
        "        self._silent = TICKS + 1 if is_late else self._silent + 1",
        seed=33,
    ),
    Mutation(
        "rights are not checked after entering",
        "realtime/connections/rooms.py",
        "            is_allowed = await self._connection.may_enter(room) and self._listeners.get(room) is listener",
        "            is_allowed = self._listeners.get(room) is listener",
        seed=168,
    ),
    Mutation(
        "an id is delivered twice",
        "realtime/layers/scripts/append.lua",
        "  if redis.call('SET', name, '1', 'NX', 'EX', keep_marker) then\n",
        "  if true then\n",
    ),
    Mutation(
        "an id that one room refuses is delivered again in the others",
        "realtime/layers/scripts/append.lua",
        "  if is_new == true and not is_taken then\n",
        "  if is_new == true then\n",
        seed=5,
    ),
    Mutation(
        "a message that one room refuses takes the rest of its batch with it",
        "realtime/layers/scripts/append.lua",
        "while not is_done and whole == '' and key > failed do\n",
        "while false do\n",
        seed=5,
    ),
    Mutation(
        "a batch that is sent again is delivered again",
        "realtime/layers/scripts/append.lua",
        "  if last and last >= entry then return false end",
        "",
        seed=9,
    ),
    Mutation(
        "a lost position is used again",
        "realtime/layers/scripts/append.lua",
        "  room.last = math.max(room.last + 1, now)",
        "  room.last = room.last + 1",
        seed=19,
    ),
    Mutation(
        "a leader delivers what was published before its term",
        "realtime/bridge/pubsub_listener.py",
        "            await self._subscriptions.subscribe([channel])\n",
        "",
        seed=25,
    ),
    Mutation(
        "a term that another has followed is renewed",
        "realtime/redis/lease.py",
        "    if holder ~= ARGV[1] then return 0 end\n    redis.call('SET'",
        "    redis.call('SET'",
        seed=17,
    ),
]


def apply(name: str) -> None:
    """Apply the mutation of that name."""
    next(mutation for mutation in MUTATIONS if mutation.name == name).apply()
