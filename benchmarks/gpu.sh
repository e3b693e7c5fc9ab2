#!/usr/bin/env bash
# Checks and times everything that needs a GPU, in ten minutes: tests of the kernels, their speed beside PyTorch's, and
# a training step. Leaves results/*.json. Needs the package's dependencies, not the package installed.
#
#   benchmarks/gpu.sh [RESULTS [SECONDS [MODELS...]]]
#
# A machine lent for some minutes may not get through all models: name those that are left in a second call.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-results}
seconds=${2:-570}
shift $(($# < 2 ? $# : 2))
models=("${@:-shvit_s1 shvit_s2 shvit_s3 shvit_s4}")
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$results"
started=$SECONDS

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
timeout 150 python3 -m pytest -q -m gpu -W default -p no:cacheprovider tests/engines/test_kernels.py \
  tests/engines/test_cuda.py 2>&1 | tail -15
echo "== tests: $((SECONDS - started)) s"

# the training step first: it is short
timeout 150 python3 benchmarks/train_step.py --model shvit_s1 --batch-size 1024 --results "$results"
echo "== training step: $((SECONDS - started)) s"

left=$((seconds - (SECONDS - started)))
# shellcheck disable=SC2086
timeout "$left" python3 benchmarks/gpu.py ${models[*]} --seconds "$left" --results "$results"
echo "== all: $((SECONDS - started)) s"
