#!/usr/bin/env bash
# Usage: tools/launch.sh PROCESSES_PER_NODE TOOL [arguments of the tool]
# Starts a tool of this folder under torchrun. Reads NNODES, NODE_RANK, MASTER_ADDR, PORT, JOB_ID, REPORT_AFTER and
# JOIN_TIMEOUT, see docs/clusters.md.
# After a failure all processes are restarted, up to MAX_RESTARTS times (default 0). On SIGTERM or SIGUSR1 a training
# saves a checkpoint and ends with code 75, on Ctrl-C with 130.
set -euo pipefail
# shellcheck source=tools/supervise.sh
. "$(dirname "${BASH_SOURCE[0]}")/supervise.sh"
processes=$1 tool=$2
shift 2
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500} run=${JOB_ID:-${SLURM_JOB_ID:-training}}
join_timeout=${JOIN_TIMEOUT:-1800}
# The port is free, node 0 answers, and another process says which nodes are missing.
(
    export MASTER_ADDR=$address JOB_ID=$run TORCH_CPP_LOG_LEVEL=FATAL
    PYTHONPATH=$tools/..${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m poolformer_dense.nodes
)
if [ "${MAX_RESTARTS:-0}" != 0 ]; then
    # Restarts need a rendezvous that assigns the node ranks: with fixed ranks the processes would not find each other
    # again. A TCP store that is shared across restarts would return addresses of the previous processes.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    rendezvous=(--rdzv-backend c10d --rdzv-endpoint "$address:$port" --rdzv-conf "join_timeout=$join_timeout")
else
    rendezvous=(--node-rank "${NODE_RANK:-0}" --master-addr "$address" --master-port "$port")
    rendezvous+=(--rdzv-conf "timeout=$join_timeout")
fi
# Signal the processes directly: torchrun kills them 30 s after a SIGTERM or SIGINT, and SIGUSR1 kills torchrun itself.
# While it has none, there is nothing to save: it ends, with the code that they would have left.
signal_processes() {
    local child processes=()
    # Not what torchrun or its libraries run beside them.
    for child in $(cat "/proc/$1/task/$1/children"); do
        if grep -qzF -- "$tools/$tool" "/proc/$child/cmdline" 2>/dev/null; then processes+=("$child"); fi
    done
    if [ ${#processes[@]} != 0 ]; then
        kill -"$2" "${processes[@]}" 2>/dev/null || true
    else
        if [ "$2" = INT ]; then echo 130; else echo 075; fi >"$PREEMPTED_FILE"
        kill -TERM "$1"
    fi
}
# In a session of its own, or it would receive the terminal's Ctrl-C too.
torchrun() {
    trap '' USR1
    exec setsid "$python" -m torch.distributed.run --nnodes "${NNODES:-1}" "${rendezvous[@]}" --rdzv-id "$run" \
        --max-restarts "${MAX_RESTARTS:-0}" --nproc-per-node "$@" --launcher pytorch
}
mark=$(mark_in "${TMPDIR:-/tmp}" /tmp /dev/shm "$PWD")
code=0
supervise "$mark" signal_processes torchrun "$processes" "$tools/$tool" "$@" || code=$?
exit "$code"
