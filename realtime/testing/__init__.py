"""Test tools for teams: a publisher that records, a real server for tests, and everything in one process without Redis.

Nothing of the product imports this package. It is loaded by every run of pytest where the product is installed, so
importing it, or its plugin, imports nothing else: what a test uses is imported when the test names it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realtime.testing.memory import in_memory
    from realtime.testing.recorder import PublishedMixin, fake_publisher
    from realtime.testing.server import running_server
    from realtime.testing.tokens import issue_token

__all__ = ["PublishedMixin", "fake_publisher", "in_memory", "issue_token", "running_server"]

_MODULES = {
    "PublishedMixin": ("realtime.testing.recorder", ""),
    "fake_publisher": ("realtime.testing.recorder", ""),
    "in_memory": ("realtime.testing.memory", "testing"),
    "issue_token": ("realtime.testing.tokens", "asgi"),
    "running_server": ("realtime.testing.server", "server"),
}
"""Where each is, and the extra that it needs."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _MODULES[name]
    import_module("realtime.extras").require(f"realtime.testing.{name}", extra)
    return getattr(import_module(module), name)
