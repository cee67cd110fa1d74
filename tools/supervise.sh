# Source this file. It sets `tools`, this folder, and `python`, and defines a function.
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) python=python
# An active environment takes precedence over the repository's .venv.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python
fi

# `supervise FOLDER FORWARD COMMAND...` runs a launcher (torchrun, srun), or a function that execs
# one, and returns its exit code, or the one that the launched processes wrote to the file PREEMPTED_FILE in FOLDER, as
# a preempted training does. On the script's first SIGTERM, SIGUSR1 or SIGINT, `FORWARD PID USR1|INT` is called with the
# launcher's PID; on the second, the launcher gets a SIGTERM.
supervise() {
    local folder=$1 forward=$2 launcher code forwarded=no
    pass_on() {
        if [ "$forwarded" = no ]; then
            forwarded=yes
            "$forward" "$launcher" "$1"
        else
            kill -TERM "$launcher"
        fi
    }
    shift 2
    PREEMPTED_FILE=$(mktemp -u "$folder/.preempted.XXXXXXXX")
    LAUNCH_TIME=$(date +%s)
    export PREEMPTED_FILE LAUNCH_TIME
    (trap - INT QUIT && "$@") &
    launcher=$!
    trap 'pass_on USR1' TERM USR1
    trap 'pass_on INT' INT
    trap 'kill -TERM "$launcher"' HUP
    while :; do
        code=0
        wait "$launcher" || code=$?
        # A signal interrupts `wait` while the launcher is still running.
        kill -0 "$launcher" 2>/dev/null || break
    done
    trap - TERM USR1 INT HUP
    if [ -e "$PREEMPTED_FILE" ]; then
        code=$(cat "$PREEMPTED_FILE")
        rm -f "$PREEMPTED_FILE"
    fi
    return "$code"
}
