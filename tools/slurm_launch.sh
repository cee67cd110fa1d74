#!/usr/bin/env bash
# Usage: tools/slurm_launch.sh PARTITION JOB_NAME TOOL [arguments of the tool]
# Starts a tool of this folder under Slurm's srun, with one task per GPU. Reads GPUS, GPUS_PER_NODE, CPUS_PER_TASK and
# SRUN_ARGS as mmdet's scripts do, and PORT as tools/dist_train.sh does. A training that gets SIGUSR1 saves and ends with
# code 75, and a batch job is requeued; with SIGTERM (scancel, a preemption) it saves and ends with 143, and is not.
set -euo pipefail
# shellcheck source=tools/supervise.sh
. "$(dirname "${BASH_SOURCE[0]}")/supervise.sh"
partition=$1 job_name=$2 tool=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
export MASTER_PORT=${PORT:-${MASTER_PORT:-29500}}
# SRUN_ARGS is split into words and comes last, so that its options override the ones before.
# The allocation's number would contradict --gres.
unset SLURM_GPUS_PER_NODE
# srun forwards signals to the processes, except that at SIGTERM it would kill them. The terminal sends Ctrl-C to it too.
signal_srun() { [ "$2" = INT ] || kill -USR1 "$1"; }
# In a folder that all nodes can access.
mark=$(mark_in "$PWD" "${HOME:-$PWD}")
code=0
# shellcheck disable=SC2086
supervise "$mark" signal_srun exec srun --partition="$partition" --job-name="$job_name" --gres=gpu:"$per_node" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$tools/$tool" "$@" --launcher slurm || code=$?
exit "$code"
