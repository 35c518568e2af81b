#!/usr/bin/env bash
# What run.sh and bench.sh share: the tools, libraries and GPUs of a machine that has little else. Sourced.

started=$SECONDS
say() {
    printf '== %4ds  %s\n' $((SECONDS - started)) "$*"
}

# Puts folders in front of a variable's: prepend NAME FOLDER...
prepend() {
    local name=$1 folder
    shift
    for folder in "$@"; do
        [ ! -d "$folder" ] || export "$name=$folder${!name:+:${!name}}"
    done
}

# NVIDIA's libraries from Python wheels, where the toolkit has only the compiler: headers, libraries, and the names
# without version that a linker looks for. $1: folder for these.
nvidia_wheels() {
    local folder file
    mkdir -p "$1"
    while read -r folder; do
        prepend CPATH "$folder/include"
        prepend LD_LIBRARY_PATH "$folder/lib"
        for file in "$folder"/lib/lib*.so.*; do
            [ ! -e "$file" ] || ln -sfn "$file" "$1/$(basename "${file%%.so.*}").so"
        done
    done < <(python3 -c 'import nvidia, pathlib
for place in nvidia.__path__:
    print(*sorted({p.parent for p in pathlib.Path(place).glob("*/lib")}), sep="\n")' 2>/dev/null)
    LIBRARY_PATH=${LIBRARY_PATH:+$LIBRARY_PATH:}$1 # after the toolkit's own
    export LIBRARY_PATH
}

# Environment of build and tests: stand-ins (true or false), prefix of the small libraries, build folder.
gpu_setup() {
    local standin=$1 libs=$2 build=$3 toolkit
    mkdir -p "$build"
    export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
    export JAX_PLATFORMS=cpu # references are computed where products are fp32
    PATH=$PATH:/usr/local/cuda/bin:$(python3 -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
    export PATH
    if $standin; then
        export MEGAC_CUDA_LIBS=standin MC_GEMM_AUTOTUNE=0
        return
    fi
    if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >"$build/gpus"; then
        echo "no GPU: nvidia-smi is missing or fails; --standin runs without one" >&2
        exit 2
    fi
    MEGAC_GPUS=$(grep -c '^GPU' "$build/gpus")
    export MEGAC_GPUS MEGAC_CUDA_LIBS=nvidia
    cat "$build/gpus"
    toolkit=$(dirname "$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")
    prepend CPATH "$libs/include"
    prepend LIBRARY_PATH "$libs/lib" "$toolkit/lib64"
    nvidia_wheels "$build/links"
    prepend LD_LIBRARY_PATH "$libs/lib" "$toolkit/lib64"
}

# Compute capabilities of the GPUs here, as nvcc names those that have instructions of their own.
gpu_arch() {
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | tr -d . | sed 's/^90$/90a/' | paste -sd,
}

# The program, its module and the test programs: build folder, architectures.
gpu_build() {
    local build=$1 meson=(meson)
    command -v meson >/dev/null || meson=(python3 -m mesonbuild.mesonmain)
    "${meson[@]}" --version >/dev/null || { echo "meson is missing: pip install meson ninja" >&2; return 1; }
    local args=(-Dbuildtype=release -Dcuda=enabled -Dmpi=disabled -Dhdf5=disabled -Dgpu_arch="$2" -Dwerror=false)
    if [ -f "$build/build.ninja" ]; then
        "${meson[@]}" setup --reconfigure "$build" "${args[@]}"
    else
        "${meson[@]}" setup "$build" "${args[@]}"
    fi || return 1
    local targets=(megac libmegac_cuda.so tests/cuda/test_device_cuda tests/cuda/test_gemm_cuda
        tests/layers/test_ops_reference tests/bench/bench_cuda)
    local optional
    for optional in tests/cuda/test_attention_cuda tests/layers/op_cases.stamp; do
        ! grep -q "^build ${optional}[: ]" "$build/build.ninja" || targets+=("$optional")
    done
    ninja -C "$build" "${targets[@]}"
}
