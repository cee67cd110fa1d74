#!/usr/bin/env bash
# Usage: tools/slurm_launch.sh PARTITION JOB_NAME TOOL [arguments of the tool]
# Starts a tool of this folder under Slurm's srun, one task a GPU; GPUS, GPUS_PER_NODE,
# CPUS_PER_TASK and SRUN_ARGS as in mmdet's scripts, PORT as in tools/dist_train.sh. A training that was told to stop
# ends with code 75; within a batch job, the job is queued again first.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tools/supervise.sh
. "$tools/supervise.sh"
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
tell_srun() { kill -USR1 "$1"; }
code=0
# The working directory is one that all nodes see. srun passes signals on to the processes.
# shellcheck disable=SC2086
supervise "$PWD" tell_srun exec srun --partition="$partition" --job-name="$job_name" --gres=gpu:"$per_node" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$tools/$tool" "$@" --launcher slurm || code=$?
if [ "$code" = 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "job $SLURM_JOB_ID can not be queued again: submit it anew" >&2
fi
exit "$code"
