# Source this file. It has what the scripts share that create an environment: messages, a check and the venv itself. It
# reads PYTHON, VENV, `name` (the start of error messages), `stamp` (a file that marks VENV as complete) and `hint`.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
die() { printf '%s: %s\n' "$name" "$*" >&2; exit 1; }
trap 'echo; die "interrupted: run the same command again to resume"' INT TERM

finish_if_ready() {  # `--quiet` prints nothing
  [[ -f $stamp && -x $VENV/bin/python ]] || return 0
  [[ ${1:-} == --quiet ]] || echo "$VENV is ready$hint"
  exit 0
}

make_venv() {  # sets `python`; a second set-up of the same VENV waits
  mkdir -p "$VENV"
  exec 9>"$VENV/.setup.lock"
  flock -n 9 || { say "another set-up of $VENV is running: waiting for it"; flock 9; finish_if_ready "$@"; }
  python=$(cd "$VENV" && pwd)/bin/python
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    say "creating $VENV"
    "$PYTHON" -m venv "$VENV" || die "cannot create $VENV with $PYTHON: remove $VENV and run again"
  fi
  # pip writes INSTALLER and RECORD last: a distribution with neither is incomplete, but pip treats it as installed
  local info
  for info in "$VENV"/lib/python3*/site-packages/*.dist-info; do
    [[ -f $info/INSTALLER || -f $info/RECORD ]] || rm -r "$info"
  done
}

torch_version() { "$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null; }
