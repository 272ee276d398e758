"""Namespaces and kinds of rooms, as values: what an app declares, and what the settings register.

`REALTIME["NAMESPACES"]` holds the dotted paths of the namespaces that are served, each at `/{name}/`. A namespace lists
the kinds of rooms that it uses. `<NAMESPACE>_ROLES` and `<NAMESPACE>_<KIND>_POLICY` replace what it declares.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain
from typing import Any, Final

import msgspec
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from realtime.conf import cached, conf, load, overrides
from realtime.protocol.ids import is_group, is_id

Policy = Callable[[Any, str], Awaitable[bool]]
"""`async (principal, id) -> bool`: whether this user may enter the room of this id."""

InitialRooms = Callable[[Any], Iterable[str]]
"""`(principal) -> rooms`"""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,15}", re.ASCII)
_RESERVED = frozenset(
    {"control", "node", "room", "unknown", "presence", "healthz", "readyz", "metrics", "asyncapi"}
    | {"forgotten", "group", "open", "order", "user"}
)
"""Names of groups, labels, settings, paths and presence keys, which can't be a namespace's."""


def is_name(text: str) -> bool:
    """Whether a text can be the name of a namespace or of a kind of rooms."""
    return _NAME.fullmatch(text) is not None


class Presence(Enum):
    """What is kept of whether the users of a namespace are there."""

    NONE = "none"
    TEAM = "team"
    """Users see each other, group by group: its `consumer` has to be a `presence.connection.TeamPresence`."""
    CUSTOMERS = "customers"
    """Teams see them, thread by thread, if the setting `CUSTOMER_PRESENCE` is on."""


@dataclass(frozen=True, slots=True)
class RoomKind:
    """A kind of rooms: those of the kind `board` are `board:{id}`."""

    name: str
    is_joined: bool = True
    """Whether clients enter with `join`, if the namespace's policy lets them. Else it is for initial rooms."""
    is_id: Callable[[str], bool] = is_id
    """Whether a text can be the id of such a room."""

    def room(self, id: str) -> str:
        """The room of this kind with this id."""
        return f"{self.name}:{id}"


USER: Final = RoomKind("user", is_joined=False)
"""Everything addressed to one user. Every connection is in the room of its user."""
PRESENCE: Final = RoomKind("presence", is_joined=False, is_id=is_group)
"""A team: who is available, and its queue."""
THREAD: Final = RoomKind("thread")
"""One conversation, with typing and cursor events."""


