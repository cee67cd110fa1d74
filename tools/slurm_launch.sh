#!/usr/bin/env bash
# Usage: tools/slurm_launch.sh PARTITION JOB_NAME TOOL [arguments of the tool]
# Starts a tool of this folder under Slurm's srun, one task a GPU; GPUS, GPUS_PER_NODE,
# CPUS_PER_TASK and SRUN_ARGS as in mmdet's scripts, PORT as in tools/dist_train.sh.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
partition=$1 job_name=$2 tool=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# An activated environment wins over the clone's own.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python
else
    python=python
fi
export MASTER_PORT=${PORT:-${MASTER_PORT:-29500}}
# SRUN_ARGS is a list of words, and comes last: what it repeats, it replaces.
# shellcheck disable=SC2086
exec srun --partition="$partition" --job-name="$job_name" --gres=gpu:"$per_node" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$tools/$tool" "$@" --launcher slurm
