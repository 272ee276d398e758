"""The pytest plugin: fixtures for teams.

pytest loads it wherever the product is installed, so it imports nothing before a fixture is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from realtime.testing.clients import Clients
    from realtime.testing.memory import InMemory
    from realtime.testing.recorder import Published
    from realtime.testing.server import RealtimeServer

_SCOPES = ("session", "package", "module", "class", "function")


def pytest_addoption(parser: pytest.Parser) -> None:
    """One option, for `pytest.ini` and the like."""
    parser.addini(
        "realtime_server_scope",
        f"How long one server of the fixture realtime_server is used: {', '.join(_SCOPES)}.",
        default="session",
    )


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    scope = config.getini("realtime_server_scope")
    if scope not in _SCOPES:
        raise pytest.UsageError(f"realtime_server_scope must be one of {', '.join(_SCOPES)}, got {scope!r}")
    return scope


def _tool(name: str) -> Any:
    """What `realtime.testing` has under this name, with Django prepared, unless pytest-django has done that."""
    import django  # noqa: PLC0415
    from django.apps import apps  # noqa: PLC0415
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415

    from realtime import testing  # noqa: PLC0415

    try:
        if not apps.ready:
            django.setup()
    except ImproperlyConfigured as error:
        raise _failure(f"The fixtures of realtime need the settings of your project: {error}") from None
    try:
        return getattr(testing, name)
    except ImproperlyConfigured as error:
        raise _failure(str(error)) from None


def _failure(text: str) -> BaseException:
    """The end of a test with one sentence, without a traceback."""
    return pytest.fail.Exception(text, pytrace=False)


@pytest.fixture
def published() -> Iterator[Published]:
    """What the test publishes: validated and recorded, but not sent (`realtime.testing.fake_publisher`)."""
    with _tool("fake_publisher")() as record:
        yield record


@pytest.fixture
def issue_token() -> Callable[..., str]:
    """`realtime.testing.issue_token`: signs an access token with the claims that it is given."""
    issue: Callable[..., str] = _tool("issue_token")
    return issue


@pytest.fixture(scope="session")
def realtime_settings() -> dict[str, Any]:
    """Override this to change settings for the fixtures below; of `REALTIME` only the entries given are replaced."""
    return {}


@pytest.fixture
def realtime_in_memory(realtime_settings: dict[str, Any]) -> Iterator[InMemory]:
    """Socket server, bridge and publisher in this process, without Redis (`realtime.testing.in_memory`)."""
    in_memory = _tool("in_memory")
    from django.test import override_settings  # noqa: PLC0415

    others = {name: value for name, value in realtime_settings.items() if name != "REALTIME"}
    with override_settings(**others), in_memory(**realtime_settings.get("REALTIME", {})) as system:
        yield system


@pytest.fixture(scope=_scope)
def _realtime_processes(realtime_settings: dict[str, Any]) -> Iterator[RealtimeServer]:
    running_server = _tool("running_server")
    from realtime.testing.server import ServerFailed  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running_server(realtime_settings))
        except ServerFailed as error:
            raise _failure(str(error)) from None
        yield server


@pytest.fixture
def realtime_server(_realtime_processes: RealtimeServer) -> Iterator[RealtimeServer]:
    """A real socket server and bridge with the settings of the project; the test publishes to their Redis."""
    with _realtime_processes.in_use() as server:
        yield server
    if ended := _realtime_processes.ended:
        raise _failure(ended)


@pytest.fixture
def realtime_client(realtime_server: RealtimeServer) -> Clients:
    """Connects clients to `realtime_server`: `await realtime_client(user=7, role="attendant")`, or `.sync(…)`."""
    return realtime_server.client
