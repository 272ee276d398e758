"""A Cluster of three servers, for one file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from channels.layers import get_channel_layer

from tests.servers import Cluster


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), replicas=False) as servers:
        yield servers


@pytest.fixture(scope="module")
def redis_url(servers: Cluster) -> str:
    """With every option that is permitted for a Cluster."""
    return (
        f"{servers.url}?client_name=ours&health_check_interval=15&max_connections=900&socket_connect_timeout=4"
        "&socket_keepalive=1&socket_timeout=5"
    )


@pytest.fixture
def layer(process: str) -> Any:
    return get_channel_layer()
