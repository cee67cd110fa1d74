#!/usr/bin/env bash
# Usage: tools/gpu_pack.sh FOLDER PYTHON_VERSION, e.g. tools/gpu_pack.sh build/wheels 3.12
# Fills a folder with what tools/gpu_check.sh needs on a GPU machine without network: wheels for that Python, and the
# source of mmcv, whose operators are compiled there. torch and triton must be there already. Where it runs, pip needs
# network; PYTHON names the interpreter that runs pip.
set -euo pipefail
folder=$(realpath -m "${1:?the folder to fill}") version=${2:?the Python of the GPU machine, e.g. 3.12}
python=${PYTHON:-python3}
[[ $version =~ ^3\.[0-9]+$ ]] || { echo "gpu_pack: $version is no version of Python like 3.12" >&2; exit 2; }
cd "$(dirname "$0")/.."
source tools/gpu_packages.sh
mkdir -p "$folder"
fetch() { "$python" -m pip download --quiet --dest "$folder" --python-version "$version" --only-binary :all: --no-deps "$@"; }
# shellcheck disable=SC2068  # each holds several names
fetch ${needed[@]#*:}
# shellcheck disable=SC2068
fetch ${detectors[@]#*:} "${building[@]}" &&
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "${toolboxes[@]#*:}" &&
  "$python" -m pip download --quiet --dest "$folder" --no-deps --no-binary onedl-mmcv "$mmcv" ||
  echo 'left out: packages of the stage detector, for the reason above' >&2
du -sh "$folder"
