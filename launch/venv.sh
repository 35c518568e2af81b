#!/usr/bin/env bash
# Makes a Python environment from a pinned list, once per content of the list.
#   launch/venv.sh DIR REQUIREMENTS
set -euo pipefail

folder=$1 list=$2
stamp=$folder/.installed
if cmp -s "$list" "$stamp"; then
    exit 0
fi
echo "venv.sh: installing $(grep -c '==' "$list") Python packages into $folder"
rm -f "$stamp"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-input -r "$list" </dev/null
cp "$list" "$stamp"
