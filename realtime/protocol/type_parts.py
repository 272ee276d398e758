"""Types taken apart: what is wrapped around them, the parts of unions, and the fields of classes."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union

import msgspec
from msgspec import Meta

UNIONS: Final = frozenset({types.UnionType, Union})
_WRAPPERS: Final = frozenset(
    getattr(typing, name)
    for name in ("Required", "NotRequired", "ReadOnly", "Final")
    if hasattr(typing, name)
)


@dataclass(frozen=True, slots=True)
class Member:
    """A field of a class."""

    name: str
    """Its key in JSON."""
    kind: Any
    is_required: bool
    is_left_out: bool = False
    """Whether Python may leave it out when it writes the object."""
    default: Any = None


def unwrapped(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what is wrapped around it, and the constraints among that."""
    metas: tuple[Any, ...] = ()
    while True:
        if typing.get_origin(kind) is Annotated:
            metas = (*(each for each in kind.__metadata__ if isinstance(each, Meta)), *metas)
            kind = kind.__origin__
        elif typing.get_origin(kind) in _WRAPPERS:
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        else:
            return kind, metas


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The parts of a union, or the one type, without what is wrapped around them."""
    bare = unwrapped(kind)[0]
    parts = typing.get_args(bare) if typing.get_origin(bare) in UNIONS else (bare,)
    return tuple(unwrapped(part)[0] for part in parts)


def is_struct(kind: Any) -> bool:
    """Whether this is a `msgspec.Struct`, generic or not."""
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, msgspec.Struct)


def is_class(origin: type) -> bool:
    """Whether the values of this class have fields of their own types."""
    return (
        is_struct(origin)
        or typing.is_typeddict(origin)
        or dataclasses.is_dataclass(origin)
        or _is_named_tuple(origin)
    )


def _is_named_tuple(origin: type) -> bool:
    return issubclass(origin, tuple) and hasattr(origin, "_fields")


def is_array(origin: type) -> bool:
    """Whether its values are arrays in JSON."""
    return _is_named_tuple(origin) or (
        issubclass(origin, msgspec.Struct) and origin.__struct_config__.array_like
    )


def is_closed(origin: type) -> bool:
    """Whether there are no further fields."""
    if issubclass(origin, msgspec.Struct):
        return origin.__struct_config__.forbid_unknown_fields
    return _is_named_tuple(origin)


def tag_of(origin: type, *, is_required: bool) -> Iterator[Member]:
    """The field by which a union recognizes a struct."""
    if issubclass(origin, msgspec.Struct) and (config := origin.__struct_config__).tag is not None:
        is_there = is_required or config.array_like
        yield Member(config.tag_field or "type", Literal[config.tag], is_there, not is_there)


def members_of(kind: Any, origin: type) -> Iterator[Member]:
    """The fields of a class. Raises `NameError` when an annotation cannot be evaluated."""
    if issubclass(origin, msgspec.Struct):
        return _struct_members(kind, origin)
    if typing.is_typeddict(origin):
        return _typed_dict_members(kind, origin)
    return (
        _dataclass_members(kind, origin) if dataclasses.is_dataclass(origin) else _tuple_members(kind, origin)
    )


def _struct_members(kind: Any, origin: type[msgspec.Struct]) -> Iterator[Member]:
    for field in msgspec.structs.fields(kind):
        may_be_unset = msgspec.UnsetType in alternatives(field.type)
        default = None if field.default is msgspec.NODEFAULT else field.default
        is_left_out = may_be_unset or (origin.__struct_config__.omit_defaults and not field.required)
        yield Member(
            field.encode_name,
            field.type,
            field.required,
            is_left_out,
            None if isinstance(default, msgspec.Raw) else default,
        )


def _typed_dict_members(kind: Any, origin: Any) -> Iterator[Member]:
    for name, hint in _hints(kind).items():
        # With `from __future__ import annotations`, Python 3.11 counts every key as required.
        is_required = typing.get_origin(hint) is not typing.NotRequired and (
            name in origin.__required_keys__ or typing.get_origin(hint) is typing.Required
        )
        yield Member(name, hint, is_required, is_left_out=not is_required)


def _dataclass_members(kind: Any, origin: Any) -> Iterator[Member]:
    hints = _hints(kind)
    for field in dataclasses.fields(origin):
        has_default = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        default = None if field.default is dataclasses.MISSING else field.default
        yield Member(field.name, hints[field.name], not has_default, default=default)


def _tuple_members(kind: Any, origin: Any) -> Iterator[Member]:
    hints = _hints(kind)
    for name in origin._fields:
        yield Member(name, hints.get(name, Any), name not in origin._field_defaults)


# --- Generic classes ---------------------------------------------------------------------------------


def _hints(kind: Any) -> dict[str, Any]:
    """The annotations of a class, in which arguments have replaced the parameters of generic classes."""
    origin = typing.get_origin(kind) or kind
    declared = typing.get_type_hints(origin, include_extras=True)
    given = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(kind), strict=False))
    hints = {name: _filled(hint, given) for name, hint in declared.items()}
    for base in reversed(getattr(origin, "__orig_bases__", ())):
        if typing.get_origin(base) not in {None, typing.Generic}:
            hints |= _inherited(_filled(base, given), declared)
    return hints


def _inherited(base: Any, declared: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations of a generic base, without those that a class has declared anew."""
    its = typing.get_type_hints(typing.get_origin(base), include_extras=True)
    return {name: hint for name, hint in _hints(base).items() if declared[name] == its[name]}


def _filled(hint: Any, given: Mapping[Any, Any]) -> Any:
    """An annotation, in which arguments have replaced parameters."""
    if isinstance(hint, typing.TypeVar):
        return given.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if not parameters or typing.get_origin(hint) is None:
        return hint
    return hint[tuple(given.get(each, each) for each in parameters)]
