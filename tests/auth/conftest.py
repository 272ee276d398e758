"""An identity provider, and its key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.e2e.jwks_server import JwksServer


@pytest.fixture(scope="module")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def provider(private_key: rsa.RSAPrivateKey) -> Iterator[JwksServer]:
    with closing(JwksServer()) as server:
        server.keys = {"k1": private_key}
        yield server
