#!/bin/sh
# Looks up the digests of the images that are not ours, as lines for .env:
#
#   sh pin-images.sh >> .env
#
# Compose then builds on these and starts these, whatever a tag names tomorrow. To get updates, do it again.
set -eu
while read -r name image; do
    digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}' < /dev/null)
    case $digest in
        sha256:*) echo "$name=$image@$digest" ;;
        *) echo "no digest of $image: $digest" >&2; exit 1 ;;
    esac
done << IMAGES
PYTHON_IMAGE python:3.13-slim-bookworm
HAPROXY_IMAGE haproxy:3.2-alpine
VALKEY_IMAGE valkey/valkey:9-alpine
POSTGRES_IMAGE postgres:17-alpine
IMAGES
