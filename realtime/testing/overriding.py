"""Other settings for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from django.test import override_settings

from realtime.redis.client import sync_client


@contextlib.contextmanager
def overridden(changed: Mapping[str, Any]) -> Iterator[None]:
    """Override settings while the block runs, and close what this process has connected to Redis meanwhile."""
    with override_settings(**changed):
        try:
            yield
        finally:
            client: Any = sync_client()
            client.close()
            if (pool := getattr(client, "connection_pool", None)) is not None:
                pool.disconnect()  # close() leaves a pool alone that it was given
