#!/usr/bin/env bash
# Usage: tools/launch.sh PROCESSES_PER_NODE TOOL [arguments of the tool]
# Starts a tool of this folder under torchrun; NNODES, NODE_RANK, MASTER_ADDR and PORT as usual.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
processes=$1 tool=$2
shift 2
# An activated environment wins over the clone's own.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python
else
    python=python
fi
exec "$python" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}" \
    --nproc-per-node "$processes" "$tools/$tool" "$@" --launcher pytorch
