# shellcheck shell=bash
# Sourced by entrypoint.sh: the determinism toggles that must stand before Python starts, strict by default.
# Each is overridden by giving it (-e NVIDIA_TF32_OVERRIDE=1 asks for TF32, -e CUBLAS_WORKSPACE_CONFIG= leaves cuBLAS alone).
# A run records every one of them in sys/determinism.json: what was asked, what is in force, and who decided it: "image" for
# what is set here, "environment" for what was given. The values are those of grpo_gsm8k/runs/determinism.py (a test says so).

set_toggle() {
  if [ -z "${!1+given}" ]; then
    export "$1=$2"
    GRPO_GSM8K_IMAGE_TOGGLES="${GRPO_GSM8K_IMAGE_TOGGLES:+$GRPO_GSM8K_IMAGE_TOGGLES }$1=$2"
  fi
}

export GRPO_GSM8K_IMAGE_TOGGLES=${GRPO_GSM8K_IMAGE_TOGGLES:-}
set_toggle PYTHONHASHSEED 0                # the order of sets and dicts of strings
set_toggle CUBLAS_WORKSPACE_CONFIG :4096:8 # cuBLAS: the same algorithm each time
set_toggle NVIDIA_TF32_OVERRIDE 0          # TF32 off in every NVIDIA library
set_toggle TOKENIZERS_PARALLELISM false    # no threads that a later fork would break
unset -f set_toggle
