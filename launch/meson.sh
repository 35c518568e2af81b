#!/usr/bin/env bash
# Prints a meson of version 1.0 or newer: the system's, else one put into the Python environment DIR.
#   launch/meson.sh DIR
set -euo pipefail

folder=$1
have=$(meson --version 2>/dev/null || echo 0)
if [ "${have%%.*}" -ge 1 ]; then
    command -v meson
    exit 0
fi
if [ ! -x "$folder/bin/meson" ]; then
    echo "meson.sh: meson $have is older than 1.0; installing 1.0.1 into $folder" >&2
    [ -x "$folder/bin/pip" ] || python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-input meson==1.0.1 </dev/null
fi
echo "$folder/bin/meson"
