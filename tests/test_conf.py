from __future__ import annotations

import re

import msgspec
import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from realtime.conf import Conf, Limits, conf, from_environment, hidden, misspelt, overrides, parse

KUBERNETES = (
    "SERVICE_HOST",
    "SERVICE_PORT",
    "SERVICE_PORT_HTTP",
    "PORT",
    "PORT_8001_TCP",
    "PORT_8001_TCP_ADDR",
)
"""The ends of the variables that Kubernetes makes for a service."""


def test_what_lets_more_clients_in_is_off_by_default():
    current = parse({})
    assert (current.allowed_origins, current.query_token, current.customer_presence) == ((), False, False)


# --- Environment -------------------------------------------------------------------------------------


def test_duration_from_the_environment_may_have_decimals():
    assert parse(from_environment({"REALTIME_GRACE_PERIOD": "1.5"})).grace_period == 1.5


@pytest.mark.parametrize("field", msgspec.structs.fields(Conf), ids=lambda field: field.name)
def test_every_setting_is_a_variable_of_the_same_name(field: msgspec.structs.FieldInfo):
    own = {name: name for name in ("REDIS_URL", "ALLOWED_ORIGINS", "TRUSTED_PROXIES")}
    if field.encode_name != "LIMITS":
        name = own.get(field.encode_name, f"REALTIME_{field.encode_name}")
        assert list(from_environment({name: "1"})) == [field.encode_name]


@pytest.mark.parametrize("field", msgspec.structs.fields(Limits), ids=lambda field: field.name)
def test_every_limit_can_be_set_from_the_environment(field: msgspec.structs.FieldInfo):
    values = from_environment({f"REALTIME_LIMIT_{field.encode_name}": "3"})
    assert getattr(parse(values).limits, field.name) == 3


@pytest.mark.parametrize("field", msgspec.structs.fields(Limits), ids=lambda field: field.name)
def test_every_limit_can_be_switched_off(field: msgspec.structs.FieldInfo):
    values = from_environment({f"REALTIME_LIMIT_{field.encode_name}": "0"})
    assert getattr(parse(values).limits, field.name) == 0


def test_redis_and_prefix_from_the_environment():
    current = parse(from_environment({"REDIS_URL": "rediss://r:6380/2", "REALTIME_PREFIX": "shop-1"}))
    assert (current.redis_url, current.prefix) == ("rediss://r:6380/2", "shop-1")


@pytest.mark.parametrize(
    "name", ["REALTIME_GRACE_PERIOD", "REALTIME_LIMIT_FRAME_BYTES", "REDIS_URL", "ALLOWED_ORIGINS"]
)
def test_empty_variable_is_as_good_as_none(name: str):
    assert from_environment({name: ""}) == {}


def test_lists_from_the_environment_are_separated_by_commas():
    origins = "https://a.test, https://b.test:8443,,"
    current = parse(from_environment({"REALTIME_EVENTS": "a.b", "ALLOWED_ORIGINS": origins}))
    assert (current.events, current.allowed_origins) == (("a.b",), ("https://a.test", "https://b.test:8443"))


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("false", False)])
def test_switch_from_the_environment(text: str, value: bool):
    assert parse(from_environment({"REALTIME_REQUIRE_ORIGIN": text})).require_origin is value


def test_what_a_namespace_declares_can_be_replaced_from_the_environment():
    assert from_environment({"REALTIME_OPS_ROLES": "agent, boss", "REALTIME_OPS_BOARD_POLICY": "a.b"}) == {
        "OPS_ROLES": ["agent", "boss"],
        "OPS_BOARD_POLICY": "a.b",
    }


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("REALTIME_GRACE_PEROID", "REALTIME_GRACE_PERIOD"),
        ("REALTIME_REDIS_URL", "REDIS_URL"),
        ("REALTIME_ALLOWED_ORIGIN", "ALLOWED_ORIGINS"),
        ("REALTIME_LIMIT_FRAME_BYTE", "REALTIME_LIMIT_FRAME_BYTES"),
    ],
)
def test_variable_that_sets_nothing_is_found_by_what_it_resembles(variable: str, meant: str):
    assert misspelt({variable: "1"}) == {variable: meant}


def test_variables_that_set_something_or_belong_to_others_are_no_mistake():
    services = [f"REALTIME_{name}_{end}" for name in ("SOCKETS", "WEB", "BRIDGE") for end in KUBERNETES]
    settings = [
        "REALTIME_GRACE_PERIOD",
        "REALTIME_LIMIT_RATE",
        "REALTIME_OPS_ROLES",
        "REALTIME_HUB_THREAD_POLICY",
    ]
    assert misspelt(dict.fromkeys([*services, *settings, "PREFIX", "LIMIT_RATES"], "1")) == {}


VARIABLES = {
    "REALTIME_METRICS_TOKEN": "secret",
    "REALTIME_DRAIN_SECONDS": "5",
    "REALTIME_HUB_THREAD_POLICY": "a.b",
    "REALTIME_LIMIT_RATE": "10",
    "REALTIME_LIMIT_ROOMS": "",
    "REALTIME_INLINE": "1",
    "REALTIME_EMBEDDED_BRIDGE": "1",
    "REALTIME_UNHEARD_OF": "1",
    "REDIS_URL": "redis://cache",
}


def test_variable_that_the_projects_own_setting_hides_is_found(settings):
    settings.REALTIME = {"DRAIN_SECONDS": 5, "LIMITS": {"BURST": 10}}
    assert hidden(VARIABLES) == [
        "REALTIME_HUB_THREAD_POLICY",
        "REALTIME_LIMIT_RATE",
        "REALTIME_METRICS_TOKEN",
    ]


