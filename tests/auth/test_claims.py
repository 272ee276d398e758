from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import pytest

from realtime.auth.issuing import issue
from realtime.auth.verification import authenticate, verify
from tests.auth.signing import failure, sign
from tests.inprocess import HUB, PORTAL


async def test_claims_become_the_principal():
    before = int(time.time())
    token = issue(user_id="7", role="customer", name="Ana", groups=["a", "b"], threads=["42", "43"], ttl=60)
    principal = await authenticate(token)
    assert (principal.user_id, principal.role, principal.name) == ("7", "customer", "Ana")
    assert principal.groups == ("a", "b")
    assert principal.threads == {"42", "43"}
    assert before + 60 <= principal.expires_at <= time.time() + 60
    assert len(principal.jti) == 32


@pytest.mark.parametrize("claim", [..., None])
def test_groups_are_attendants_unless_the_token_says_otherwise(claim: Any):
    assert verify(sign(groups=claim)).groups == ("attendants",)


def test_token_may_name_no_groups_at_all():
    assert verify(sign(groups=[])).groups == ()


def test_group_named_twice_counts_once_and_order_is_kept():
    assert verify(sign(groups=["b", "a", "b"])).groups == ("b", "a")
    assert verify(sign(groups=["Équipe", "a", "E\u0301quipe"])).groups == ("Équipe", "a")


ODD_GROUPS = ["a:b", "💬", "x" * 65, "", "a\nb", None, 1.5, True, ["a"], {"a": "b"}, "\ud83d"]


@pytest.mark.parametrize("odd", ODD_GROUPS, ids=ascii)
def test_group_that_cannot_be_a_room_is_left_out_with_a_log_line(odd: object, caplog):
    assert verify(sign(groups=["sales", odd, "Équipe São Paulo"])).groups == ("sales", "Équipe São Paulo")
    assert [record.getMessage() for record in caplog.records] == ["groups left out of a token"]


def test_user_of_odd_groups_only_is_in_no_group(caplog):
    assert verify(sign(groups=ODD_GROUPS)).groups == ()
    (record,) = caplog.records
    assert record.groups == len(ODD_GROUPS)


def test_log_line_about_groups_is_short(caplog):
    verify(sign(groups=["x" * 3000, *["💬"] * 100]))
    (record,) = caplog.records
    assert len(record.first) <= 80


@pytest.mark.parametrize("claim", [..., None, []])
def test_threads_are_none_unless_the_token_names_them(claim: Any):
    assert verify(sign(threads=claim)).threads == frozenset()


def test_whole_numbers_are_ids():
    principal = verify(sign(user_id=7, groups=[1, "a"], threads=[42]))
    assert (principal.user_id, principal.groups, principal.threads) == ("7", ("1", "a"), {"42"})


@pytest.mark.parametrize("claim", [..., None, ""])
def test_name_may_be_missing(claim: Any):
    assert verify(sign(name=claim)).name == ""


def test_long_name_is_cut():
    assert verify(sign(name="é" * 1000)).name == "é" * 256


@pytest.mark.parametrize(
    "claims",
    [
        *({"role": value} for value in (..., None, "", "root", "Attendant", 7, ["attendant"])),
        *({"user_id": value} for value in (..., None, "", "a b", "x" * 65, 1.5, True, ["7"])),
        *({"groups": value} for value in ("attendants", {"a": 1}, 7)),
        *({"threads": value} for value in ("42", ["thread:42"], [1.5])),
        *({"name": value} for value in (7, ["Ana"], {"first": "Ana"})),
    ],
    ids=repr,
)
def test_odd_claim_is_refused(claims: dict[str, Any]):
    assert failure(lambda: verify(sign(**claims))).code == "token_invalid"


def test_issued_token_may_have_further_claims():
    principal = verify(issue(user_id="7", role="customer", claims={"tenant": "acme", "name": "Ana"}))
    assert (principal.claims["tenant"], principal.name) == ("acme", "Ana")


def test_user_id_claim_follows_simplejwt(settings):
    settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, "USER_ID_CLAIM": "sub"}
    assert [verify(sign(user_id=..., sub=sub)).user_id for sub in ("9", 9)] == ["9", "9"]
    assert verify(issue(user_id="8", role="admin")).user_id == "8"
    assert failure(lambda: verify(sign(user_id="7"))).code == "token_invalid"


@pytest.mark.parametrize(
    ("role", "namespace", "may"),
    [
        ("attendant", HUB, True),
        ("admin", HUB, True),
        ("customer", HUB, False),
        ("attendant", PORTAL, False),
        ("admin", PORTAL, False),
        ("customer", PORTAL, True),
    ],
)
def test_role_belongs_in_one_namespace(role: str, namespace: str, may: bool):
    assert verify(sign(role=role)).may_enter(namespace) is may


def test_roles_are_configurable(settings):
    settings.REALTIME = {**settings.REALTIME, "HUB_ROLES": ["agent"]}
    assert verify(sign(role="agent")).may_enter(HUB)
    assert failure(lambda: verify(sign(role="attendant"))).code == "token_invalid"


# --- What policies and handlers see ------------------------------------------------------------------


def test_principal_has_all_claims_of_the_token():
    token = sign(region="sp", org={"id": 7, "plans": ["a", {"b": None}]}, name="Ana \ud83d")
    claims = verify(token).claims
    assert (claims["jti"], claims["region"], claims["name"]) == ("j1", "sp", "Ana \ufffd")
    assert claims["org"] == {"id": 7, "plans": ("a", {"b": None})}


