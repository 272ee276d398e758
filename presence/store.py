"""Presence in Redis: the operations that change it and the questions it answers.

All rules live in `scripts/apply.lua`; this module is how Python speaks to it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict
from uuid import uuid4

import msgspec

from presence.namespaces import OLDEST as HUB
from presence.namespaces import lists_customers
from realtime.conf import conf
from realtime.protocol.envelope import iso
from realtime.redis.client import key, run, run_sync, script, sync_client
from realtime.redis.topology import topology
from realtime.tasks.supervision import report

Status = Literal["online", "away"]

WORK = 500
"""About how many connections or groups one call deals with: Redis does nothing else for 10 to 20 ms."""
PART = 500
"""Members of a set that are read by one call."""


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


class Swept(msgspec.Struct, frozen=True):
    """What one sweep did."""

    changed: int
    more: bool
    """Whether more is due than one call may do."""
    failed: int = 0
    """Judgements that failed, and were left out."""


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
_SCAN = script(b"return redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])")
_STATUSES = script(
    b"""
    local found = {}
    for i, user in ipairs(ARGV) do
      found[i] = redis.call('HGET', KEYS[1] .. ':user:' .. user, 'status') or 'offline'
    end
    return found
    """,
)

Operation = Mapping[str, Any] | msgspec.Raw
"""What `scripts/apply.lua` does, as it is or encoded (`encode`)."""


def stream() -> str:
    """The stream of transitions."""
    return key("presence")


def base(namespace: str = HUB) -> str:
    """The first part of every presence key: the stream's name as hash tag, so that all live in one slot."""
    return f"{{{stream()}}}" if namespace == HUB else f"{{{stream()}}}:{namespace}"


def _to_read(namespace: str = HUB) -> list[str]:
    """Keys of a script that reads.

    One of them is there. So while a Cluster moves the slot, the script has to come later (TRYAGAIN); with nothing but a
    key that does not exist it would be sent to where nothing has arrived yet.
    """
    return [base(namespace)] if topology().spans_keys else [base(namespace), f"{base(namespace)}:touched"]


def encode(operation: Mapping[str, Any]) -> msgspec.Raw:
    """An operation as it travels. Raises `UnicodeEncodeError` for a lone surrogate."""
    return msgspec.Raw(msgspec.json.encode(operation, enc_hook=str))  # an Id is a str


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
            "lingers": lists_customers(namespace),
            "node": node,
            "epoch": epoch,
            "number": number,
            "acked": acked,
            "register": register,
            "seed": uuid4().hex,
            "lease": int(settings.node_lease * 1000),
            "grace": int(settings.grace_period * 1000),
            # A customer is there or not: nobody waits for them to look at the page.
            "away": int(settings.away_after * 1000) if not lists_customers(namespace) else 0,
            "ttl": int(settings.presence_ttl * 1000),
            "remember": int(settings.grant_ttl * 1000),
            "work": WORK,
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

    There are fewer answers than operations when these were too much work for one call: the rest was not done.
    `number` counts the calls of a node, `acked` is the last one that was answered: Redis must not have lost it.
    Raises `LeaseLost` (nothing was done) or `redis.RedisError`.
    """
    call = _call(operations, node, epoch, register=register, number=number, acked=acked, namespace=namespace)
    return _answers(await run(_apply, [base(namespace), stream()], [call]))


def apply_sync(operations: Sequence[Operation]) -> list[str]:
    """All of them, in the name of no node, from synchronous code."""
    answers: list[str] = []
    while len(answers) < len(operations):
        call = _call(operations[len(answers) :])
        answers += _answers(run_sync(_apply, [base(), stream()], [call]))[1]
    return answers


async def connections(node: str, namespace: str = HUB) -> AsyncIterator[list[str]]:
    """The connections that Redis knows of a node, part by part. Raises `redis.RedisError`."""
    cursor = b"0"
    while True:
        cursor, part = await run(_SCAN, [f"{base(namespace)}:node:{node}"], [cursor, PART])
        yield [connection.decode() for connection in part]
        if cursor == b"0":
            return


async def snapshot(group: str, namespace: str = HUB) -> list[Member]:
    """Everybody present in a group (for customers: a thread), by name. Raises `redis.RedisError`.

    Who comes, goes or changes while it is read may be in it as before or as after that.
    """
    members: dict[str, Member] = {}
    cursor = b"0"
    while True:
        cursor, *part = await run(_snapshot, _to_read(namespace), [group, cursor, PART])
        members.update(_members(part))
        if cursor == b"0":
            return _sorted(members)


def snapshot_sync(group: str, namespace: str = HUB) -> list[Member]:
    """The same from synchronous code, without a script: a backbone's Redis user may run none."""
    members: dict[str, Member] = {}
    connection: Any = sync_client()
    cursor = 0
    while True:
        cursor, users = connection.sscan(f"{base(namespace)}:group:{group}", cursor, count=PART)
        pipeline = connection.pipeline(transaction=False)
        for user in users:
            pipeline.hmget(f"{base(namespace)}:user:{user.decode()}", "name", "status", "since")
        records = zip(users, pipeline.execute(), strict=True)
        members.update(_members([part for user, record in records if record[1] for part in (user, *record)]))
        if not cursor:
            return _sorted(members)


def statuses_sync(user_ids: Sequence[str]) -> dict[str, str]:
    """The status of each of these users, `offline` for who is not there: one round trip."""
    found = run_sync(_STATUSES, _to_read(), user_ids)
    return {user_id: status.decode() for user_id, status in zip(user_ids, found, strict=True)}


def state(answer: str) -> State | None:
    """The state in an operation's answer, if the user is known."""
    return msgspec.json.decode(answer, type=State) if answer else None


def _members(flat: list[bytes]) -> dict[str, Member]:
    members = (_member(*flat[start : start + 4]) for start in range(0, len(flat), 4))
    return {member["user_id"]: member for member in members if member is not None}


def _member(user: bytes, name: bytes, status: bytes, since: bytes) -> Member | None:
    """A member; None for a record that makes no sense: all others are shown."""
    try:
        return Member(
            user_id=user.decode(),
            name=name.decode(errors="replace"),
            status=status.decode(),
            since=iso(float(since) / 1000),
        )
    except (ValueError, OverflowError, OSError):
        report("snapshot")
        return None


def _sorted(members: Mapping[str, Member]) -> list[Member]:
    return sorted(members.values(), key=lambda member: (member["name"], member["user_id"]))
