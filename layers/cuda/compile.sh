#!/bin/sh
# usage: compile.sh LOG NVCC ARGUMENTS...
# Runs nvcc. What ptxas -v says of each kernel's registers and memory goes to LOG; everything else is shown.
log=$1
shift
"$@" 2>"$log.all"
status=$?
grep -E '^ptxas info|^ *[0-9]+ bytes stack frame' "$log.all" >"$log"
grep -vE '^ptxas info|^ *[0-9]+ bytes stack frame|^$' "$log.all" >&2
rm -f "$log.all"
exit $status
