from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.auth.credentials import credential
from realtime.protocol.handshake_errors import AuthenticationFailed
from tests.auth.signing import failure


def scope(
    *authorization: str, subprotocols: list[str] | None = None, query: str = "", **more: Any
) -> dict[str, Any]:
    return {
        "headers": [(b"host", b"h"), *((b"authorization", value.encode()) for value in authorization)],
        "subprotocols": subprotocols or [],
        "query_string": query.encode(),
        **more,
    }


def test_authorization_header_is_a_credential():
    assert credential(scope("Bearer abc")) == "abc"


def test_scheme_is_case_insensitive():
    assert credential(scope("bEARER  abc ")) == "abc"


def test_subprotocol_is_a_credential():
    assert credential(scope(subprotocols=["realtime.v1", "bearer.abc"])) == "abc"


def test_query_string_is_a_credential_where_it_is_enabled(settings):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": True}
    assert credential(scope(query="x=1&token=abc")) == "abc"


def test_query_string_is_no_credential_where_it_is_off(settings):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": False}
    assert failure(lambda: credential(scope(query="token=abc"))).code == "token_missing"


def test_no_credential_is_token_missing():
    assert failure(lambda: credential(scope(subprotocols=["realtime.v1"]))).code == "token_missing"


@pytest.mark.parametrize("more", [{"subprotocols": None}, {"query_string": b""}])
def test_server_that_leaves_out_optional_parts_of_the_scope_is_understood(more: dict[str, Any]):
    assert credential({"headers": [(b"authorization", b"Bearer abc")], **more}) == "abc"


@pytest.mark.parametrize(
    "given_twice",
    [
        scope("Bearer abc", "Bearer abc"),
        scope("Bearer abc", subprotocols=["bearer.abc"]),
        scope(subprotocols=["bearer.abc", "bearer.def"]),
        scope("Bearer abc", query="token=abc"),
        scope(query="token=abc&token=def"),
    ],
)
def test_more_than_one_credential_is_refused(settings, given_twice: dict[str, Any]):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": True}
    assert failure(lambda: credential(given_twice)).code == "token_invalid"


@pytest.mark.parametrize("value", ["Basic abc", "Bearer", "Bearer ", "abc", "", "Token abc", "Bearerabc"])
def test_malformed_authorization_is_refused(value: str):
    assert failure(lambda: credential(scope(value))).code == "token_invalid"


def test_enormous_token_is_refused_before_it_is_read():
    assert failure(lambda: credential(scope("Bearer " + "x" * 8193))).code == "token_invalid"


def test_query_string_of_a_thousand_fields_is_refused(settings):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": True}
    assert failure(lambda: credential(scope(query="&".join(["a=1"] * 1000)))).code == "token_invalid"


@given(st.binary(max_size=60), st.binary(max_size=60), st.lists(st.text(max_size=20), max_size=3))
def test_any_handshake_has_a_credential_or_fails(authorization: bytes, query: bytes, subprotocols: list[str]):
    try:
        result = credential(
            {
                "headers": [(b"authorization", authorization)],
                "query_string": query,
                "subprotocols": subprotocols,
            }
        )
    except AuthenticationFailed as error:
        result = error.code
    assert isinstance(result, str)
