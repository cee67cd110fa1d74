#!/usr/bin/env bash
# Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# Several nodes: set NNODES, NODE_RANK, MASTER_ADDR and PORT. Without GPUs, GPUS counts processes.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
exec "$(dirname "$0")/launch.sh" "$3" test.py "$1" "$2" "${@:4}"
