"""Presence as one test sees it: the store's operations by name, time by hand, and what was announced."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from presence import store
from presence.store import LeaseLost
from realtime.redis.client import run_sync, sync_client
from tests.inprocess import HUB

GROUPS = ("attendants",)


class World:
    """Socket processes (nodes) that tell the store about connections."""

    def __init__(self, namespace: str = HUB) -> None:
        self.namespace = namespace
        self.base = store.base(namespace)
        self.redis = sync_client()
        self.epochs: dict[str, str] = {}
        self._read = "-"

    # --- Operations ------------------------------------------------------------------------------

    def apply(self, *operations: dict[str, Any], node: str = "") -> list[str]:
        """Run operations in the name of a node, which registers first if it must."""
        try:
            return self.apply_once(*operations, node=node)
        except LeaseLost as lost:
            self.register(node=node, epoch=lost.epoch)
            return self.apply_once(*operations, node=node)

    def register(self, *operations: dict[str, Any], node: str, epoch: str = "") -> list[str]:
        answer = self._run(operations, node, register=True)
        self.epochs[node] = answer[0]
        return answer[1]

    def apply_once(self, *operations: dict[str, Any], node: str = "") -> list[str]:
        return self._run(operations, node)[1]

    def _run(self, operations: Any, node: str, *, register: bool = False) -> tuple[str, list[str]]:
        call = store._call(
            operations, node, self.epochs.get(node, ""), register=register, namespace=self.namespace
        )
        return store._answers(run_sync(store._apply, [self.base, store.stream()], [call]))

    def connect(
        self,
        user: str = "ana",
        connection: str = "tab-1",
        *,
        groups: tuple[str, ...] = GROUPS,
        name: str | None = None,
        node: str = "node-1",
        **more: Any,
    ) -> store.State | None:
        (answer,) = self.apply(
            {
                "does": "connect",
                "connection": connection,
                "user": user,
                "name": user.title() if name is None else name,
                "groups": groups,
                **more,
            },
            node=node,
        )
        return store.state(answer)

    def disconnect(self, connection: str = "tab-1", node: str = "node-1") -> None:
        self.apply({"does": "disconnect", "connection": connection}, node=node)

    def logout(self, connection: str = "tab-1", node: str = "node-1") -> None:
        self.apply({"does": "logout", "connection": connection}, node=node)

    def heartbeat(self, user: str = "ana") -> store.State | None:
        return store.state(self.apply({"does": "heartbeat", "user": user})[0])

    def choose(self, status: str, user: str = "ana", reason: str = "chosen") -> store.State | None:
        (answer,) = self.apply({"does": "choose", "user": user, "status": status, "reason": reason})
        return store.state(answer)

    def sweep(self) -> int:
        """Judge all that is due, however many calls that takes; how many things changed."""
        changed, more = 0, True
        while more:
            swept = self.sweep_once()
            changed, more = changed + swept.changed, swept.more
        return changed

    def sweep_once(self) -> store.Swept:
        return msgspec.json.decode(self.apply({"does": "sweep"})[0], type=store.Swept)

    # --- Time ------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        seconds, microseconds = self.redis.time()  # type: ignore[misc]
        return int(seconds) * 1000 + int(microseconds) // 1000

    def deadline(self, what: str, user: str = "ana") -> float | None:
        """Milliseconds until a user's deadline (`away`, `grace`), if there is one."""
        score: Any = self.redis.zscore(f"{self.base}:deadlines", f"{what}|{user}")
        return None if score is None else score - self.now

    def pass_deadline(self, what: str, user: str = "ana") -> None:
        assert self.deadline(what, user) is not None, f"no {what} deadline for {user}"
        self.redis.zadd(f"{self.base}:deadlines", {f"{what}|{user}": self.now - 1}, xx=True)

    def silence(self, user: str = "ana") -> None:
        """Nothing was heard from the user for so long that they are away; judged at once."""
        self.pass_deadline("away", user)
        self.sweep()

    def end_grace(self, user: str = "ana") -> None:
        self.pass_deadline("grace", user)
        self.sweep()

    def kill(self, node: str = "node-1") -> None:
        """A process dies, and its lease ends; judged at once."""
        self.redis.zadd(f"{self.base}:nodes", {node: self.now - 1}, xx=True)
        self.sweep()

    def stand_still(self, milliseconds: int) -> None:
        """Nobody ran anything for so long."""
        self.redis.set(f"{self.base}:touched", self.now - milliseconds)

    def keys(self) -> dict[bytes, bytes]:
        """All that Redis knows now, for `set_back`."""
        return {name: self.redis.dump(name) for name in self.redis.keys(f"{store.base()}*")}

    def set_back(self, to: dict[bytes, bytes]) -> None:
        """Redis is as it was: a replica took over that had not got what came last."""
        self.lose_everything()
        for name, value in to.items():
            self.redis.restore(name, 0, value)

    def lose_everything(self) -> None:
        """Redis restarts empty, but for the stream (so that the test sees what is announced)."""
        for name in self.redis.scan_iter(f"{self.base}:*"):
            self.redis.delete(name)

    # --- What others see -------------------------------------------------------------------------

    def transitions(self) -> list[dict[str, Any]]:
        """Everything announced since this was last asked."""
        entries: Any = self.redis.xrange(store.stream(), min=self._read)
        if entries:
            self._read = "(" + entries[-1][0].decode()
        return [json.loads(fields[b"transition"]) for _, fields in entries]

    def news(self) -> list[tuple[str, str, str]]:
        """The same in short: from, to, reason."""
        return [(entry["from"], entry["to"], entry["reason"]) for entry in self.transitions()]

    def status(self, user: str = "ana", group: str = "attendants") -> str | None:
        return {member["user_id"]: member["status"] for member in store.snapshot_sync(group)}.get(user)
