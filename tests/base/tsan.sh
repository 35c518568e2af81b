#!/usr/bin/env bash
# Runs a program built with ThreadSanitizer; skipped where the kernel's address layout does not let such programs start.
set -uo pipefail

said=$(TSAN_OPTIONS=halt_on_error=1:exitcode=66 "$@" 2>&1)
status=$?
echo "$said"
case $said in
*"FATAL: ThreadSanitizer: unexpected memory mapping"*) exit 77 ;;
esac
exit "$status"
