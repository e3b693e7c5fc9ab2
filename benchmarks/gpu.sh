#!/usr/bin/env bash
# Run everything that needs a GPU: tests of the kernels, a training step, and the kernels' speed compared with PyTorch.
# Writes results/*.json. Needs the dependencies of the package; the package need not be installed.
#
#   benchmarks/gpu.sh tests|train|bench|all [RESULTS [SECONDS [MODELS...]]]
#
# "all" takes at most SECONDS (default 570) and prints what it had no time for; measure that with a second call: "bench" and
# the remaining models. Kernels are compiled at first use, which takes minutes, and are kept in Triton's cache.
set -uo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
results=${2:-results}
seconds=${3:-570}
shift $(($# < 3 ? $# : 3))
models=("$@")
[ $# -gt 0 ] || models=(shvit_s1 shvit_s2 shvit_s3 shvit_s4)
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$results"
started=$SECONDS

left() { # seconds, at least 10
  local rest=$((seconds - (SECONDS - started)))
  echo $((rest > 10 ? rest : 10))
}

limited() { # SECONDS COMMAND...: stop with SIGINT, so that partial results are printed
  local limit=$1
  shift
  timeout -s INT -k 10 "$limit" "$@"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
if [ "$what" = tests ] || [ "$what" = all ]; then
  limit=$(left)
  [ "$what" = tests ] || limit=$((limit / 3))
  limited "$limit" python3 -m pytest -m gpu -W default -W error::shvit.errors.Notice -p no:cacheprovider \
    tests/engines/cuda 2>&1 | tee "$results/tests.log" | tail -40
  echo "== tests: $((SECONDS - started)) s"
fi
if [ "$what" = train ] || [ "$what" = all ]; then
  limited "$(($(left) / 3))" python3 benchmarks/train_step.py --model shvit_s1 --batch-size 1024 --results "$results"
  echo "== training step: $((SECONDS - started)) s"
fi
if [ "$what" = bench ] || [ "$what" = all ]; then
  limited "$(left)" python3 benchmarks/gpu.py "${models[@]}" --seconds "$(left)" --results "$results"
  echo "== speed: $((SECONDS - started)) s"
fi
