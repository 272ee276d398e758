"""Which types payloads and acknowledgements may have: others are refused when the catalogue is loaded."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections import abc
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Union

import msgspec
from django.core.exceptions import ImproperlyConfigured

from realtime.protocol.declarations import is_async, spelled
from realtime.protocol.json_schema import DELIVERED, RETURNED, Schema, Schemas, schema
from realtime.protocol.payloads import Empty, Payload, decoder
from realtime.protocol.type_parts import alternatives
from realtime.protocol.values import NotJSON

ANY_OBJECT = dict[str, Any]
"""The acknowledgement of a handler that does not say what it returns."""
_AWAITABLE = frozenset({abc.Awaitable, abc.Coroutine})


def annotated_payload(event: str, handler: Callable[..., Any]) -> type[Payload]:
    """The annotation of a handler's second parameter. Raises `ImproperlyConfigured` if that is no payload class."""
    names = list(_signature(handler).parameters)
    found = _annotation(event, handler, names[1]) if len(names) == 2 else None
    if not (isinstance(found, type) and issubclass(found, Payload)):
        raise ImproperlyConfigured(
            f"event {event!r}: {getattr(handler, '__qualname__', handler)}: "
            "expected (connection, payload: SomePayload)"
        )
    return found


def annotated_ack(event: str, handler: Callable[..., Any]) -> Any:
    """The type of what a handler returns, with `Empty` for None, which is sent as an empty object.

    Raises `ImproperlyConfigured` when the annotation cannot be evaluated.
    """
    found = _annotation(event, handler, "return")
    if typing.get_origin(found) in _AWAITABLE:  # of a function that is not declared as `async`
        found = typing.get_args(found)[-1]
    if found is Any or found is object:
        return ANY_OBJECT
    if typing.get_origin(found) in {Union, UnionType}:
        parts = tuple(Empty if part is NoneType else part for part in typing.get_args(found))
        return Union[parts]  # noqa: UP007  (made of a tuple)
    return Empty if found is None or found is NoneType else found


def check_handler(event: str, handler: Callable[..., Any]) -> None:
    """Raise `ImproperlyConfigured` if a handler returns nothing to await."""
    is_good = is_async(handler) or (
        callable(handler) and typing.get_origin(_annotation(event, handler, "return")) in _AWAITABLE
    )
    if not is_good:
        raise ImproperlyConfigured(f"event {event!r}: expected an async function, got {spelled(handler)}")


def _signature(handler: Callable[..., Any]) -> inspect.Signature:
    """The signature, without evaluating its annotations."""
    if sys.version_info >= (3, 14):
        forward = importlib.import_module("annotationlib").Format.FORWARDREF
        return inspect.signature(handler, annotation_format=forward)
    return inspect.signature(handler)


def _annotation(event: str, handler: Callable[..., Any], name: str) -> Any:
    """One annotation of a handler: the others may name what is imported for type checkers only."""
    signature = _signature(handler)
    found = signature.return_annotation if name == "return" else signature.parameters[name].annotation
    if found is inspect.Signature.empty or found is inspect.Parameter.empty:
        return ANY_OBJECT if name == "return" else None

    def probe() -> None: ...

    probe.__annotations__ = {"found": found}
    try:
        return typing.get_type_hints(
            probe, getattr(inspect.unwrap(handler), "__globals__", {}), include_extras=True
        )["found"]
    except (NameError, TypeError, SyntaxError) as error:
        where = f"event {event!r}: {getattr(handler, '__qualname__', handler)}"
        raise ImproperlyConfigured(
            f"{where}: expected annotations that are known at run time: {error}"
        ) from error


def check_payload(event: str, payload: type[Payload]) -> None:
    """Raise `ImproperlyConfigured` for a payload that JSON has no form for, with the event and the field."""
    if payload.__struct_config__.array_like:
        raise ImproperlyConfigured(
            f"event {event!r}: {payload.__name__}: expected an object, got an array (array_like)"
        )
    try:
        schema(payload, DELIVERED)
    except (NotJSON, NameError, TypeError, RecursionError) as error:
        raise ImproperlyConfigured(f"event {event!r}: {error}") from error
    try:
        decoder(payload)
    except (TypeError, RecursionError) as error:
        raise ImproperlyConfigured(f"event {event!r}: {_undecodable(payload) or error}") from error


def _undecodable(payload: type[Payload]) -> str | None:
    for field in msgspec.structs.fields(payload):
        try:
            decoder(field.type)
        except TypeError as error:
            return f"{field.encode_name}: {error}"
    return None


def check_ack(event: str, ack: Any) -> None:
    """Raise `ImproperlyConfigured` for an acknowledgement that is no JSON object, with the event and the field."""
    schemas = Schemas(RETURNED)
    try:
        for each in alternatives(ack):
            found = schemas.of(each)
            if not _is_object(found, schemas):
                raise NotJSON(f"expected an object (a TypedDict, Struct, dataclass or dict), got {each}")
    except (NotJSON, NameError, TypeError, RecursionError) as error:
        raise ImproperlyConfigured(f"event {event!r}: its acknowledgement: {error}") from error


def _is_object(found: Schema, schemas: Schemas) -> bool:
    if "$ref" in found:
        found = schemas.definitions[found["$ref"].rpartition("/")[2]]
    return found.get("type") == "object"
