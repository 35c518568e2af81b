#!/usr/bin/env bash
# Installs what the tests need, builds megac and runs every test. The last line is `N passed, N failed, N skipped`;
# the exit status is 0 only if something passed and nothing failed.
set -euo pipefail

usage() {
    cat <<'EOT'
usage: tests/run.sh [--quick] [--suite NAME] [-k EXPR] [--build-dir DIR]
  --quick          without the build under address and undefined-behaviour sanitizers
  --suite NAME     one area only: lint, base, layers, cuda, tensor_parallel, pipeline, datasets, train, convert, launch;
                   or mutations: damaged files of three of them (tests/mutate.h)
  -k EXPR          passed to pytest: only the Python tests that match
  --build-dir DIR  build folder (default: build in the repository; the sanitizer build is DIR-asan)
EOT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
caller=$PWD
build=$root/build quick=false suite='' expression=''
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=true ;;
    --suite | -k | --build-dir)
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        case $1 in
        --suite) suite=$2 ;;
        -k) expression=$2 ;;
        --build-dir) case $2 in /*) build=$2 ;; *) build=$caller/$2 ;; esac ;;
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
export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
[ -t 1 ] || export NO_COLOR=1 TERM=dumb
# shellcheck source=launch/ompi_env.sh
. launch/ompi_env.sh

reports=()     # arguments of summary.py
started=$SECONDS
say() {
    printf '== %4ds  %s\n' $((SECONDS - started)) "$*"
}
finish() {
    say "finished"
    if [ $((SECONDS - started)) -gt 1200 ]; then
        echo "run.sh: warning: the whole run took more than 20 minutes"
    fi
    python3 tests/summary.py "${reports[@]}"
}

say "packages"
bash launch/install.sh build demo test
say "Python environment"
bash launch/venv.sh "$build/venv" tests/requirements.txt
meson=$(bash launch/meson.sh "$build/venv")

# Configures a build folder, or corrects the options of one that exists, and builds it.
make_build() {
    local folder=$1
    shift
    if [ -f "$folder/build.ninja" ]; then
        "$meson" setup --reconfigure "$folder" "$@"
    else
        "$meson" setup "$folder" "$@"
    fi && ninja -C "$folder"
}

# Builds one folder and runs its C tests: label, folder, further arguments of `meson test`.
c_tests() {
    local label=$1 folder=$2 log=$2/meson-logs/testlog.json
    shift 2
    rm -f "$log"
    "$meson" test -C "$folder" --no-rebuild --print-errorlogs --timeout-multiplier 4 "$@" || true
    # A suite that has Python tests only leaves no log.
    if [ -f "$log" ] || [ -z "$suite" ]; then
        reports+=(--meson "$label=$log")
    fi
}

only=()
[ -z "$suite" ] || only=(--suite "$suite")

say "release build"
if ! make_build "$build" -Dbuildtype=release -Dwerror=true -Dtests=true -Dcuda=auto >"$build/build.log" 2>&1; then
    tail -n 60 "$build/build.log"
    reports+=(--step "release=fail")
    finish
    exit 1
fi
say "C tests and lint"
c_tests release "$build" "${only[@]}"

if ! $quick && [ "$suite" != lint ] && [ "$suite" != launch ] && [ "$suite" != cuda ]; then
    asan=$build-asan
    mkdir -p "$asan"
    say "build under sanitizers"
    # Without the CUDA backend: its suites have checks of their own (tests/cuda/README.md), and nvcc takes minutes.
    if make_build "$asan" -Doptimization=1 -Ddebug=true -Dwerror=true -Dtests=true -Db_sanitize=address,undefined \
        -Db_lundef=false -Dcuda=disabled >"$asan/build.log" 2>&1; then
        say "C tests under sanitizers"
        ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1 \
            LSAN_OPTIONS=suppressions=$root/tests/lsan.supp:print_suppressions=0 \
            UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
            c_tests sanitizers "$asan" --no-suite lint --no-suite cuda "${only[@]}"
    else
        tail -n 60 "$asan/build.log"
        reports+=(--step "sanitizers=fail")
    fi
fi

say "Python tests"
where=tests
[ -z "$suite" ] || where=tests/$suite
if [ -z "$suite" ] || [ -n "$(find "$where" -name 'test_*.py' 2>/dev/null)" ]; then
    rm -f "$build/pytest.xml"
    status=0
    MEGAC_BUILD=$build "$build/venv/bin/python" -m pytest -c tests/pytest.ini --rootdir tests -q \
        --junitxml "$build/pytest.xml" ${expression:+-k "$expression"} "$where" || status=$?
    # 5: -k left nothing over, which is right when the C tests were meant.
    if [ $status -ne 5 ] || [ -z "$expression" ]; then
        reports+=(--junit "python=$build/pytest.xml")
    fi
fi
finish
