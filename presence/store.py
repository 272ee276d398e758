"""Presence in Redis: the operations that change it and the questions it answers.

All rules live in `scripts/apply.lua`; this module is how Python speaks to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict
from uuid import uuid4

import msgspec

from realtime.conf import conf
from realtime.envelope import iso
from realtime.redis import key, location, run, run_sync, script
from realtime.rooms import HUB, PORTAL

Status = Literal["online", "away"]


class State(msgspec.Struct, frozen=True):
    """How a user is seen."""

    status: str
    chosen: bool
    since: float
    """Milliseconds since the epoch."""


class Measure(msgspec.Struct, frozen=True):
    """Presence in numbers."""

    online: int
    away: int
    late: float
    """Milliseconds that the most overdue judgement has been due."""


class Member(TypedDict):
    """One line of `presence:state`."""

    user_id: str
    name: str
    status: str
    since: str


class LeaseLost(Exception):
    """Redis does not know this node (any more): it must register its connections first."""

    def __init__(self, epoch: str) -> None:
        super().__init__(epoch)
        self.epoch = epoch


_SCRIPTS = Path(__file__).parent / "scripts"
_apply = script(_SCRIPTS / "apply.lua")
_snapshot = script(_SCRIPTS / "snapshot.lua")
_STATUSES = script(
    b"""
    local found = {}
    for i, user in ipairs(ARGV) do
      found[i] = redis.call('HGET', KEYS[1] .. ':user:' .. user, 'status') or 'offline'
    end
    return found
    """,
)

Operation = Mapping[str, Any]


def stream() -> str:
    """The stream of transitions."""
    return key("presence")


def base(namespace: str = HUB) -> str:
    """The first part of every presence key: the stream's name as hash tag, so that all live in one slot."""
    return f"{{{stream()}}}" if namespace == HUB else f"{{{stream()}}}:{namespace}"


def _to_read(namespace: str = HUB) -> list[str]:
    """Keys of a script that reads.

    In a Cluster one of them is there: while the slot moves, it is told to come later (TRYAGAIN), and not sent to where
    nothing has arrived yet, as somebody with nothing but a key that does not exist.
    """
    return [base(namespace), f"{base(namespace)}:touched"] if location().nodes else [base(namespace)]


def namespaces() -> tuple[str, ...]:
    """Where presence is kept: the team's, and the customers' if that is wanted."""
    return (HUB, PORTAL) if conf().customer_presence else (HUB,)


def _call(
    operations: Sequence[Operation],
    node: str = "",
    epoch: str = "",
    *,
    register: bool = False,
    number: int = 0,
    acked: int = 0,
    namespace: str = HUB,
) -> bytes:
    settings = conf()
    return msgspec.json.encode(
        {
            "namespace": namespace,
            "lingers": namespace == PORTAL,
            "node": node,
            "epoch": epoch,
            "number": number,
            "acked": acked,
            "register": register,
            "seed": uuid4().hex,
            "lease": int(settings.node_lease * 1000),
            "grace": int(settings.grace_period * 1000),
            # A customer is there or not: nobody waits for them to look at the page.
            "away": int(settings.away_after * 1000) if namespace == HUB else 0,
            "ttl": int(settings.presence_ttl * 1000),
            "operations": operations,
        },
        enc_hook=str,  # an Id is a str
    )


def _answers(answer: list[bytes]) -> tuple[str, list[str]]:
    epoch, verdict, *answers = (part.decode() for part in answer)
    if verdict == "reset":
        raise LeaseLost(epoch)
    return epoch, answers


async def apply(
    operations: Sequence[Operation],
    *,
    node: str = "",
    epoch: str = "",
    register: bool = False,
    number: int = 0,
    acked: int = 0,
    namespace: str = HUB,
) -> tuple[str, list[str]]:
    """Run operations in order, atomically, and renew the node's lease. Returns Redis' epoch and their answers.

    `number` counts the calls of a node, `acked` is the last one that was answered: Redis must not have lost it.
    Raises `LeaseLost` (nothing was done) or `redis.RedisError`.
    """
    call = _call(operations, node, epoch, register=register, number=number, acked=acked, namespace=namespace)
    return _answers(await run(_apply, [base(namespace), stream()], [call]))


def apply_sync(operations: Sequence[Operation]) -> list[str]:
    """The same from synchronous code, in the name of no node."""
    return _answers(run_sync(_apply, [base(), stream()], [_call(operations)]))[1]


async def snapshot(group: str, namespace: str = HUB) -> list[Member]:
    """Everybody present in a group (for customers: a thread), by name. Raises `redis.RedisError`."""
    return _members(await run(_snapshot, _to_read(namespace), [group]))


def snapshot_sync(group: str) -> list[Member]:
    """The same from synchronous code."""
    return _members(run_sync(_snapshot, _to_read(), [group]))


def statuses_sync(user_ids: Sequence[str]) -> dict[str, str]:
    """The status of each of these users, `offline` for who is not there: one round trip."""
    found = run_sync(_STATUSES, _to_read(), user_ids)
    return {user_id: status.decode() for user_id, status in zip(user_ids, found, strict=True)}


def state(answer: str) -> State | None:
    """The state in an operation's answer, if the user is known."""
    return msgspec.json.decode(answer, type=State) if answer else None


def _members(flat: list[bytes]) -> list[Member]:
    texts = [value.decode() for value in flat]
    members = [
        Member(user_id=user, name=name, status=status, since=iso(float(since) / 1000))
        for user, name, status, since in zip(texts[::4], texts[1::4], texts[2::4], texts[3::4], strict=True)
    ]
    return sorted(members, key=lambda member: (member["name"], member["user_id"]))