def test_claims_cannot_be_changed_at_any_depth():
    claims: Any = verify(sign(org={"plans": [{"b": 1}]})).claims
    for inner in (claims, claims["org"], claims["org"]["plans"][0]):
        assert isinstance(inner, MappingProxyType)
        with pytest.raises(TypeError):
            inner["b"] = 2
    with pytest.raises(TypeError):
        claims["org"]["plans"][0] = 2


def test_claims_are_not_in_what_is_printed_of_a_principal():
    assert "sao-paulo" not in repr(verify(sign(region="sao-paulo")))


@pytest.mark.parametrize(
    "value", ["nested", 10**400, float("inf")], ids=["101 levels", "400 digits", "infinity"]
)
def test_claim_that_no_reader_could_read_is_refused(value: Any):
    for _ in range(101 if value == "nested" else 0):
        value = [value]
    assert failure(lambda: verify(sign(extra=value))).code == "token_invalid"


def test_claim_may_be_a_large_number():
    assert verify(sign(extra=2**80)).claims["extra"] == 2**80


# --- Tokens of another issuer --------------------------------------------------------------------------


def to_principal(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a product writes for the tokens of its identity provider."""
    roles = claims.get("roles", ())
    return {
        "user_id": claims["sub"],
        "role": next((role for role in ("admin", "attendant", "customer") if role in roles), None),
        "name": claims.get("nickname", "\ud83d"),
        "groups": claims.get("teams"),
        "threads": {"42"},
    }


def to_nothing(claims: Mapping[str, Any]) -> None:
    """Returns no claims."""


def to_odd_jti(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**to_principal(claims), "jti": claims["uti"]}


def exits(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    raise RecursionError("secret" * 1000)


@pytest.fixture
def mapped_with(settings) -> Any:
    def use(function: str) -> None:
        settings.REALTIME = {**settings.REALTIME, "CLAIMS": f"{__name__}.{function}"}

    return use


def foreign(**changes: Any) -> str:
    """A token without the claims of simplejwt."""
    own = dict.fromkeys(("token_type", "jti", "user_id", "role"), ...)
    return sign(**{**own, "sub": "auth0|5f7c8ec7", "roles": ["x", "attendant"], **changes})


def test_claims_of_another_issuer_are_mapped(mapped_with):
    mapped_with("to_principal")
    principal = verify(foreign(nickname="Ana", teams=["E\u0301quipe Sa\u0303o Paulo", "💬"]))
    assert (principal.user_id, principal.role, principal.name) == ("auth0|5f7c8ec7", "attendant", "Ana")
    assert (principal.groups, principal.threads) == (("Équipe São Paulo",), {"42"})
    assert principal.claims["roles"] == ("x", "attendant")


def test_token_of_another_issuer_is_refused_without_a_mapping():
    assert failure(lambda: verify(foreign())).code == "token_invalid"


def test_token_without_an_id_is_known_by_a_digest_of_its_own(mapped_with):
    mapped_with("to_principal")
    one, other = foreign(), foreign(nickname="Ana")
    assert verify(one).jti == sha256(one.encode()).hexdigest() != verify(other).jti


def test_mapping_may_name_the_id_of_the_token(mapped_with):
    mapped_with("to_odd_jti")
    assert verify(foreign(uti=7)).jti == "7"
    assert failure(lambda: verify(foreign(uti=[7]))).code == "token_invalid"


@pytest.mark.parametrize(
    "claims", [{"sub": 7}, {"sub": None}, {"jti": 7}, {"jti": "7", "sub": ["x"]}], ids=repr
)
def test_claims_that_nothing_is_read_from_may_have_any_type(claims: dict[str, Any]):
    assert verify(sign(**claims)).jti == str(claims.get("jti", "j1"))


def test_tokens_with_an_empty_id_are_not_taken_for_each_other(mapped_with):
    assert failure(lambda: verify(sign(jti=""))).message == "the token has no jti"
    mapped_with("to_odd_jti")
    one, other = foreign(uti=""), foreign(uti="", nickname="Ana")
    assert verify(one).jti == sha256(one.encode()).hexdigest() != verify(other).jti


def test_user_of_another_issuer_may_have_a_number_and_half_an_emoji(mapped_with):
    mapped_with("to_principal")
    principal = verify(foreign(sub=42))
    assert (principal.user_id, principal.name) == ("42", "\ufffd")


def test_refresh_token_is_refused_whatever_the_mapping_says(mapped_with):
    mapped_with("to_principal")
    assert failure(lambda: verify(foreign(token_type="refresh"))).code == "token_invalid"
    assert verify(foreign(token_type="Bearer")).role == "attendant"


@pytest.mark.parametrize(
    ("function", "claims"),
    [
        ("to_principal", {"sub": ...}),  # KeyError
        ("to_principal", {"roles": 7}),  # TypeError
        ("to_nothing", {}),
        ("exits", {}),
    ],
)
def test_mapping_that_fails_refuses_the_token_with_a_log_line(mapped_with, function, claims, caplog):
    mapped_with(function)
    error = failure(lambda: verify(foreign(**claims)))
    assert (error.code, error.message) == (
        "token_invalid",
        "the token's claims are not those that this server expects",
    )
    (record,) = caplog.records
    assert record.getMessage() == "claims not mapped"
    assert len(record.error) <= 80
    assert record.exc_info is None


@pytest.mark.parametrize(
    "claims", [{"sub": "a b"}, {"roles": []}, {"roles": ["root"]}, {"nickname": 7}, {"teams": "x"}], ids=repr
)
def test_mapping_to_claims_that_make_no_sense_refuses_the_token(mapped_with, claims: dict[str, Any]):
    mapped_with("to_principal")
    assert failure(lambda: verify(foreign(**claims))).code == "token_invalid"
