#!/bin/sh
# For Compose: generates the passwords of Redis' users and of PostgreSQL, once. They go into .env; Redis gets only their
# digests (redis-users.acl, which its container must be able to read).
set -eu
cd "$(dirname "$0")"
if [ -e .env ] || [ -e redis-users.acl ]; then
    echo ".env or redis-users.acl already exists; nothing was changed" >&2
    exit 1
fi

password() { od -An -v -N24 -tx1 /dev/urandom | tr -d ' \n'; }
digest() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }

(
    umask 077
    for name in REDIS_BACKBONE REDIS_SOCKETS REDIS_WEB POSTGRES; do
        echo "${name}_PASSWORD=$(password)"
    done > .env
)
. ./.env
BACKBONE=$(digest "$REDIS_BACKBONE_PASSWORD")
SOCKETS=$(digest "$REDIS_SOCKETS_PASSWORD")
WEB=$(digest "$REDIS_WEB_PASSWORD")
while IFS= read -r line; do
    eval "echo \"$line\""
done < redis-users.acl.example > redis-users.acl
chmod 644 redis-users.acl
echo "wrote .env and redis-users.acl"