def no_rooms(principal: Any) -> Iterable[str]:
    """No initial rooms besides the user's own."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """Which users may connect at a path, and what they may do there.

    Declare it in an app, as a constant, and register its dotted path in `REALTIME["NAMESPACES"]`. `manage.py check`
    reports a wrong declaration.

    >>> BOARD = RoomKind("board")
    >>> OPS = Namespace(
    ...     name="ops",
    ...     roles=("supervisor",),
    ...     kinds=(BOARD,),
    ...     policies={"board": "ops.policy.own_boards"},
    ...     events=("ops.events",),
    ... )
    >>> OPS.may_join("board:7"), OPS.may_join("user:9"), OPS.has_room("thread:42")
    (True, False, False)
    """

    name: str
    """Clients connect to `/{name}/`. Up to 16 characters out of `a-z 0-9 _`, beginning with a letter."""
    roles: tuple[str, ...]
    """Users whose token has one of these roles may connect."""
    kinds: tuple[RoomKind, ...] = ()
    """The kinds of rooms that there are, besides `user`."""
    policies: Mapping[str, Policy | str] = field(default_factory=dict)
    """By the name of each kind that clients may join: who may, a function or its dotted path."""
    initial_rooms: InitialRooms = no_rooms
    """Rooms entered on connect besides the user's own, of kinds that clients do not join."""
    presence: Presence = Presence.NONE
    """Whether its users are seen."""
    presence_roles: tuple[str, ...] = ()
    """Only users of these roles are seen; empty: of all roles."""
    client_events: frozenset[str] | None = None
    """The events that its clients may send, besides those every connection needs (`catalogue.ALWAYS`). None: all."""
    events: tuple[str, ...] = ()
    """Modules that register events, to be imported with it."""
    consumer: str | type = "realtime.connections.consumer.NamespaceConsumer"
    """The class of its connections, or its dotted path."""
    has_unnamed_grants: bool = False
    """Keys in Redis and signals about grants to its users in threads do not hold its name: versions before 0.2."""

    @property
    def consumer_class(self) -> Any:
        """The class of its connections. Raises `ImportError`."""
        return load(import_string, self.consumer) if isinstance(self.consumer, str) else self.consumer

    def kind(self, name: str) -> RoomKind | None:
        """The kind of this name, if the namespace has it."""
        return next((kind for kind in (USER, *self.kinds) if kind.name == name), None)

    def has_room(self, room: str) -> bool:
        """Whether there is such a room: whether its kind is one of the namespace's."""
        return self.kind(room.partition(":")[0]) is not None

    def may_join(self, room: str) -> bool:
        """Whether rooms of this kind are entered with `join`, if the policy allows."""
        kind = self.kind(room.partition(":")[0])
        return kind is not None and kind.is_joined

    async def allows(self, principal: Any, room: str) -> bool:
        """Whether a user may be in a room of a kind that is joined: what its policy says.

        Raises what that raises, and `TypeError` for an answer that is neither yes nor no: a coroutine that was not
        awaited, or the text of a claim, would let everyone in.
        """
        kind, _, id = room.partition(":")
        allowed = await _callable(self.policies[kind])(principal, id)
        if not isinstance(allowed, int | None):  # a bool is an int, and so is an answer of Redis
            raise TypeError(
                f"the policy of {self.name} for {kind}: expected True or False, got {type(allowed).__name__}"
            )
        return bool(allowed)

    def is_listed(self, role: str) -> bool:
        """Whether presence lists users of this role."""
        listed = conf().presence_roles or self.presence_roles or self.roles
        return self.presence is not Presence.NONE and role in listed


def _callable(policy: Policy | str) -> Policy:
    found: Policy = load(import_string, policy) if isinstance(policy, str) else policy
    return found


@cached()
def namespaces() -> Mapping[str, Namespace]:
    """The registered namespaces by name, in the order of the settings, with what the settings override.

    Raises `ImproperlyConfigured` when one of them cannot be used.
    """
    found: dict[str, Namespace] = {}
    for path in conf().namespaces:
        namespace = _declared(path)
        if namespace.name in found:
            raise ImproperlyConfigured(f"REALTIME['NAMESPACES']: {namespace.name!r} is registered twice")
        found[namespace.name] = namespace
    if not found:
        raise ImproperlyConfigured("REALTIME['NAMESPACES']: expected at least one, got none")
    found = _overridden(found)
    for namespace in found.values():
        _check(namespace)
    _check_together(found.values())
    return found


@cached()
def kinds() -> Mapping[str, RoomKind]:
    """The kinds of rooms of all namespaces, by name."""
    return {kind.name: kind for namespace in namespaces().values() for kind in (USER, *namespace.kinds)}


@cached()
def roles() -> frozenset[str]:
    """The roles that may enter some namespace."""
    return frozenset(chain.from_iterable(namespace.roles for namespace in namespaces().values()))


def with_unnamed_grants() -> str:
    """The namespace whose grants and signals do not hold its name; empty: none of them."""
    return next((name for name, namespace in namespaces().items() if namespace.has_unnamed_grants), "")


def uses(kind: RoomKind) -> Callable[[Namespace], bool]:
    """The audience of an event that concerns rooms of this kind: `@server_event(..., namespaces=uses(THREAD))`."""
    return lambda namespace: namespace.kind(kind.name) is not None


def shows(presence: Presence) -> Callable[[Namespace], bool]:
    """The audience of an event that concerns this presence."""
    return lambda namespace: namespace.presence is presence


# --- What can be wrong -------------------------------------------------------------------------------


def _declared(path: str) -> Namespace:
    try:
        found = load(import_string, path)
    except ImportError as error:
        raise ImproperlyConfigured(f"REALTIME['NAMESPACES']: cannot import {path!r}: {error}") from error
    if not isinstance(found, Namespace):
        raise ImproperlyConfigured(
            f"REALTIME['NAMESPACES']: expected {path!r} to be a Namespace, got {type(found).__name__}"
        )
    try:
        typed = msgspec.convert(found, _Declaration, from_attributes=True)
    except msgspec.ValidationError as error:
        raise ImproperlyConfigured(f"{path}: {error}") from error
    return replace(found, **msgspec.structs.asdict(typed))


