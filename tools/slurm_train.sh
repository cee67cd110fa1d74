#!/usr/bin/env bash
# Usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [arguments of tools/train.py]
# Environment variables (defaults): GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PORT (29500).
# Nodes without GPUs: SRUN_ARGS=--gres=none, and GPUS counts processes.
# In a batch job use sbatch --requeue --signal=USR1@300, and --resume here: the job saves before its time limit,
# is requeued and resumes.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
partition=$1 job_name=$2 config=$3
shift 3
# mmdet's script takes the work directory here, mmseg's does not: it is optional.
work_dir=()
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    work_dir=(--work-dir "$1")
    shift
fi
exec "$(dirname "$0")/slurm_launch.sh" "$partition" "$job_name" \
    train.py "$config" "${work_dir[@]}" "$@"
