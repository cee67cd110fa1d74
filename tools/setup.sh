#!/usr/bin/env bash
# Creates $VENV for one stack; `make help` lists the variables that it reads. If it is interrupted, run it again to
# resume. `--quiet` prints nothing if there is nothing to do.
set -euo pipefail
PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv} TORCH=${TORCH:-} MMCV_LINKS=${MMCV_LINKS:-}
name=setup
# shellcheck source=tools/setup_common.sh
. "$(dirname "$0")/setup_common.sh"

# --- which stack, and is it already installed? ----------------------------------------------------------------------
holds() {  # whether the environment has a distribution of this stack
  local name names='mmengine mmcv mmdet mmsegmentation'
  [[ $1 == openmmlab ]] || names='onedl_mmengine onedl_mmcv onedl_mmdetection onedl_mmsegmentation'
  for name in $names; do
    compgen -G "$VENV/lib/python3*/site-packages/$name-[0-9]*.dist-info" >/dev/null && return
  done
  return 1
}
# An environment keeps its stack: after `make setup STACK=openmmlab`, `make test` needs no STACK.
STACK=${STACK:-$(if holds openmmlab; then echo openmmlab; else echo onedl; fi)}
case $STACK in
  onedl) other=openmmlab ;;
  openmmlab) other=onedl ;;
  *) die "unknown STACK '$STACK': choose STACK=onedl or STACK=openmmlab" ;;
esac
! holds $other || die "$VENV holds the $other stack, whose files $STACK would overwrite: add" \
  "VENV=.venv-$STACK, or remove $VENV"

stamp=$VENV/.setup-$STACK-$(cat requirements/*.txt setup.cfg tools/{setup,setup_common,build_mmcv}.sh backbones/ops/backends/{native.cpp,library.py} |
  sha256sum | cut -c-12)
hint=" (stack $STACK); 'make doctor' checks it"
finish_if_ready "$@"

# --- what pip cannot install ----------------------------------------------------------------------------------------
command -v "$PYTHON" >/dev/null || die "$PYTHON not found: name a Python, e.g. PYTHON=python3.11"
"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' ||
  die "Python 3.10 to 3.13 is needed, $PYTHON is $("$PYTHON" -V 2>&1): name another, e.g. PYTHON=python3.11"
debian=python3 missing=()
[[ ${PYTHON##*/} == python3.* ]] && debian=${PYTHON##*/}
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$debian-venv")
if [[ -z $MMCV_LINKS ]]; then
  command -v "${CXX:-g++}" >/dev/null || missing+=(build-essential)
  [[ -f $("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] || missing+=("$debian-dev")
fi
"$PYTHON" -c 'import ctypes; ctypes.CDLL("libGL.so.1")' 2>/dev/null || missing+=(libgl1)
"$PYTHON" -c 'import ctypes; ctypes.CDLL("libgthread-2.0.so.0")' 2>/dev/null || missing+=(libglib2.0-0)
[[ -z ${missing[*]} ]] || die "system packages are missing; on Debian or Ubuntu: sudo apt-get install -y ${missing[*]}"

# --- the environment and torch --------------------------------------------------------------------------------------
make_venv "$@"
if torch=$(torch_version); then
  [[ -z $TORCH ]] || say "keeping torch $torch, which $VENV already has; for another, remove $VENV"
elif [[ -n $TORCH ]]; then
  say "installing $TORCH"
  # shellcheck disable=SC2086  # TORCH holds several arguments for pip
  "$python" -m pip install $TORCH || die "pip could not install TORCH='$TORCH' (its message is above)"
else
  say "installing torch for the CPU"
  # few retries: if PyTorch's own index is unreachable, pip falls back to PyPI; --no-deps: so that it tries only once
  "$python" -m pip install --no-deps --retries 1 --timeout 15 -r requirements/constraints-cpu.txt ||
    die 'pip could not install torch (its message is above): check the network, or name a build with TORCH='
  [[ $(torch_version) == *+cpu ]] || say 'this is the build from PyPI: on Linux it includes gigabytes of CUDA libraries'
fi
torch=$(torch_version)
echo "torch==$torch" >"$VENV/torch.txt"
# every later call is constrained to this torch
pip() { "$python" -m pip "$1" --quiet --constraint "$VENV/torch.txt" "${@:2}" || die "pip $1 failed, see above"; }

# --- mmcv, the only package with operators to compile ---------------------------------------------------------------
say 'installing the build requirements of mmcv'
pip install torch -r requirements/build.txt
mmcv=$(grep -E '^(onedl-)?mmcv==' "requirements/stack-$STACK.txt")
if "$python" - "${mmcv/==*/}" "${mmcv/*==/}" 2>/dev/null <<'EOF'
import os, sys
from importlib.metadata import version
import torch
from mmcv.ops import get_compiling_cuda_version
name, wanted = sys.argv[1:]
cuda = os.getenv('FORCE_CUDA') == '1' or torch.cuda.is_available()
sys.exit(version(name).split('+')[0] != wanted or cuda and get_compiling_cuda_version() == 'not available')
EOF
then
  say "$mmcv is installed, operators included"
elif [[ -n $MMCV_LINKS ]]; then
  say "installing $mmcv from $MMCV_LINKS"
  # OneDL publishes a package index, OpenMMLab a page of links: pip ignores the option that does not apply
  "$python" -m pip install --no-deps --force-reinstall --only-binary :all: \
    --index-url "$MMCV_LINKS" --find-links "$MMCV_LINKS" "$mmcv" ||
    die "no wheel of $mmcv for $("$python" -V) and torch $torch at $MMCV_LINKS: choose a pair it has, or compile" \
      'with FORCE_CUDA=1 instead of MMCV_LINKS'
else
  say "building $mmcv, or taking it from the cache"
  wheel=$(tools/build_mmcv.sh "$python" "$mmcv")
  pip install --no-deps --force-reinstall "$wheel"
fi

# --- the rest -------------------------------------------------------------------------------------------------------
say "installing the $STACK stack, the test tools and this project"
pip install -r "requirements/stack-$STACK.txt" -r requirements/runtime.txt -r requirements/tests.txt
pip install --no-deps --no-build-isolation --editable .
[[ $(torch_version) == "$torch" ]] || die "torch changed from $torch to $(torch_version): remove $VENV and run again"
say "compiling the CPU operators"
"$python" tools/build_ops.py >/dev/null || say 'continuing without them'  # fallback: operators of torch
rm -f "$VENV"/.setup-*-*
touch "$stamp"
say 'done; checking'
"$python" tools/doctor.py
