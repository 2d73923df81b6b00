#!/usr/bin/env bash
# entrypoint.sh COMMAND [ARGUMENT ...]
# Makes a container ready, then becomes COMMAND. Runs below tini (PID 1), which reaps and passes SIGTERM to COMMAND and its
# children, so that a stopped container leaves runs that are `interrupted` and resume. All of its own words go to stderr.
# In a shell of `docker exec`, run it again to have the same environment: /opt/grpo-gsm8k/docker/entrypoint.sh bash
#
# Read from the environment (this list is the one that documentation follows):
#   PREFETCH_DATASETS     data sets to prepare before COMMAND: names of `grpo-gsm8k data prep`, each NAME or NAME@REVISION,
#                         parted by spaces or commas. A revision is resolved to its commit, which is pinned and recorded under
#                         /workspace/artifacts/NAME; without one it is the pinned or shipped commit. A failure ends the start.
#   VSCODE_TUNNEL_NAME    starts `code tunnel` under this name in the background, where `code` is installed.
#   IMAGE_DIGEST          the image's digest, for command.json; an image cannot know its own. Without it, the digest is taken
#                         from IMAGE_NAME (name@sha256:…) or from what podman tells the container.
#   PYTHONHASHSEED CUBLAS_WORKSPACE_CONFIG NVIDIA_TF32_OVERRIDE TOKENIZERS_PARALLELISM
#                         determinism: what is given is kept, and recorded (env.det.sh).
#   XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME HF_HOME PIP_CACHE_DIR UV_PROJECT_ENVIRONMENT
#   TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR CUDA_CACHE_PATH FLASHINFER_WORKSPACE_BASE
#                         places: what is given is kept, the rest is set to lie under /workspace (below). TMPDIR is set to
#                         /workspace/.cache/tmp where /tmp cannot be written (--read-only without a tmpfs).
# Set for COMMAND:
#   GRPO_GSM8K_CONTAINER_SNAPSHOT  the folder of this start's snapshot, /workspace/artifacts/containers/<time>_<host>; each run
#                         links it in sys/container.json. GRPO_GSM8K_IMAGE_TOGGLES: what env.det.sh set.
#   GIT_SHA IMAGE_NAME IMAGE_VARIANT BUILD_DATE  from the image.
# Exit status: COMMAND's; 1 where /workspace cannot be written; that of the snapshot or of `data prep` where one fails.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'entrypoint: %s\n' "$1" >&2; }

refuse_unwritable() {
  say "$1 cannot be written by uid $(id -u); mount a folder of this user's: -v \"\$PWD:/workspace\" --user \"\$(id -u):\$(id -g)\""
  exit 1
}

set_places() {
  export XDG_CACHE_HOME=${XDG_CACHE_HOME:-/workspace/.cache}
  export XDG_CONFIG_HOME=${XDG_CONFIG_HOME:-/workspace/.config}
  export XDG_DATA_HOME=${XDG_DATA_HOME:-/workspace/.local/share}
  export XDG_STATE_HOME=${XDG_STATE_HOME:-/workspace/.local/state}
  export HF_HOME=${HF_HOME:-$XDG_CACHE_HOME/huggingface}
  export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$XDG_CACHE_HOME/pip}
  export UV_PROJECT_ENVIRONMENT=${UV_PROJECT_ENVIRONMENT:-/workspace/.venv}
  export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$XDG_CACHE_HOME/torchinductor}
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$XDG_CACHE_HOME/triton}
  export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$XDG_CACHE_HOME/nv}
  export FLASHINFER_WORKSPACE_BASE=${FLASHINFER_WORKSPACE_BASE:-$XDG_CACHE_HOME}
  export PATH=$PATH:/workspace/.local/bin # last, so that what a person put on the volume (`code`) hides nothing of the image
  export USER=${USER:-$(id -u)}           # libraries that ask for the user's name find one though /etc/passwd has none
  if [ -z "${TMPDIR:-}" ] && [ ! -w /tmp ]; then
    export TMPDIR=$XDG_CACHE_HOME/tmp
  fi
  local place
  for place in "$XDG_CACHE_HOME" "$HF_HOME" ${TMPDIR:+"$TMPDIR"}; do
    if ! mkdir -p "$place" 2>/dev/null || [ ! -w "$place" ]; then
      refuse_unwritable "$place"
    fi
  done
}

say_gpu() {
  local there=no
  if [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then
    there=yes
  fi
  case ${IMAGE_VARIANT:-}/${NVIDIA_VISIBLE_DEVICES:-void}/$there in
    */void/no | */none/no) ;;
    */no) say "no GPU in this container: start it with --gpus all on a host with NVIDIA's driver and container toolkit; going on with the CPU" ;;
    cpu/*/yes) say "there is a GPU, and this is the image's CPU variant, which does not use it: take the cuda variant" ;;
  esac
}

prefetch() {
  local item
  local -a options
  for item in ${PREFETCH_DATASETS//,/ }; do
    options=(--dataset "${item%%@*}")
    if [[ $item == *@* ]]; then
      options+=(--revision "${item#*@}")
    fi
    say "preparing $item"
    grpo-gsm8k data prep "${options[@]}" >&2
  done
}

start_tunnel() {
  if ! command -v code >/dev/null; then
    say "VSCODE_TUNNEL_NAME is set, and there is no \`code\` on the PATH: no tunnel"
    return
  fi
  # Started by a shell that ends at once, so that tini, and not COMMAND, is its parent.
  (code tunnel --accept-server-license-terms --name "$VSCODE_TUNNEL_NAME" >"$XDG_CACHE_HOME/vscode-tunnel.log" 2>&1 &)
  say "VS Code tunnel $VSCODE_TUNNEL_NAME: $XDG_CACHE_HOME/vscode-tunnel.log has its login code"
}

if [ ! -d /workspace ] || [ ! -w /workspace ]; then
  refuse_unwritable /workspace
fi
set_places
# shellcheck source-path=SCRIPTDIR source=env.det.sh
. "$here/env.det.sh"
say_gpu
GRPO_GSM8K_CONTAINER_SNAPSHOT=/workspace/artifacts/containers/$(date -u +%Y%m%dT%H%M%SZ)_$(uname -n)
export GRPO_GSM8K_CONTAINER_SNAPSHOT
"$here/collect_system_info.sh" "$GRPO_GSM8K_CONTAINER_SNAPSHOT"
if [ -n "${PREFETCH_DATASETS:-}" ]; then
  prefetch
fi
if [ -n "${VSCODE_TUNNEL_NAME:-}" ]; then
  start_tunnel
fi
exec "$@"
