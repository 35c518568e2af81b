#!/usr/bin/env bash
# Builds megac's CUDA backend and runs its suites on a GPU, with NVIDIA's libraries. The machine needs the CUDA toolkit,
# gcc and a python3 with pytest; no MPI, HDF5, pkg-config or root. The last line is `N passed, N failed, N skipped`.
set -euo pipefail

usage() {
    cat <<'EOT'
usage: tests/gpu/run.sh [--build-dir DIR] [--arch LIST] [--libs DIR] [--no-build] [--standin] [-k EXPR]
  --build-dir DIR  build folder (default: build-gpu in the repository)
  --arch LIST      compute capabilities, such as 80,90a (default: what nvidia-smi says of the GPUs here)
  --libs DIR       prefix with the small libraries (tests/gpu/pack.sh makes one; default: tests/gpu/libs where it is)
  --no-build       use what the build folder has
  --standin        no GPU: over the stand-ins for NVIDIA's libraries, to test this script
  -k EXPR          passed to pytest: only the tests that match
EOT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
caller=$PWD
build=$root/build-gpu arch='' libs=$root/tests/gpu/libs building=true standin=false expression=''
absolute() {
    case $1 in /*) echo "$1" ;; *) echo "$caller/$1" ;; esac
}
while [ $# -gt 0 ]; do
    case $1 in
    --no-build) building=false ;;
    --standin) standin=true ;;
    --build-dir | --arch | --libs | -k)
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        case $1 in
        --build-dir) build=$(absolute "$2") ;;
        --arch) arch=$2 ;;
        --libs) libs=$(absolute "$2") ;;
        -k) expression=$2 ;;
        esac
        shift
        ;;
    -h | --help) usage; exit 0 ;;
    *) echo "run.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
exec </dev/null
cd "$root"
# shellcheck source=tests/gpu/setup.sh
. tests/gpu/setup.sh
gpu_setup "$standin" "$libs" "$build"

if $building; then
    say "build in $build for compute capability ${arch:=$(gpu_arch)}"
    if ! gpu_build "$build" "$arch" >"$build/build.log" 2>&1; then
        tail -n 60 "$build/build.log"
        python3 tests/summary.py --step gpu=fail
        exit 1
    fi
fi
if [ ! -x "$build/megac" ] || [ ! -e "$build/libmegac_cuda.so" ]; then
    echo "run.sh: no megac with its CUDA module in $build; leave --no-build out" >&2
    exit 2
fi

say "tests"
rm -f "$build/gpu.xml"
MEGAC_BUILD=$build python3 -m pytest -c tests/pytest.ini --rootdir tests -q --junitxml "$build/gpu.xml" \
    ${expression:+-k "$expression"} tests/gpu/on_gpu.py tests/cuda/test_train_cuda.py || true
say "finished"
python3 tests/summary.py --junit "gpu=$build/gpu.xml"
