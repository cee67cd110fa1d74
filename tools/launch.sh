#!/usr/bin/env bash
# Usage: tools/launch.sh PROCESSES_PER_NODE TOOL [arguments of the tool]
# Starts a tool of this folder under torchrun; NNODES, NODE_RANK, MASTER_ADDR and PORT as usual. After a failure all
# processes start again, up to MAX_RESTARTS times (0). SIGTERM or SIGUSR1 end a training in good order, with code 75.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tools/supervise.sh
. "$tools/supervise.sh"
processes=$1 tool=$2
shift 2
# An activated environment wins over the clone's own.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python
else
    python=python
fi
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
if [ "${MAX_RESTARTS:-0}" != 0 ]; then
    # With fixed ranks the processes would not meet again after a restart; here nodes get their ranks by meeting. In a
    # store that outlives a restart, processes would find the addresses of those before them.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meeting=(--rdzv-backend c10d --rdzv-endpoint "$address:$port" --rdzv-id "${JOB_ID:-training}")
else
    meeting=(--node-rank "${NODE_RANK:-0}" --master-addr "$address" --master-port "$port")
fi
# The processes are told directly: torchrun would give them 30 s after a SIGTERM, and die of SIGUSR1 itself.
tell_processes() { kill -USR1 $(cat "/proc/$1/task/$1/children") 2>/dev/null || true; }
torchrun() {
    trap '' USR1
    exec "$python" -m torch.distributed.run --nnodes "${NNODES:-1}" "${meeting[@]}" \
        --max-restarts "${MAX_RESTARTS:-0}" --nproc-per-node "$@" --launcher pytorch
}
code=0
supervise "${TMPDIR:-/tmp}" tell_processes torchrun "$processes" "$tools/$tool" "$@" || code=$?
exit "$code"
