#!/usr/bin/env bash
# Measures the CUDA backend on a GPU: kernels beside a copy, matrix products and attention beside the best square
# product, attention by cuDNN and by our kernels, whole steps. Uses what tests/gpu/run.sh built. Never part of the
# tests' verdict.
set -euo pipefail

usage() {
    cat <<'EOT'
usage: tests/gpu/bench.sh [--build-dir DIR] [--libs DIR] [--seconds S] [--standin] [FILTER]
  --build-dir DIR  what run.sh built (default: build-gpu in the repository)
  --libs DIR       as for run.sh
  --seconds S      time for each figure (0.2)
  --standin        no GPU: tiny sizes over the stand-ins, to test this script; the figures mean nothing
  FILTER           only the lines of operators that contain it, and no whole steps
EOT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
caller=$PWD
build=$root/build-gpu libs=$root/tests/gpu/libs seconds=0.2 standin=false filter=()
absolute() {
    case $1 in /*) echo "$1" ;; *) echo "$caller/$1" ;; esac
}
while [ $# -gt 0 ]; do
    case $1 in
    --standin) standin=true ;;
    --build-dir | --libs | --seconds)
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        case $1 in
        --build-dir) build=$(absolute "$2") ;;
        --libs) libs=$(absolute "$2") ;;
        --seconds) seconds=$2 ;;
        esac
        shift
        ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "bench.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
    *) filter=("$1") ;;
    esac
    shift
done
exec </dev/null
cd "$root"
# shellcheck source=tests/gpu/setup.sh
. tests/gpu/setup.sh
gpu_setup "$standin" "$libs" "$build"
program=$build/tests/bench/bench_cuda
if [ ! -x "$program" ]; then
    echo "bench.sh: $program is missing; run tests/gpu/run.sh first" >&2
    exit 2
fi
tiny=()
if $standin; then
    tiny=(--tiny)
    echo "no GPU: figures of the stand-ins, which mean nothing"
    prepend LD_LIBRARY_PATH "$build" "$build/tests/cuda/kernels" "$build/tests/cuda/standin"
else
    prepend LD_LIBRARY_PATH "$build/layers" "$build"
fi

operators() {
    say "$1"
    shift
    "$program" --seconds "$seconds" "${tiny[@]}" "$@"
}
operators "operators, bf16" --type bf16 "${filter[@]}" | tee "$build/bench.bf16"
MC_CUDNN=0 operators "attention by our kernels" --type bf16 attention
operators "products, fp32" --type f32 "${filter[@]:-gemm}"
operators "products, fp32 with TF32" --type f32 --tf32 "${filter[@]:-gemm}"
if [ ${#filter[@]} -eq 0 ]; then
    say "whole steps"
    peak=$(sed -n 's/.*square product \([0-9.e+-]*\) TFLOP.*/\1/p' "$build/bench.bf16")
    python3 tests/gpu/bench_step.py --megac "$build/megac" --peak "$peak" "${tiny[@]}"
fi
say "finished"