def test_no_variable_is_hidden_where_the_environment_is_read(settings):
    settings.REALTIME = from_environment(VARIABLES)
    assert hidden(VARIABLES) == []
    del settings.REALTIME
    assert hidden(VARIABLES) == []


def test_variables_of_others_are_ignored():
    assert from_environment({"GRACE_PERIOD": "1", "REALTIME_UNHEARD_OF": "1", "PATH": "/bin"}) == {}


# --- Wrong values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRACE_PERIOD", "soon"),
        ("GRACE_PERIOD", 0),
        ("GRACE_PERIOD", -1),
        ("GRACE_PERIOD", "nan"),
        ("GRACE_PERIOD", "inf"),
        ("PRESENCE_TTL", 400 * 86400),
        ("PREFIX", ""),
        ("PREFIX", "with space"),
        ("PREFIX", "a:b"),
        ("PREFIX", "x" * 33),
        ("ALLOWED_ORIGINS", "https://a.test"),
        ("PRESENCE_ROLES", "attendant"),
        ("REQUIRE_ORIGIN", "perhaps"),
    ],
)
def test_wrong_value_is_refused_with_its_name_and_what_was_expected_and_given(name: str, value: object):
    with pytest.raises(ImproperlyConfigured) as refused:
        parse({name: value})
    assert str(refused.value).startswith(f"REALTIME[{name!r}]: Expected ")
    assert str(refused.value).endswith(f", got {value!r}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("FRAME_BYTES", value) for value in (-1, 1.5, "many")),
        *(("HANDSHAKE_SECONDS", value) for value in ("nan", "inf", -1)),
        *((name, "inf") for name in ("RATE", "HANDSHAKES", "ADDRESS_HANDSHAKES")),
    ],
)
def test_wrong_limit_is_refused_likewise(name: str, value: object):
    with pytest.raises(ImproperlyConfigured, match=rf"'LIMITS\.{name}'\]: Expected .*, got {value!r}"):
        parse({"LIMITS": {name: value}})


@pytest.mark.parametrize("name", ["REDIS_URL", "METRICS_TOKEN"])
def test_value_that_may_be_a_secret_is_not_quoted(name: str):
    with pytest.raises(ImproperlyConfigured, match=name) as refused:
        parse({name: ["secret"]})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("values", [{"GRACE": 1}, {"LIMITS": {"FRAMES": 1}}, {"grace_period": 1}])
def test_misspelt_name_is_refused(values: dict[str, object]):
    with pytest.raises(ImproperlyConfigured, match=r"REALTIME.*there is no such setting"):
        parse(values)


# --- In a process ------------------------------------------------------------------------------------


def test_conf_follows_a_changed_setting(settings):
    conf()
    settings.REALTIME = {"GRACE_PERIOD": 13}
    assert conf().grace_period == 13


def test_conf_does_not_care_about_other_settings(settings):
    before = conf()
    settings.USE_I18N = not django_settings.USE_I18N
    assert conf() is before


@pytest.mark.parametrize("name", ["NODE_LEASE", "AWAY_AFTER", "GRACE_PERIOD", "PRESENCE_TTL"])
def test_batches_take_at_most_a_quarter_of_the_shortest_duration(name: str):
    assert parse({name: 1.5}).batch_interval <= 1.5 / 4


def test_batches_take_at_most_a_second():
    long = dict.fromkeys(("NODE_LEASE", "AWAY_AFTER", "GRACE_PERIOD", "PRESENCE_TTL"), 3600)
    assert parse(long).batch_interval <= 1


# --- Where the setting is left out -------------------------------------------------------------------


def test_without_the_setting_the_environment_is_read(settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REALTIME_PREFIX", "shop")
    monkeypatch.setenv("REALTIME_HUB_ROLES", "agent,boss")
    settings.REALTIME = None  # a deletion alone is announced to no one
    del settings.REALTIME
    assert conf().prefix == "shop"
    assert overrides() == {"HUB_ROLES": ["agent", "boss"]}


def test_setting_that_is_there_is_all_that_counts(settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REALTIME_PREFIX", "shop")
    settings.REALTIME = {}
    assert conf() == Conf()


@pytest.mark.parametrize("value", ["x", ["PREFIX"], 7], ids=repr)
def test_setting_that_is_no_dict_is_refused(settings, value: object):
    settings.REALTIME = value
    with pytest.raises(ImproperlyConfigured, match="REALTIME: expected a dict, got"):
        conf()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"ALOWED_ORIGINS": []},
            "REALTIME['ALOWED_ORIGINS']: there is no such setting; did you mean 'ALLOWED_ORIGINS'?",
        ),
        ({"prefix": "x"}, "REALTIME['prefix']: there is no such setting; did you mean 'PREFIX'?"),
        (
            {"LIMIT_RATE": 1},
            "REALTIME['LIMIT_RATE']: there is no such setting; did you mean REALTIME['LIMITS']['RATE']?",
        ),
        (
            {"LIMITS": {"RATES": 1}},
            "REALTIME['LIMITS']['RATES']: there is no such setting; did you mean 'RATE'?",
        ),
        ({"UNHEARD_OF": 1}, "REALTIME['UNHEARD_OF']: there is no such setting"),
        ({"EVENTS": "a.b"}, "REALTIME['EVENTS']: Expected a list, got 'a.b'"),
    ],
)
def test_entry_that_is_wrong_is_named_with_what_was_expected(values: dict[str, object], said: str):
    with pytest.raises(ImproperlyConfigured, match=f"^{re.escape(said)}$"):
        parse(values)
