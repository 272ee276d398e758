"""Presence as a test sees it: the store's operations by name, time by hand, and the announcements."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from presence import store
from presence.store import Caller, LeaseLost
from realtime.redis.client import sync_client
from tests.inprocess import HUB

GROUPS = ("attendants",)
CAME = ("offline", "online", "connect")


class World:
    """Instances that tell the store about connections."""

    def __init__(self, namespace: str = HUB) -> None:
        self.namespace = namespace
        self.base = store.base(namespace)
        self.redis = sync_client()
        self.epochs: dict[str, str] = {}
        self._read = "-"
        self._began = self.now - 1  # `kill` lets a lease end so long ago

    # --- Operations ------------------------------------------------------------------------------

    def apply(self, *operations: dict[str, Any], instance: str = "") -> list[str]:
        """Run operations for an instance, which registers first if it must."""
        try:
            return self.apply_once(*operations, instance=instance)
        except LeaseLost as lost:
            self.register(instance=instance, epoch=lost.epoch)
            return self.apply_once(*operations, instance=instance)

    def register(self, *operations: dict[str, Any], instance: str, epoch: str = "") -> list[str]:
        answer = self._run(operations, instance, register=True)
        self.epochs[instance] = answer[0]
        return answer[1]

    def apply_once(self, *operations: dict[str, Any], instance: str = "") -> list[str]:
        return self._run(operations, instance)[1]

    def _run(self, operations: Any, instance: str, *, register: bool = False) -> tuple[str, list[str]]:
        caller = Caller(instance, self.epochs.get(instance, ""), registers=register)
        return store.apply_sync(self.namespace, operations, caller)

    def connect(
        self,
        user: str = "ana",
        connection: str = "tab-1",
        *,
        groups: tuple[str, ...] = GROUPS,
        name: str | None = None,
        instance: str = "instance-1",
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
            instance=instance,
        )
        return store.state(answer)

    def disconnect(self, connection: str = "tab-1", instance: str = "instance-1") -> None:
        self.apply({"does": "disconnect", "connection": connection}, instance=instance)

    def regroup(
        self, connection: str = "tab-1", *, groups: tuple[str, ...] = (), dropped: tuple[str, ...] = ()
    ) -> None:
        operation = {"does": "regroup", "connection": connection, "groups": groups, "dropped": dropped}
        self.apply(operation, instance="instance-1")

    def logout(self, connection: str = "tab-1", instance: str = "instance-1") -> None:
        self.apply({"does": "logout", "connection": connection}, instance=instance)

    def heartbeat(self, user: str = "ana") -> store.State | None:
        return store.state(self.apply({"does": "heartbeat", "user": user})[0])

    def choose(self, status: str, user: str = "ana", reason: str = "chosen") -> store.State | None:
        (answer,) = self.apply({"does": "choose", "user": user, "status": status, "reason": reason})
        return store.state(answer)

    def sweep(self) -> int:
        """Make all changes that are due, in as many calls as that takes, and return their number."""
        changed, more = 0, True
        while more:
            swept = self.sweep_once()
            changed, more = changed + swept.changed, swept.more
        return changed

    def sweep_once(self) -> store.Swept:
        return msgspec.json.decode(self.apply({"does": "sweep"})[0], type=store.Swept)

    def play(self, story: str) -> None:
        """Call the methods that a story names, with the words behind them; groups are separated by commas."""
        for step in filter(None, story.split("; ")):
            verb, *words = step.split()
            named: dict[str, Any] = dict(word.split("=") for word in words if "=" in word)
            for several in named.keys() & {"groups", "dropped"}:
                named[several] = tuple(named[several].split(","))
            getattr(self, verb)(*(word for word in words if "=" not in word), **named)

    # --- Time ------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        seconds, microseconds = self.redis.time()  # type: ignore[misc]
        return int(seconds) * 1000 + int(microseconds) // 1000

    def deadline(self, what: str, user: str = "ana") -> float | None:
        """Milliseconds until a user's deadline (`away`, `grace`), if there is one."""
        score: Any = self.redis.zscore(f"{self.base}:deadlines", f"{what}|{user}")
        return None if score is None else score - self.now

    def was_set_to(self, left: float | None, milliseconds: int) -> bool:
        """Whether what is due in `left` milliseconds was set to `milliseconds` at a moment of this test."""
        return left is not None and milliseconds - (self.now - self._began) <= left <= milliseconds

    def pass_deadline(self, what: str, user: str = "ana") -> None:
        assert self.deadline(what, user) is not None, f"no {what} deadline for {user}"
        self.redis.zadd(f"{self.base}:deadlines", {f"{what}|{user}": self.now - 1}, xx=True)

    def silence(self, user: str = "ana") -> None:
        """The user sends no heartbeat until they are away; swept at once."""
        self.pass_deadline("away", user)
        self.sweep()

    def end_grace(self, user: str = "ana") -> None:
        self.pass_deadline("grace", user)
        self.sweep()

    def kill(self, instance: str = "instance-1") -> None:
        """An instance dies and its lease ends; swept at once."""
        self.redis.zadd(f"{self.base}:nodes", {instance: self.now - 1}, xx=True)
        self.sweep()

    def stand_still(self, milliseconds: int) -> None:
        """No call was made for that time."""
        self.redis.set(f"{self.base}:touched", self.now - milliseconds)

    def set_clock_back(self, milliseconds: int) -> None:
        """Redis' clock was set back: all times that were written before are ahead by so much."""
        for name in ("nodes", "deadlines"):
            times: Any = self.redis.zrange(f"{self.base}:{name}", 0, -1, withscores=True)
            for member, time in times:
                self.redis.zadd(f"{self.base}:{name}", {member: time + milliseconds})
        self.stand_still(-milliseconds)

    def keys(self) -> dict[bytes, bytes]:
        """Everything in Redis, for `set_back`."""
        return {name: self.redis.dump(name) for name in self.redis.keys(f"{self.base}*")}

    def set_back(self, to: dict[bytes, bytes]) -> None:
        """A replica took over that had not received the last writes."""
        self.lose_everything()
        for name, value in to.items():
            self.redis.restore(name, 0, value)

    def lose_everything(self) -> None:
        """Redis restarts empty, but for the stream (so that the test sees what is announced)."""
        for name in self.redis.scan_iter(f"{self.base}:*"):
            self.redis.delete(name)

    # --- What is announced ------------------------------------------------------------------------

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
        return {
            member["user_id"]: member["status"] for member in store.snapshot_sync(self.namespace, group)
        }.get(user)
