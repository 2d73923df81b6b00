#!/usr/bin/env bash
# collect_system_info.sh FOLDER
# Writes what this machine is into FOLDER: the snapshot that every run has in its sys/, made by the same code.
set -euo pipefail
if [ $# != 1 ]; then
  echo "usage: collect_system_info.sh FOLDER" >&2
  exit 2
fi
exec python -m grpo_gsm8k.runs.snapshot "$1"
