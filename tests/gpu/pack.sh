#!/usr/bin/env bash
# Copies headers and static libraries of the five small libraries that megac needs, and of cmocka, from this machine to
# DIR, for a machine that has none of them and cannot install any. tests/gpu/run.sh looks in tests/gpu/libs.
#   tests/gpu/pack.sh [DIR]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/tests/gpu/libs}
mkdir -p "$folder/include" "$folder/lib"

# Full path of a header, or of a library, as the compiler finds them.
header() {
    echo "#include <$1>" | cc -E -x c - | sed -n 's|^# [0-9]* "\(/.*/'"$1"'\)".*|\1|p' | head -n 1
}
library() {
    cc -print-file-name="$1"
}

for name in jansson.h jansson_config.h xxhash.h yaml.h zlib.h zconf.h zstd.h zstd_errors.h cmocka.h; do
    case $name in
    cmocka.h) path=$(printf '#include <%s.h>\n' stdarg stddef stdint setjmp cmocka |
        cc -E -x c - | sed -n 's|^# [0-9]* "\(/.*/cmocka.h\)".*|\1|p' | head -n 1) ;;
    *) path=$(header "$name") ;;
    esac
    [ -n "$path" ] || { echo "pack.sh: $name is missing here; install it (tests/packages.txt)" >&2; exit 1; }
    cp "$path" "$folder/include/"
done
for name in jansson xxhash yaml z zstd cmocka; do
    path=$(library "lib$name.a")
    if [ ! -f "$path" ]; then
        path=$(readlink -f "$(library "lib$name.so")")
        # A shared library goes under both names: the linker's, and the one that programs ask for.
        cp "$path" "$folder/lib/$(objdump -p "$path" | awk '$1 == "SONAME" { print $2 }')"
        ln -sfn "$(objdump -p "$path" | awk '$1 == "SONAME" { print $2 }')" "$folder/lib/lib$name.so"
    else
        cp "$path" "$folder/lib/"
    fi
done
echo "$folder: $(du -sk "$folder" | cut -f1) KiB"
