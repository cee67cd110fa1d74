# To be sourced. `supervise FOLDER FORWARD COMMAND...` runs a launcher (torchrun, srun), or a function that ends in its
# exec, and returns its exit code, or 75 if the processes that it started left in FOLDER the mark of a training that was
# told to stop.
# SIGTERM and SIGUSR1 to the script: `FORWARD PID` is called at the first, the launcher gets the second as SIGTERM.
supervise() {
    local folder=$1 forward=$2 launcher code told=no
    shift 2
    PREEMPTED_FILE=$(mktemp -u "$folder/.preempted.XXXXXXXX")
    LAUNCH_TIME=$(date +%s)
    export PREEMPTED_FILE LAUNCH_TIME
    (trap - INT QUIT && "$@") &
    launcher=$!
    trap 'if [ "$told" = no ]; then told=yes; "$forward" "$launcher"; else kill -TERM "$launcher"; fi' TERM USR1
    trap : INT  # which the launcher has received, too
    while :; do
        code=0
        wait "$launcher" || code=$?
        # A signal ends the wait, not the launcher.
        kill -0 "$launcher" 2>/dev/null || break
    done
    trap - TERM USR1 INT
    if [ -e "$PREEMPTED_FILE" ]; then
        rm -f "$PREEMPTED_FILE"
        code=75
    fi
    return "$code"
}
