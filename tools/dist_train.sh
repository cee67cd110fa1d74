#!/usr/bin/env bash
# Usage: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several nodes: set NNODES, NODE_RANK, MASTER_ADDR and PORT. Without GPUs, GPUS counts processes.
# MAX_RESTARTS=N: after a failure all processes resume from the newest checkpoint, up to N times.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
exec "$(dirname "$0")/launch.sh" "$2" train.py "$1" "${@:3}"
