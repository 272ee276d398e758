"""Presence in Redis: the operations that change it and the questions it answers.

All rules live in `scripts/apply.lua`; this module is how Python calls it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict
from uuid import uuid4

import msgspec

from presence.namespaces import OLDEST, lists_customers
from realtime.conf import conf
from realtime.protocol.envelope import iso
from realtime.redis.client import execute, key, run, run_sync, script, sync_client
from realtime.redis.topology import topology
from realtime.tasks.supervision import report

Status = Literal["online", "away"]

WORK = 500
"""About how many connections or groups one call deals with: Redis does nothing else for 10 to 20 ms."""
PART = 500
"""Members of a set that one call reads."""


class State(msgspec.Struct, frozen=True):
    """The status of a user."""

    status: str
    chosen: bool
    since: float
    """Milliseconds since the epoch."""


class Measure(msgspec.Struct, frozen=True):
    """Presence in numbers."""

    online: int
    away: int
    late: float
    """Milliseconds for which the most overdue change has been due."""


class Swept(msgspec.Struct, frozen=True):
    """What one sweep did."""

    changed: int
    more: bool
    """Whether more is due than one call may do."""
    failed: int = 0
    """Changes that failed, and were left out."""


class Member(TypedDict):
    """One line of `presence:state`."""

    user_id: str
    name: str
    status: str
    since: str


class LeaseLost(Exception):
    """Redis does not know this instance (any more), which must register its connections first."""

    def __init__(self, epoch: str) -> None:
        super().__init__(epoch)
        self.epoch = epoch


@dataclass(frozen=True, slots=True)
class Caller:
    """The instance that calls, and what it knows of Redis."""

    instance: str = ""
    """Empty: the call is made for no instance."""
    epoch: str = ""
    """Of the Redis that the instance has registered its connections with."""
    number: int = 0
    """Counts the calls of an instance."""
    acked: int = 0
    """The last call that was answered, which Redis must not have lost."""
    registers: bool = False
    """The call registers connections, whatever Redis knows of the instance."""


NO_INSTANCE = Caller()
Operation = Mapping[str, Any] | msgspec.Raw
"""An operation of `scripts/apply.lua`, as it is or encoded (`encode`)."""

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


def stream() -> str:
    """The stream of transitions."""
    return key("presence")


def base(namespace: str) -> str:
    """The first part of a namespace's presence keys: the stream's name as hash tag, so that all live in one slot."""
    return f"{{{stream()}}}" if namespace == OLDEST else f"{{{stream()}}}:{namespace}"


def _keys_to_read(namespace: str) -> list[str]:
    """The keys of a script that reads.

    One of them exists. So while a Cluster moves the slot, the script has to be sent again (TRYAGAIN); with only a key
    that does not exist, it would be sent to a server to which nothing has been moved yet.
    """
    return [base(namespace)] if topology().spans_keys else [base(namespace), f"{base(namespace)}:touched"]


def encode(operation: Mapping[str, Any]) -> msgspec.Raw:
    """An operation as it is sent. Raises `UnicodeEncodeError` for a lone surrogate."""
    return msgspec.Raw(msgspec.json.encode(operation, enc_hook=str))  # an Id is a str


# --- Changes -------------------------------------------------------------------------------------


async def apply(
    namespace: str, operations: Sequence[Operation], caller: Caller = NO_INSTANCE
) -> tuple[str, list[str]]:
    """Run operations in order, atomically, and renew the caller's lease. Returns Redis' epoch and their answers.

    There are fewer answers than operations when these were too much work for one call: the rest was not done.
    Raises `LeaseLost` (nothing was done) or `redis.RedisError`.
    """
    call = _call(namespace, operations, caller)
    return _answers(await run(_apply, [base(namespace), stream()], [call]))


def apply_sync(
    namespace: str, operations: Sequence[Operation], caller: Caller = NO_INSTANCE
) -> tuple[str, list[str]]:
    """`apply` from synchronous code."""
    call = _call(namespace, operations, caller)
    return _answers(run_sync(_apply, [base(namespace), stream()], [call]))


def _call(namespace: str, operations: Sequence[Operation], caller: Caller) -> bytes:
    settings, is_team = conf(), not lists_customers(namespace)
    return msgspec.json.encode(
        {
            **asdict(caller),
            "namespace": namespace,
            "seed": uuid4().hex,
            "lease": int(settings.node_lease * 1000),
            "grace": int(settings.grace_period * 1000),
            "away": int(settings.away_after * 1000) if is_team else 0,
            "lingers": not is_team,
            "ttl": int(settings.presence_ttl * 1000),
            "remember": int(settings.grant_ttl * 1000),
            "work": WORK,
            "operations": operations,
        },
        enc_hook=str,  # an Id is a str
    )


def _answers(answer: list[bytes]) -> tuple[str, list[str]]:
    epoch, outcome, *answers = (part.decode() for part in answer)
    if outcome == "reset":
        raise LeaseLost(epoch)
    return epoch, answers


def state(answer: str) -> State | None:
    """The state in an operation's answer, if the user is known."""
    return msgspec.json.decode(answer, type=State) if answer else None


# --- Questions -----------------------------------------------------------------------------------


async def connections(namespace: str, instance: str) -> AsyncIterator[list[str]]:
    """The connections that Redis knows of an instance, part by part. Raises `redis.RedisError`."""
    cursor = b"0"
    while True:
        cursor, part = await execute("SSCAN", f"{base(namespace)}:node:{instance}", cursor, "COUNT", PART)
        yield [connection.decode() for connection in part]
        if cursor == b"0":
            return


async def snapshot(namespace: str, group: str) -> list[Member]:
    """The members of a group (for customers: a thread), by name. Raises `redis.RedisError`.

    A user who comes, goes or changes while it is read may be in it as before or as after that.
    """
    members: dict[str, Member] = {}
    cursor = b"0"
    while True:
        cursor, *part = await run(_snapshot, _keys_to_read(namespace), [group, cursor, PART])
        members.update(_members(zip(*[iter(part)] * 4, strict=True)))
        if cursor == b"0":
            return _sorted(members)


def snapshot_sync(namespace: str, group: str) -> list[Member]:
    """`snapshot` from synchronous code, without a script: a backbone's Redis user may run none."""
    members: dict[str, Member] = {}
    connection: Any = sync_client()
    cursor = 0
    while True:
        cursor, users = connection.sscan(f"{base(namespace)}:group:{group}", cursor, count=PART)
        pipeline = connection.pipeline(transaction=False)
        for user in users:
            pipeline.hmget(f"{base(namespace)}:user:{user.decode()}", "name", "status", "since")
        records = zip(users, pipeline.execute(), strict=True)
        members.update(_members((user, *record) for user, record in records if record[1]))
        if not cursor:
            return _sorted(members)


def statuses_sync(namespace: str, user_ids: Sequence[str]) -> dict[str, str]:
    """The status of each user, `offline` if a user is not known. One round trip; no round trip without users."""
    found = run_sync(_STATUSES, _keys_to_read(namespace), user_ids) if user_ids else ()
    return {user_id: status.decode() for user_id, status in zip(user_ids, found, strict=True)}


def _members(records: Iterable[tuple[bytes, ...]]) -> dict[str, Member]:
    members = (_member(*record) for record in records)
    return {member["user_id"]: member for member in members if member is not None}


def _member(user: bytes, name: bytes, status: bytes, since: bytes) -> Member | None:
    """A member; None for a record that can't be read, which must not hide the other members."""
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
