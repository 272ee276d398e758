"""Random histories of presence, against the rules written down once more in a few lines of Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from presence import store
from realtime.redis.client import sync_client
from tests.inprocess import HUB

from .world import World

USERS = ["ana", "bob"]
INSTANCES = ["instance-1", "instance-2"]
GROUPS = ["sales", "support", "vip"]


@dataclass
class User:
    """What the rules say about one user."""

    status: str = "offline"
    chosen: bool = False
    open: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    """Connection -> instance and groups."""
    groups: frozenset[str] = frozenset()
    grace: bool = False
    lost_recently: bool = False

    def regroup(self) -> None:
        self.groups = frozenset().union(*(groups for _, groups in self.open.values()))

    def go_offline(self) -> None:
        self.__init__()  # type: ignore[misc]


class Presence(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        for name in sync_client().scan_iter(f"*{store.stream()}*"):
            sync_client().delete(name)
        self.world = World()
        self.users = {user: User() for user in USERS}
        self.seen = dict.fromkeys(USERS, "offline")
        self.connections = 0

    def a_connection(self, data: Any) -> tuple[str, str]:
        """One of the open connections: user and connection."""
        return data.draw(
            st.sampled_from([(name, one) for name, user in self.users.items() for one in user.open])
        )

    @rule(
        name=st.sampled_from(USERS),
        instance=st.sampled_from(INSTANCES),
        groups=st.frozensets(st.sampled_from(GROUPS)),
    )
    def connect(self, name: str, instance: str, groups: frozenset[str]) -> None:
        self.connections += 1
        connection = f"c{self.connections}"
        self.world.connect(name, connection, groups=tuple(sorted(groups)), instance=instance)
        user = self.users[name]
        if not (user.status == "away" and user.chosen):
            user.status = "online"
        user.grace = user.lost_recently = False
        user.open[connection] = (instance, groups)
        user.regroup()

    @precondition(lambda self: any(user.open for user in self.users.values()))
    @rule(data=st.data())
    def disconnect(self, data: Any) -> None:
        name, connection = self.a_connection(data)
        user = self.users[name]
        self.world.disconnect(connection, user.open.pop(connection)[0])
        user.lost_recently = True
        if user.open:
            user.regroup()
        else:
            user.grace = True

    @precondition(lambda self: any(user.open for user in self.users.values()))
    @rule(data=st.data())
    def logout(self, data: Any) -> None:
        name, connection = self.a_connection(data)
        user = self.users[name]
        self.world.logout(connection, user.open.pop(connection)[0])
        if user.open:
            user.regroup()
        elif user.lost_recently:
            user.grace = True
        else:
            user.go_offline()

    @rule(name=st.sampled_from(USERS), status=st.sampled_from(["online", "away"]))
    def choose(self, name: str, status: str) -> None:
        self.world.choose(status, name)
        user = self.users[name]
        if user.status != "offline":
            user.status, user.chosen = status, status == "away"

    @rule(name=st.sampled_from(USERS))
    def heartbeat(self, name: str) -> None:
        self.world.heartbeat(name)
        user = self.users[name]
        if user.open and user.status == "away" and not user.chosen:
            user.status = "online"

    @rule()
    def sweep(self) -> None:
        assert self.world.sweep() == 0

    @precondition(lambda self: any(user.open and user.status == "online" for user in self.users.values()))
    @rule(data=st.data())
    def silence(self, data: Any) -> None:
        name = data.draw(
            st.sampled_from([n for n, user in self.users.items() if user.open and user.status == "online"])
        )
        self.world.silence(name)
        self.users[name].status = "away"

    @precondition(lambda self: any(user.grace for user in self.users.values()))
    @rule(data=st.data())
    def end_grace(self, data: Any) -> None:
        name = data.draw(st.sampled_from([n for n, user in self.users.items() if user.grace]))
        self.world.end_grace(name)
        self.users[name].go_offline()

    @rule(instance=st.sampled_from(INSTANCES))
    def kill(self, instance: str) -> None:
        self.world.kill(instance)
        for user in self.users.values():
            lost = [one for one, (where, _) in user.open.items() if where == instance]
            for connection in lost:
                del user.open[connection]
            if lost:
                user.lost_recently = True
                if user.open:
                    user.regroup()
                else:
                    user.grace = True

    @rule(milliseconds=st.integers(0, 100_000))
    def stand_still(self, milliseconds: int) -> None:
        self.world.stand_still(milliseconds)
        assert self.world.sweep() == 0

    @invariant()
    def transitions_chain(self) -> None:
        for entry in self.world.transitions():
            assert entry["from"] == self.seen[entry["user_id"]], entry
            if entry["from"] == entry["to"]:
                assert entry["gained"] or entry["lost"], entry
            self.seen[entry["user_id"]] = entry["to"]
        assert self.seen == {name: user.status for name, user in self.users.items()}

    @invariant()
    def snapshots_are_what_the_rules_say(self) -> None:
        for group in GROUPS:
            found = {member["user_id"]: member["status"] for member in store.snapshot_sync(HUB, group)}
            assert found == {name: user.status for name, user in self.users.items() if group in user.groups}

    @invariant()
    def timers_are_what_the_rules_say(self) -> None:
        for name, user in self.users.items():
            assert (self.world.deadline("grace", name) is not None) == user.grace
            watched = bool(user.open) and user.status == "online"
            assert (self.world.deadline("away", name) is not None) == watched


@pytest.mark.usefixtures("realtime_redis")
@pytest.mark.parametrize(
    ("work", "examples"),
    [(1, 8), (store.WORK, 8), *(pytest.param(work, 40, marks=pytest.mark.slow) for work in (1, store.WORK))],
)
def test_any_history_follows_the_rules(work: int, examples: int, monkeypatch):
    """However little one call may do, many do the same as one."""
    monkeypatch.setattr(store, "WORK", work)
    run_state_machine_as_test(
        Presence,
        settings=hypothesis_settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
