"""Which extras are installed: what is absent or too old is one sentence, in a checkout and where pip installed us."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

import pytest
from django.core.exceptions import ImproperlyConfigured

from realtime import extras, testing

OLD = {"uvicorn": "0.30.6", "websockets": "12.0"}
"""What a project may have pinned for a server of its own."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Versions that are installed instead of those of this environment; an empty one: not installed."""
    pretended: dict[str, str] = {}

    def version(name: str) -> str:
        found = pretended.get(name, "1000")
        if not found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(extras, "version", version)
    extras.missing.cache_clear()
    yield pretended
    extras.missing.cache_clear()


def test_what_is_absent_is_named(installed: dict[str, str]):
    installed["uvicorn"] = ""
    expected = "runsockets needs pip install 'realtime-sockets[server]'; not installed: uvicorn"
    assert extras.problem("runsockets", "server") == expected


def test_what_is_too_old_is_named_with_both_versions(installed: dict[str, str]):
    installed |= OLD
    problem = extras.problem("runsockets", "server")
    assert problem.endswith("; not installed: uvicorn>=0.53 (but 0.30.6), websockets>=16 (but 12.0)")


def test_server_of_the_project_is_of_no_concern_to_other_extras(installed: dict[str, str]):
    installed |= {**OLD, "httptools": ""}
    assert {extra for extra in ("asgi", "daphne", "testing") if extras.missing(extra)} == set()


@pytest.mark.parametrize("version", ["0.53", "0.53.0", "0.53.0rc1", "0.100", "1.0", "0.53.0+team.1"], ids=str)
def test_version_that_is_not_older_will_do(installed: dict[str, str], version: str):
    installed["uvicorn"] = version
    assert extras.missing("server") == ()


def test_extras_of_an_extra_are_looked_at(installed: dict[str, str]):
    installed["prometheus-client"] = ""
    assert all(
        extras.missing(extra) == ("prometheus-client",) for extra in ("asgi", "server", "web", "daphne")
    )


def test_requirements_are_read_as_pip_has_installed_them(installed: dict[str, str], monkeypatch):
    as_built = ['uvicorn>=0.53; extra == "server"', "realtime-sockets[asgi]; extra == 'server'"]
    as_built += ["pyjwt[crypto]>=2.15; extra == 'asgi'", "django>=4.2.30"]
    monkeypatch.setattr(extras, "project", dict)
    monkeypatch.setattr(extras, "requires", lambda _: as_built)
    installed |= {"uvicorn": "", "pyjwt": "2.14.9", "django": ""}
    assert extras.missing("server") == ("uvicorn", "pyjwt>=2.15 (but 2.14.9)")


def test_test_tool_without_its_extra_is_one_sentence(installed: dict[str, str]):
    installed["fakeredis"] = ""
    with pytest.raises(ImproperlyConfigured, match=r"^realtime\.testing\.in_memory needs pip install "):
        _ = testing.in_memory
    installed |= OLD
    extras.missing.cache_clear()
    with pytest.raises(ImproperlyConfigured, match=r"\[server\]'; not installed: uvicorn>=0\.53 \(but"):
        _ = testing.running_server
    assert testing.fake_publisher


# --- A checkout, or not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_ours"),
    [
        ('[project]\nname = "realtime-sockets"\n', True),
        ('[project]\nname = "another"\n', False),
        ("[tool.poetry]\n", False),
        ("not TOML", False),
        (None, False),
    ],
    ids=["ours", "another", "poetry", "damaged", "none"],
)
def test_checkout_is_known_by_its_name(tmp_path, monkeypatch, text: str | None, is_ours: bool):
    """Some distributions leave a pyproject.toml in `site-packages`, which is no checkout to be written into."""
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    extras.project.cache_clear()
    try:
        assert bool(extras.project()) is is_ours
    finally:
        extras.project.cache_clear()
