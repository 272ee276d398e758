from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jwt.exceptions import PyJWTError

from realtime.auth.shared_secret import SharedSecret

KEY = "a key that is shared, and long enough"
SECRET = SharedSecret(KEY)


def by_the_library(token: str) -> Any:
    """What PyJWT says of a token, asked as `realtime.auth.verification` asks; None: it refuses it."""
    never = dict.fromkeys(
        ("verify_aud", "verify_exp", "verify_nbf", "verify_iat", "verify_sub", "verify_jti"), False
    )
    try:
        return jwt.decode(token, KEY, algorithms=["HS256"], options=never)
    except (PyJWTError, ValueError):
        return None


def signed(header: bytes, payload: bytes, key: str = KEY) -> str:
    """A token with this header and payload, which need not make sense."""
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, payload))
    signature = jwt.get_algorithm_by_name("HS256").sign(text, key.encode())
    return f"{text.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


HEADER = b'{"alg":"HS256","typ":"JWT"}'
CLAIMS = {"user_id": "7", "role": "customer", "exp": 2**31, "threads": ["1", "2"]}
TOKEN = jwt.encode(CLAIMS, KEY, algorithm="HS256")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("headers", [None, {"typ": None}])
def test_ordinary_token_is_accepted(headers: dict[str, Any] | None):
    assert SECRET.claims(jwt.encode(CLAIMS, KEY, algorithm="HS256", headers=headers)) == CLAIMS


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(jwt.encode(CLAIMS, KEY[::-1], algorithm="HS256"), id="another key"),
        pytest.param(jwt.encode(CLAIMS, KEY * 2, algorithm="HS512"), id="another algorithm"),
        pytest.param(jwt.encode(CLAIMS, KEY, algorithm="HS256", headers={"kid": "1"}), id="key id"),
        pytest.param(signed(b'{"alg":"HS256","crit":["exp"]}', b"{}"), id="critical extension"),
        pytest.param(signed(b'{"alg":"none"}', b"{}"), id="none"),
        pytest.param(signed(b'{"alg":"hs256"}', b"{}"), id="another spelling"),
        pytest.param(signed(HEADER, b"[]"), id="no object"),
        pytest.param(signed(HEADER, b"{"), id="no JSON"),
        pytest.param(signed(HEADER, b"[" * 5000), id="nested deeply"),
        pytest.param(f"{TOKEN}=", id="padded"),
        pytest.param(f"{TOKEN}\n", id="line feed"),
        pytest.param(TOKEN.replace(".", ".é", 1), id="beyond ASCII"),
    ],
)
def test_any_other_token_is_left_to_the_library(token: str):
    assert SECRET.claims(token) is None


@given(st.sampled_from([HEADER, b'{"typ":"JWT", "alg":"HS256"}', b'{"alg":"HS256"}']), JSON)
@example(HEADER, {"a": float("nan"), "\ud800": "\udfff"})
def test_signed_claims_are_those_of_the_library(header: bytes, claims: Any):
    token = signed(header, json.dumps(claims).encode())
    assert repr(SECRET.claims(token)) == repr(by_the_library(token))


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_whatever_is_accepted_is_accepted_by_the_library(header: bytes, payload: bytes):
    token = signed(header, payload)
    assert SECRET.claims(token) in (None, by_the_library(token))


@given(st.integers(0, len(TOKEN) - 1), st.text(max_size=2))
def test_token_with_a_change_is_accepted_only_if_the_library_accepts_it(at: int, put: str):
    token = TOKEN[:at] + put + TOKEN[at + 1 :]
    assert SECRET.claims(token) in (None, by_the_library(token))


def test_payload_that_is_spelled_in_another_way_is_left_to_the_library():
    """The last character of base64 may hold bits that mean nothing."""
    head, payload = TOKEN.split(".")[:2]
    odd = payload[:-1] + chr(ord(payload[-1]) + 1)
    text = f"{head}.{odd}"
    signature = jwt.get_algorithm_by_name("HS256").sign(text.encode(), KEY.encode())
    token = f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    assert SECRET.claims(token) is None
    assert by_the_library(token) is None


@pytest.mark.parametrize("key", ["", "short", "-----BEGIN PUBLIC KEY-----\nMFww\n-----END PUBLIC KEY-----\n"])
def test_key_that_the_library_refuses_or_warns_of_is_none(key: str):
    with pytest.raises(ValueError, match="HS256"):
        SharedSecret(key)
