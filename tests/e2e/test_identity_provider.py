"""Tokens of an identity provider, as docs/identity-providers.md sets it up, and users and groups of any name."""

from __future__ import annotations

import json
import os
import time
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.blocks import titled
from tests.e2e.harness import ROOT, Client, Stack, unique
from tests.e2e.jwks_server import JwksServer

PAGE = titled("identity-providers.md")
GROUP = "Équipe São Paulo"
DECOMPOSED = unicodedata.normalize("NFD", GROUP)
ROOM = f"presence:{GROUP}"


class Provider:
    """A stack whose tokens come from somewhere else."""

    def __init__(self, stack: Stack, key: rsa.RSAPrivateKey) -> None:
        self.stack = stack
        self.key = key

    def token(self, user_id: str, **changes: Any) -> str:
        """The token of the page, for another user, with these claims changed; `...`: without."""
        claims = {**json.loads(PAGE["claims"]), "sub": user_id, "exp": int(time.time()) + 600}
        claims = {name: value for name, value in {**claims, **changes}.items() if value is not ...}
        token = jwt.encode(claims, self.key, "RS256", headers={"kid": "k1"})
        self.stack.tokens.add(token)
        return token


@pytest.fixture(scope="module")
def provider(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    directory = tmp_path_factory.mktemp("provider")
    (directory / "support").mkdir()
    (directory / "support" / "__init__.py").touch()
    (directory / "support" / "identity.py").write_text(PAGE["support/identity.py"])
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    environment = dict(line.split("=", 1) for line in PAGE["environment"].splitlines())
    path = os.pathsep.join([str(directory), str(ROOT)])
    with closing(JwksServer()) as keys:
        keys.keys = {"k1": key}
        environment |= {"JWT_JWK_URL": keys.url, "JWT_SIGNING_KEY": ""}
        with Stack(directory, redis_url, PYTHONPATH=path, **environment) as stack:
            yield Provider(stack.start_all(), key)


def new_user_id() -> str:
    return f"ana.maria+desk@example.com|{unique('x')}~1"


async def state_of(client: Client, group: str = GROUP) -> dict[str, str]:
    members = (await client.expect("presence:state", group=group))["data"]["members"]
    return {member["user_id"]: member["status"] for member in members}


async def test_user_of_the_provider_has_the_mapped_claims(provider: Provider):
    user = new_user_id()
    async with provider.stack.client(token=provider.token(user, groups=[DECOMPOSED, "a:b", "sales"])) as ana:
        assert (ana.user_id, ana.ready["role"]) == (user, "attendant")
        assert set(ana.ready["rooms"]) == {f"user:{user}", ROOM, "presence:sales"}
        assert (await state_of(ana))[user] == "online"
    async with provider.stack.client(token=provider.token(user, groups=["a:b"])) as ana:
        assert set(ana.ready["rooms"]) == {f"user:{user}"}
    assert "groups left out of a token" in provider.stack.logs


@pytest.mark.parametrize(
    "changes",
    [
        *({"sub": ...}, {"sub": "a b"}, {"roles": ...}, {"roles": []}, {"roles": 7}, {"groups": "x"}),
        *({"token_type": "refresh"}, {"aud": "another"}, {"iss": "another"}, {"exp": ...}),
    ],
    ids=repr,
)
async def test_token_that_cannot_be_mapped_is_refused(provider: Provider, changes: dict[str, Any]):
    response = await provider.stack.handshake(token=provider.token(new_user_id(), **changes))
    provider.stack.assert_refused(response, 401, "token_invalid")


async def test_mapped_role_decides_where_a_user_may_enter(provider: Provider):
    customer = provider.token(new_user_id(), roles=["client"])
    provider.stack.assert_refused(
        await provider.stack.handshake("/hub/", token=customer), 403, "forbidden_role"
    )
    async with provider.stack.client("portal", token=customer) as client:
        assert client.ready["role"] == "customer"


async def test_policy_reads_a_claim_of_the_product(provider: Provider):
    user = new_user_id()
    async with provider.stack.client(token=provider.token(user)) as ana:
        assert (await ana.call("join:thread", {"thread_id": "sp-4711"}))["room"] == "thread:sp-4711"
        assert (await ana.refused("join:thread", {"thread_id": "rj-1"}))["code"] == "forbidden"
        await ana.call("auth:refresh", {"token": provider.token(user, region="rj")})
        left = await ana.expect("room:left")
        assert left["data"] == {"room": "thread:sp-4711", "reason": "forbidden"}
        await ana.call("join:thread", {"thread_id": "rj-1"})


async def test_events_reach_users_and_groups_of_any_name(provider: Provider):
    stack, user, item = provider.stack, new_user_id(), unique("i")
    async with stack.client(token=provider.token(user)) as ana:
        stack.add("queue:new", {"item_id": item, "group": DECOMPOSED})
        frame = await ana.expect("queue:new", item_id=item)
        assert (frame["room"], frame["data"]["group"]) == (ROOM, GROUP)
        stack.publish("queue:updated", {"item_id": item}, rooms=[f"presence:{DECOMPOSED}"])
        assert (await ana.expect("queue:updated", item_id=item))["room"] == ROOM
        stack.add("user:notification", {"user_id": user, "text": "hi"})
        assert (await ana.expect("user:notification"))["room"] == f"user:{user}"
        stack.add("user:notification", {"user_id": user, "text": "again"}, rooms=[f"user:{user}"])
        await ana.expect("user:notification", text="again")
        stack.add("user:notification", {"user_id": user, "text": "not you"}, **{"except": ana.connection_id})
        stack.add("user:notification", {"user_id": user, "text": "last"})
        await ana.expect("user:notification", text="last")
        assert [f["data"]["text"] for f in ana.received("user:notification")] == ["hi", "again", "last"]


async def test_changes_of_presence_are_told_to_a_group_of_any_name(provider: Provider):
    stack, one, other = provider.stack, new_user_id(), new_user_id()
    async with (
        stack.client(token=provider.token(one)) as ana,
        stack.client(token=provider.token(other)) as ben,
    ):
        assert (await ana.expect("attendant:online", user_id=other))["room"] == ROOM
        stack.add("presence:set", {"user_id": other, "status": "away"})
        await ana.expect("attendant:away", user_id=other)
        assert online(stack, DECOMPOSED) & {one, other} == {one}
        await ben.call("presence:online")
        await ana.expect("attendant:online", user_id=other)
        assert online(stack, GROUP) >= {one, other}
        await ben.send("presence:offline")
        await ana.expect("attendant:offline", user_id=other)


def online(stack: Stack, group: str) -> set[str]:
    script = (
        "import django; django.setup()\n"
        "from realtime.publisher import online\n"
        f"import json; print(json.dumps(online({group!r})))"
    )
    return set(json.loads(stack.run("-c", script, DJANGO_SETTINGS_MODULE="realtime.settings.web").stdout))


async def test_room_of_a_group_of_any_name_is_recovered(provider: Provider):
    stack, user, items = provider.stack, new_user_id(), [unique("i") for _ in range(3)]
    token = provider.token(user)
    async with stack.client(token=token) as ana:
        stack.add("queue:new", {"item_id": items[0], "group": GROUP})
        offset = (await ana.expect("queue:new", item_id=items[0]))["offset"]
    for item in items[1:]:
        stack.add("queue:new", {"item_id": item, "group": GROUP})
    async with stack.client(token=token, query="resume=1") as ana:
        answer = (await ana.call("resume", {"rooms": {ROOM: offset}}))["rooms"][ROOM]
        assert (answer["recovered"], answer["offset"]) == (True, offset)
        assert answer["missed"] >= 2  # the users of earlier tests may go offline in this room, too
        for item in items[1:]:
            await ana.expect("queue:new", item_id=item)


async def test_rights_and_orders_concern_exactly_the_user_that_they_name(provider: Provider):
    stack, thread, user = provider.stack, f"sp.{unique('t')}@x|y", new_user_id()
    twin = user.replace("|", "+")
    tokens = {name: provider.token(name, roles=["client"]) for name in (user, twin)}
    async with (
        stack.client("portal", token=tokens[user]) as one,
        stack.client("portal", token=tokens[twin]) as other,
    ):
        for name in (user, twin):
            stack.add("thread:grant", {"thread_id": thread, "user_id": name})
            stack.add("user:notification", {"user_id": name}, namespaces=["portal"])
        for client in (one, other):
            await client.expect("user:notification")
            await client.call("join:thread", {"thread_id": thread})
        stack.add("thread:revoke", {"thread_id": thread, "user_id": user})
        assert (await one.expect("room:left"))["data"]["room"] == f"thread:{thread}"
        assert (await one.refused("join:thread", {"thread_id": thread}))["code"] == "forbidden"
        stack.add("thread:message", {"thread_id": thread, "message_id": 1})
        await other.expect("thread:message", thread_id=thread)
        stack.add("user:disconnect", {"user_id": user, "namespace": "portal"})
        assert await one.expect_close() == 4403
        await other.call("heartbeat")


async def test_token_without_an_id_is_revoked_by_its_digest_and_no_other_with_it(provider: Provider):
    stack, token, other = provider.stack, provider.token(new_user_id()), provider.token(new_user_id())
    async with stack.client(token=token) as revoked, stack.client(token=other) as stays:
        digest = sha256(token.encode()).hexdigest()
        stack.add("token:revoke", {"jti": digest, "exp": time.time() + 600})
        assert await revoked.expect_close() == 4403
        await stays.call("heartbeat")
    stack.assert_refused(await stack.handshake(token=token), 401, "token_invalid")
    assert (await stack.handshake(token=other)).status == 101
