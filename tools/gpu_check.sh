#!/usr/bin/env bash
# Usage: tools/gpu_check.sh [STAGE...]
# Checks and measures everything on a machine with a GPU, torch and nvcc, then says which defaults the figures support.
# Stages: env kernels bandwidth backbone compiles amp detector exact nccl (all, if none is named). Each writes a JSON to
# OUT and prints a table last. Variables:
#   PYTHON=python3        the interpreter, which has torch
#   WHEELS=FOLDER         what tools/gpu_pack.sh filled, for a machine without network
#   OUT=build/gpu_check   where results go
#   MINUTES=8             of each stage: nothing new is begun after them
#   DRY=1                 on a CPU, with tiny shapes: tests the check itself
set -euo pipefail
out=${OUT:+$(realpath -m "$OUT")} wheels=${WHEELS:+$(realpath -m "$WHEELS")} python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
out=${out:-$PWD/build/gpu_check}
stages=("$@")
((${#stages[@]})) || stages=(env kernels bandwidth backbone compiles amp exact nccl detector)
mkdir -p "$out"

has() { "$python" -c "import $1" 2>/dev/null; }
install_in() {  # a folder beside the results: the machine's own environment stays as it is
  local target=$out/$1 source=()
  shift
  [[ -z $wheels ]] || source=(--no-index --find-links "$wheels")
  "$python" -m pip install --quiet --no-deps --target "$target" "${source[@]}" "$@" ||
    echo "left out: $* (not installed)" >&2
}
install() { install_in packages "$@"; }
export PYTHONPATH=$out/packages${PYTHONPATH:+:$PYTHONPATH}
ensure() {  # MODULE:PACKAGES...
  local need
  # shellcheck disable=SC2086  # several names
  for need; do has "${need%%:*}" || install ${need#*:}; done
}
compiler=
if [[ -z ${DRY:-} ]]; then
  "$python" -c 'import torch; torch.cuda.current_device()' 2>/dev/null || {
    echo "gpu_check: $python has no torch that finds a GPU; DRY=1 runs without one" >&2
    exit 2
  }
  source tools/gpu_packages.sh
  ensure "${needed[@]}"
  # mmcv's operators take minutes to compile: the other stages run meanwhile.
  if [[ " ${stages[*]} " == *' detector '* ]] && ! has mmcv && command -v nvcc >/dev/null; then
    built=$(compgen -G "$out/wheels/onedl_mmcv*.whl" || compgen -G "${wheels:-$out/wheels}/onedl_mmcv*.whl" || true)
    if [[ -n $built ]]; then
      install "${built%%$'\n'*}"
    else
      install_in building "${building[@]}"  # apart: pip does not add to a bin/ that exists
      arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
      # On half of the cores, after all else: launches are timed meanwhile.
      PATH=$out/building/bin:$PATH PYTHONPATH=$out/building:$PYTHONPATH TORCH_CUDA_ARCH_LIST=$arch FORCE_CUDA=1 \
        MMCV_WITH_OPS=1 CXXFLAGS='-g0 -O2' MAX_JOBS=$((($(nproc) + 1) / 2)) nice -n 19 \
        "$python" -m pip wheel --no-deps --no-build-isolation ${wheels:+--no-index --find-links "$wheels"} \
        --no-binary onedl-mmcv --wheel-dir "$out/wheels" "$mmcv" >"$out/mmcv.log" 2>&1 &
      compiler=$!
    fi
  fi
fi

failed=()
for stage in "${stages[@]}"; do
  if [[ $stage == detector && -n $compiler ]]; then
    if wait "$compiler"; then install "$out"/wheels/onedl_mmcv*.whl; else echo "left out: mmcv ($out/mmcv.log)" >&2; fi
  fi
  [[ $stage != detector || -n ${DRY:-} ]] || ensure "${detectors[@]}" "${toolboxes[@]}"
  "$python" tools/gpu_stage.py "$stage" --out "$out" ${MINUTES:+--minutes "$MINUTES"} ${DRY:+--dry} || failed+=("$stage")
done
"$python" tools/gpu_report.py "$out" >"$out/report.md"
echo "report: $out/report.md"
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" >&2; exit 1; }
