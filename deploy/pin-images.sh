#!/bin/sh
# Prints the current digests of the third-party images, as lines for .env:
#
#   sh pin-images.sh >> .env
#
# Compose then builds on and starts exactly these images, even if a tag moves. Run it again to get updates.
set -eu
while read -r name image; do
    digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}' < /dev/null)
    case $digest in
        sha256:*) echo "$name=$image@$digest" ;;
        *) echo "expected a digest of $image, got: $digest" >&2; exit 1 ;;
    esac
done << IMAGES
PYTHON_IMAGE python:3.13-slim-bookworm
HAPROXY_IMAGE haproxy:3.2-alpine
VALKEY_IMAGE valkey/valkey:9-alpine
POSTGRES_IMAGE postgres:17-alpine
IMAGES
