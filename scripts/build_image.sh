#!/usr/bin/env bash
# build_image.sh [--reproducible] [BUILDX OPTION ...]
# Builds the image IMAGE:VARIANT (grpo-gsm8k:cpu) of this checkout, with its commit and that commit's time, and loads it.
# --reproducible builds it twice without the cache, and fails where the two digests differ.
#
#   VARIANT            cpu (default) or cuda
#   BASE_IMAGE         a base of your own (Debian or Ubuntu). Default: python:3.11-slim for cpu, the Dockerfile's for cuda
#   DOCKER_BUILD_FLAGS more options for `docker buildx build`, parted by spaces
#   SOURCE_DATE_EPOCH  the time of everything in the image (default: of the commit)
# Needs buildx, and an engine with the containerd image store or a docker-container builder (`docker buildx create --use`).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

variant=${VARIANT:-cpu}
image=${IMAGE:-grpo-gsm8k}
reproducible=no
if [ "${1:-}" = --reproducible ]; then
  reproducible=yes
  shift
fi
# The multi-platform index of 3.11.16 on Debian bookworm.
python_base=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
case $variant in
  cpu) base=(--build-arg "BASE_IMAGE=${BASE_IMAGE:-$python_base}") ;;
  cuda) base=(${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"}) ;;
  *)
    echo "build_image: VARIANT is cpu or cuda, not $variant" >&2
    exit 2
    ;;
esac
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
sha=$(git rev-parse HEAD)
if [ -n "$(git status --porcelain -- docker grpo_gsm8k requirements pyproject.toml README.md LICENSE)" ]; then
  sha=$sha-dirty
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Split on purpose: options parted by spaces.
# shellcheck disable=SC2206
flags=(${DOCKER_BUILD_FLAGS:-})

# build FILE [OPTION ...]: leaves the image in FILE and prints its digest. zstd, since compressing is most of an export's time.
build() {
  local file=$1
  shift
  docker buildx build --file docker/Dockerfile --provenance=false --metadata-file "$folder/metadata.json" \
    "${flags[@]}" "${base[@]}" --build-arg "VARIANT=$variant" --build-arg "GIT_SHA=$sha" --build-arg "IMAGE_NAME=$image:$variant" \
    --build-arg "BUILD_DATE=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" \
    --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" \
    --output "type=oci,dest=$file,name=$image:$variant,rewrite-timestamp=true,compression=zstd,compression-level=1,force-compression=true" \
    "$@" . >&2
  sed -n 's/.*"containerimage.digest": "\(sha256:[0-9a-f]*\)".*/\1/p' "$folder/metadata.json"
}

if [ $reproducible = no ]; then
  digest=$(build "$folder/image.tar" "$@")
else
  digest=$(build "$folder/image.tar" --no-cache "$@")
  again=$(build "$folder/again.tar" --no-cache "$@")
  if [ "$digest" != "$again" ]; then
    trap - EXIT
    echo "build_image: two builds differ, $digest and $again; both are kept in $folder" >&2
    exit 1
  fi
  rm "$folder/again.tar"
  echo "build_image: two builds without the cache have the same digest"
fi
docker load --quiet --input "$folder/image.tar"
echo "$image:$variant $digest"
