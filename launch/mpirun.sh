#!/usr/bin/env bash
# Starts megac's ranks with OpenMPI, on this machine or on the hosts of a file, with the environment that they need.
set -euo pipefail

usage() {
    cat <<'EOT'
usage: launch/mpirun.sh -n RANKS [options] [--] COMMAND [FLAGS...]        (COMMAND: train, eval, generate, ...)
  -n RANKS             processes in all
  --hostfile FILE      OpenMPI host file, "HOST slots=RANKS" a line; default: this machine only
  --ranks-per-node N   place exactly N on each host
  --threads N          CPU threads of each rank (--num-threads N)
  --net NAMES          interfaces or networks for TCP, such as eth0 or 10.0.0.0/24, when hosts have several
  --limit TIME         end the job after this time (24h, 30m, ...), for good a minute later
  --dry-run            print the command, do not run it
The program is $MEGAC, by default build/megac of this repository; every host must see it at the same path.
EOT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ranks='' hosts='' per_node='' threads='' net='' limit='' dry=false
while [ $# -gt 0 ]; do
    case $1 in
    -n | --hostfile | --ranks-per-node | --threads | --net | --limit)
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        case $1 in
        -n) ranks=$2 ;;
        --hostfile) hosts=$2 ;;
        --ranks-per-node) per_node=$2 ;;
        --threads) threads=$2 ;;
        --net) net=$2 ;;
        --limit) limit=$2 ;;
        esac
        shift 2
        ;;
    --dry-run) dry=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    -*) echo "mpirun.sh: unknown option $1 (megac's flags come after its command)" >&2; usage >&2; exit 2 ;;
    *) break ;;
    esac
done
number() {
    case $2 in
    *[!0-9]* | 0) echo "mpirun.sh: $1 $2: give a whole number above 0" >&2; exit 2 ;;
    esac
}
if [ -z "$ranks" ] || [ $# -lt 1 ]; then
    usage >&2
    exit 2
fi
number -n "$ranks"
number --ranks-per-node "$per_node"
number --threads "$threads"
if [ -n "$hosts" ] && [ ! -r "$hosts" ]; then
    echo "mpirun.sh: --hostfile $hosts: no such readable file" >&2
    exit 2
fi
megac=${MEGAC:-$root/build/megac}
if ! $dry && [ ! -x "$megac" ]; then
    echo "mpirun.sh: $megac is missing; build it (ninja -C build) or set MEGAC" >&2
    exit 2
fi

if [ -n "$hosts" ]; then
    # A cluster: cores are not shared, and large messages inside a node are copied once. What is set already wins.
    export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-0}
    export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-0}
    export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-cma}
fi
# shellcheck source=launch/ompi_env.sh
. "$root/launch/ompi_env.sh"

line=()
[ -z "$limit" ] || line+=(timeout -k 60 "$limit")
line+=(mpirun -n "$ranks" --bind-to none)
if [ -n "$hosts" ]; then
    # A host that disappears ends the job within a minute: OpenMPI's own settings need ten.
    line+=(--hostfile "$hosts" --mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 5
        --mca oob_tcp_keepalive_probes 6)
fi
[ -z "$per_node" ] || line+=(--map-by "ppr:$per_node:node")
[ -z "$net" ] || line+=(--mca btl_tcp_if_include "$net" --mca oob_tcp_if_include "$net")
line+=("$megac" "$@")
[ -z "$threads" ] || line+=(--num-threads "$threads")

if $dry; then
    printf '%q ' "${line[@]}"
    echo
    exit 0
fi
exec "${line[@]}"
