#!/usr/bin/env bash
# Creates $VENV_PEERS, where tests/parity compares our backbones with timm's, Hugging Face's and mmpretrain's, on a CPU.
# If it is interrupted, run it again to resume. `--quiet` prints nothing if there is nothing to do.
set -euo pipefail
PYTHON=${PYTHON:-python3} VENV=${VENV_PEERS:-.venv-peers}
name=peers hint=
# shellcheck source=tools/setup_common.sh
. "$(dirname "$0")/setup_common.sh"

stamp=$VENV/.peers-$(cat requirements/{peers,constraints-cpu}.txt tools/setup{_peers,_common}.sh | sha256sum | cut -c-12)
finish_if_ready "$@"

make_venv "$@"

# few retries: without a network the tests soon continue, and report that these are skipped
pip() {
  "$python" -m pip install --quiet --retries 1 --timeout 15 "$@" || die "pip could not install $what, see above"
}

wanted=$(sed -n 's/^torch==//p' requirements/constraints-cpu.txt) torch=$(torch_version || true)
if [[ ${torch%+*} != "$wanted" ]]; then
  what=torch
  say "installing torch $wanted for the CPU"
  pip --no-deps -r requirements/constraints-cpu.txt
  torch=$(torch_version)
fi
[[ $torch == *+cpu || $(uname) != Linux ]] ||
  die "torch $torch is not a CPU build, and would install gigabytes of CUDA libraries: when download.pytorch.org" \
    "is reachable, remove $VENV and run again"
echo "torch==$torch" >"$VENV/torch.txt"

what='the packages of requirements/peers.txt'
say 'installing timm, transformers and mmpretrain'
pip --constraint "$VENV/torch.txt" torch -r requirements/build.txt
# mmpretrain needs mmcv without its operators, but mmcv's build cannot leave them out
mmcv=$(grep '^onedl-mmcv==' requirements/stack-onedl.txt) site=$("$python" -c 'import site; print(site.getsitepackages()[0])')
if [[ ! -d $site/onedl_mmcv.egg-info ]]; then
  source=$VENV/mmcv-source
  rm -rf "$source"
  "$python" -m pip download --quiet --retries 1 --timeout 15 --no-deps --no-build-isolation --no-binary :all: \
    --dest "$source" "$mmcv" || die "pip could not download $mmcv, see above"
  tar -xzf "$source"/*.tar.gz -C "$source" --strip-components 1
  rm -rf "$site/mmcv"
  mv "$source"/{mmcv,onedl_mmcv.egg-info} "$site"  # mmcv reads its version from the metadata
  rm -r "$source"
fi
pip --no-deps -r requirements/peers.txt
pip --constraint "$VENV/torch.txt" torch -r requirements/peers.txt
[[ $(torch_version) == "$torch" ]] || die "torch changed from $torch to $(torch_version): remove $VENV and run again"
rm -f "$VENV"/.peers-*
touch "$stamp"
say "$VENV is ready"
