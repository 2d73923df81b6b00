#!/usr/bin/env bash
# Writes requirements/image-cpu.txt and image-cuda.txt: every package of the image with the hashes of its files.
# What is already pinned there stays; to take newer versions, change constraints.txt or remove the files first.
#
# Needs uv. CPU_WHEELS names where torch's CPU build is: a folder or a page of links.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheels=${CPU_WHEELS:-https://download.pytorch.org/whl/cpu/torch/}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

lock() { # VARIANT CONSTRAINTS NOTE [OPTION ...]
  local variant=$1 constraints=$2 note=$3 file=requirements/image-$1.txt
  shift 3
  {
    echo "# The packages of the image's $variant variant, with the hashes of their files: scripts/lock_image.sh writes this file."
    echo "# $note"
  } >"$folder/head.txt"
  if [ -f "$file" ]; then grep -v '^#' "$file" >"$folder/pins.txt"; else cp requirements/constraints.txt "$folder/pins.txt"; fi
  uv pip compile pyproject.toml --no-config --extra trl --extra tensorboard "$@" --constraint "$constraints" \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
    --no-emit-index-url --no-annotate --no-header --quiet --output-file "$folder/pins.txt"
  cat "$folder/head.txt" "$folder/pins.txt" >"$file"
}

lock cpu requirements/constraints.txt \
  "torch is the CPU build, which PyPI does not have: its hash is that of PyTorch's own CPU wheel for Python 3.11 on Linux x86_64." \
  --find-links "$wheels"
# vLLM needs other versions of some packages below it; what this project imports itself stays the same.
grep -iE '^(torch|transformers|tokenizers|safetensors|peft|trl|accelerate|datasets|huggingface_hub|pyarrow|click|wandb|math-verify|sympy|reasoning_gym|tensorboard)==' \
  requirements/constraints.txt >"$folder/direct.txt"
lock cuda "$folder/direct.txt" \
  "torch is PyPI's build for CUDA 13.0. numpy is older than in constraints.txt, since vLLM asks for mistral-common, which caps it." \
  --extra vllm