class _Declaration(msgspec.Struct):
    """The fields of a `Namespace` that are plain values."""

    name: str
    roles: tuple[str, ...]
    kinds: tuple[Any, ...]
    policies: dict[str, Any]
    presence: Presence
    presence_roles: tuple[str, ...]
    client_events: frozenset[str] | None
    events: tuple[str, ...]


def _overridden(found: Mapping[str, Namespace]) -> dict[str, Namespace]:
    values = overrides()
    changed: dict[str, Namespace] = {}
    for name, namespace in found.items():
        roles = values.pop(f"{name.upper()}_ROLES", namespace.roles)
        policies = {
            kind: values.pop(f"{name}_{kind}_POLICY".upper(), policy)
            for kind, policy in namespace.policies.items()
        }
        changed[name] = replace(namespace, roles=_roles(name, roles), policies=policies)
    for name in values:
        raise ImproperlyConfigured(
            f"REALTIME[{name!r}]: no namespace has such a setting; there are {', '.join(override_names(found))}"
        )
    return changed


def override_names(found: Mapping[str, Namespace]) -> Iterator[str]:
    """The settings that replace what these namespaces declare."""
    for name, namespace in found.items():
        yield f"{name.upper()}_ROLES"
        yield from (f"{name}_{kind}_POLICY".upper() for kind in namespace.policies)


def _roles(name: str, value: object) -> tuple[str, ...]:
    try:
        return msgspec.convert(value, tuple[str, ...])
    except msgspec.ValidationError as error:
        raise ImproperlyConfigured(f"REALTIME['{name.upper()}_ROLES']: {error}") from error


def _check(namespace: Namespace) -> None:
    def refuse(problem: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"namespace {namespace.name!r}: {problem}")

    if not is_name(namespace.name) or namespace.name in _RESERVED:
        raise refuse(f"expected a name of 1-16 characters a-z 0-9 _, and none of {sorted(_RESERVED)}")
    for kind in namespace.kinds:
        if not isinstance(kind, RoomKind):
            raise refuse(f"kinds: expected room kinds, got {kind!r}")
        if not is_name(kind.name):
            raise refuse(f"kind {kind.name!r}: expected a name of 1-16 characters a-z 0-9 _")
    if not callable(namespace.initial_rooms):
        raise refuse(f"initial_rooms: expected a function of the principal, got {namespace.initial_rooms!r}")
    if not namespace.roles:
        raise refuse("expected at least one role, got none")
    if namespace.presence is Presence.TEAM and PRESENCE not in namespace.kinds:
        raise refuse(f"presence: expected the kind {PRESENCE.name!r} among its kinds")
    joined = {kind.name for kind in namespace.kinds if kind.is_joined}
    if unknown := sorted(namespace.policies.keys() - joined):
        raise refuse(f"policies: expected kinds that are joined ({sorted(joined)}), got {unknown[0]!r}")
    if missing := sorted(joined - namespace.policies.keys()):
        raise refuse(f"policies: expected one for the kind {missing[0]!r}, got none")


def _check_together(found: Iterable[Namespace]) -> None:
    known = {USER.name: USER}
    for namespace in found:
        for kind in namespace.kinds:
            if known.setdefault(kind.name, kind) != kind:
                raise ImproperlyConfigured(
                    f"namespace {namespace.name!r}: another kind is called {kind.name!r} as well"
                )
    settings = Counter(override_names({namespace.name: namespace for namespace in found}))
    if len(settings) < settings.total():
        setting = settings.most_common(1)[0][0]
        raise ImproperlyConfigured(
            f"REALTIME[{setting!r}] could mean two things: rename a namespace or a kind"
        )
    unnamed = [namespace.name for namespace in found if namespace.has_unnamed_grants]
    if len(unnamed) > 1:
        raise ImproperlyConfigured(f"has_unnamed_grants: expected one namespace at most, got {unnamed}")
