# Source this file. It sets `tools`, this folder, and `python`, and defines a function.
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) python=python
# An active environment takes precedence over the repository's .venv.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python
fi

# `mark_in FOLDER...` makes the file in which a stopped training leaves its exit code, in the first of the folders that
# takes it, and prints its path. What is in it before holds the room for the code, should the disk be full by then.
mark_in() {
    local folder mark
    for folder; do
        mark=$(mktemp "$folder/.preempted.XXXXXXXX" 2>/dev/null) || continue
        # The shell that writes is one of its own: its error is not ours.
        (echo 000 >"$mark") 2>/dev/null && echo "$mark" && return
        rm -f "$mark"
    done
    echo "error: no file can be written in $(printf '%s, ' "$@")which a preempted training needs to say so;" \
        'make room, or start from a folder in which you may write' >&2
    return 2
}

# `supervise MARK FORWARD COMMAND...` runs a launcher (torchrun, srun), or a function that execs one, and returns its exit
# code, or the one that the launched processes wrote to the file MARK, as a stopped training does. On the script's first
# SIGTERM, SIGUSR1 or SIGINT, `FORWARD PID TERM|USR1|INT` is called with the launcher's PID; on the second, the launcher
# gets a SIGTERM. `asked` is that first signal. A batch job of Slurm is requeued if it `starts_again` after the code.
asked=
starts_again() {
    [ "$1" != 75 ] || return 0
    [ "$1" = 143 ] || return 1
    # With a GraceTime, Slurm takes a preempted job that ends in time for complete. While it runs, nobody has cancelled it.
    case $(scontrol show job "$SLURM_JOB_ID" 2>/dev/null) in
        *JobState=RUNNING*PreemptTime=[0-9]*) ;;
        *) return 1 ;;
    esac
}
supervise() {
    local forward=$2 launcher='' code mark
    pass_on() {
        if [ -z "$launcher" ]; then
            asked=${asked:-$1}
        elif [ -z "$asked" ]; then
            asked=$1
            "$forward" "$launcher" "$1"
        else
            kill -TERM "$launcher"
        fi
    }
    PREEMPTED_FILE=$1
    shift 2
    # By this a run that torchrun restarts knows what it has saved itself.
    LAUNCH_ID=$(cat /proc/sys/kernel/random/uuid)
    export PREEMPTED_FILE LAUNCH_ID
    trap 'pass_on TERM' TERM
    trap 'pass_on USR1' USR1
    trap 'pass_on INT' INT
    trap 'kill -TERM ${launcher:-$$}' HUP
    (trap - INT QUIT && "$@") &
    launcher=$!
    [ -z "$asked" ] || "$forward" "$launcher" "$asked"
    # A signal interrupts `wait`, which then tells of the signal; the shell keeps the code of the launcher.
    while kill -0 "$launcher" 2>/dev/null; do
        wait "$launcher" || true
    done
    code=0
    wait "$launcher" || code=$?
    trap - TERM USR1 INT HUP
    mark=$(cat "$PREEMPTED_FILE" 2>/dev/null) || mark=000
    rm -f "$PREEMPTED_FILE"
    [ "$mark" = 000 ] || code=$((10#$mark))
    # A launcher may be told of SIGTERM by SIGUSR1; under Slurm they differ, see `exit_code` of runner/preemption.py.
    [ "$code$asked" != 75TERM ] || [ -z "${SLURM_JOB_ID:-}" ] || code=143
    if [ -n "${SLURM_JOB_ID:-}" ] && [ "${SLURM_PROCID:-0}" = 0 ] && starts_again "$code"; then
        scontrol requeue "$SLURM_JOB_ID" || echo "job $SLURM_JOB_ID cannot be requeued: submit it again" >&2
    fi
    return "$code"
}
