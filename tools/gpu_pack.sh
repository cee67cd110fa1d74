#!/usr/bin/env bash
# Usage: tools/gpu_pack.sh FOLDER PYTHON_VERSION, e.g. tools/gpu_pack.sh build/wheels 3.12
# Fills a folder with what tools/gpu_check.sh needs on a GPU machine without network: wheels for that Python, and the
# source of mmcv, whose operators are compiled there. torch and triton must be there already. Where it runs, pip needs
# network; PYTHON names the interpreter that runs pip.
set -euo pipefail
folder=${1:?the folder to fill} version=${2:?the Python of the GPU machine, e.g. 3.12}
python=${PYTHON:-python3}
[[ $version =~ ^3\.[0-9]+$ ]] || { echo "gpu_pack: $version is no version of Python like 3.12" >&2; exit 2; }
mkdir -p "$folder"
fetch() { "$python" -m pip download --quiet --dest "$folder" --python-version "$version" --only-binary :all: --no-deps "$@"; }
# backbones alone needs these beside torch; rich prints the tables, pytest runs the kernels' tests.
fetch onedl-mmengine addict yapf platformdirs termcolor pyyaml rich markdown-it-py mdurl pygments \
  pytest pluggy iniconfig packaging hypothesis sortedcontainers
# The detectors; without them that stage is left out and named.
fetch onedl-mmdetection onedl-mmsegmentation pycocotools terminaltables shapely prettytable ftfy wcwidth regex ||
  echo 'left out: the toolboxes for the stage detector' >&2
"$python" -m pip download --quiet --dest "$folder" --no-deps --no-build-isolation --no-binary :all: onedl-mmcv ||
  echo 'left out: the source of mmcv, for the stage detector' >&2
du -sh "$folder"
