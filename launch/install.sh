#!/usr/bin/env bash
# Installs what is missing of tests/packages.txt (Debian, Ubuntu).
#   launch/install.sh KIND...      KIND: build, demo, test (first column of the list)
# Asks nothing and leaves apt alone when everything is there. Only an installation needs root, or sudo without password.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

wanted() {
    local kind
    for kind in "$@"; do
        awk -v kind="$kind" '$1 == kind { print $2 }' "$root/tests/packages.txt"
    done
}

missing() {
    local present
    present=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' 2>/dev/null | awk '$1 == "installed" { print $2 }')
    wanted "$@" | grep -Fxv -f <(echo "$present") || true
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        echo "install.sh: not root, and sudo asks for a password; run as root: ${*}" >&2
        return 1
    fi
}

if ! command -v dpkg-query >/dev/null; then
    echo "install.sh: no dpkg here (not Debian or Ubuntu); going on; needed are the equivalents of:" >&2
    wanted "$@" | tr '\n' ' ' >&2
    echo >&2
    exit 0
fi

mapfile -t packages < <(missing "$@")
if [ "${#packages[@]}" -gt 0 ]; then
    echo "install.sh: installing ${packages[*]}"
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)
    as_root "${apt[@]}" update </dev/null >/dev/null
    as_root "${apt[@]}" install --no-install-recommends "${packages[@]}" </dev/null >/dev/null
    mapfile -t packages < <(missing "$@")
    if [ "${#packages[@]}" -gt 0 ]; then
        echo "install.sh: still missing: ${packages[*]}" >&2
        exit 1
    fi
fi
