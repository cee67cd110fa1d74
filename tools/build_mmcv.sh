#!/usr/bin/env bash
# Usage: tools/build_mmcv.sh PYTHON REQUIREMENT
# Compiles e.g. mmcv==2.1.0 against the torch of PYTHON and prints the path of the wheel. The wheel is cached under a
# key of everything that determines its content, so each machine compiles once. The object files of an interrupted
# compilation are cached too, and ninja reuses them. Messages go to stderr.
set -euo pipefail
python=$1 mmcv=$2
say() { printf '         %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

read -r platform cuda nvcc < <("$python" - <<'EOF'
import os, platform, sys, torch
from torch.utils.cpp_extension import CUDA_HOME
cuda = os.getenv('FORCE_CUDA') == '1' or torch.cuda.is_available()
arch = os.getenv('TORCH_CUDA_ARCH_LIST', '').translate(str.maketrans(' ;', '__'))
build = f'{sys.implementation.cache_tag}-{platform.machine()}-torch{torch.__version__}'
print(build + (f'-cuda{arch}' if cuda else '-cpu'), int(cuda), CUDA_HOME or 'missing')
EOF
)
[[ $cuda == 0 || $nvcc != missing ]] || die "compiling $mmcv for CUDA needs nvcc: install the CUDA toolkit that torch" \
  'was built with, or take a prebuilt wheel with MMCV_LINKS=URL'

cache=${XDG_CACHE_HOME:-$HOME/.cache}/poolformer-dense/${mmcv/==/-}-$platform
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock -n 9 || { say "another set-up is compiling $mmcv: waiting for it"; flock 9; }
wheel() { compgen -G "$cache/*.whl"; }
wheel && exit

if [[ ! -d $cache/source ]]; then
  rm -rf "$cache/unpacked" && mkdir "$cache/unpacked"
  "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: --dest "$cache" "$mmcv" >&2 ||
    die "could not download $mmcv (pip's message is above)"
  tar -xzf "$cache"/*.tar.gz -C "$cache/unpacked" --strip-components 1
  mv "$cache/unpacked" "$cache/source"
fi

show_progress() {  # turn ninja's '[n/N]' lines into one updated line on a terminal, or one line every 30 s
  local line text last=0
  while IFS= read -r line; do
    [[ $line =~ ^[[:space:]]*\[([0-9]+)/([0-9]+)\] ]] || continue
    text="${BASH_REMATCH[1]} of ${BASH_REMATCH[2]} files after $((SECONDS / 60)) min $((SECONDS % 60)) s"
    if [[ -t 2 ]]; then
      printf '\r         %s ' "$text" >&2
    elif ((SECONDS - last >= 30)) || [[ ${BASH_REMATCH[1]} == "${BASH_REMATCH[2]}" ]]; then
      say "$text"
      last=$SECONDS
    fi
  done
  [[ ! -t 2 ]] || echo >&2
}
log=$cache/build.log duration='5 to 15 minutes on 2 cores'
[[ $cuda == 0 ]] || duration="$duration for the CPU, several times that for CUDA"
say "compiling its C++ operators once for this machine: $duration (log: $log)"
export MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} CFLAGS='-g0 -O2' CXXFLAGS='-g0 -O2'  # -g0 halves the time
# ninja must be on PATH: without it torch compiles too, but starts from scratch after an interruption
PATH=$(dirname "$python"):$PATH "$python" -m pip wheel -v --no-deps --no-build-isolation --use-pep517 \
  --wheel-dir "$cache/built" "$cache/source" 2>&1 | tee "$log" | show_progress || {
    grep -m 5 -E ': (fatal )?error: |[Kk]illed' "$log" >&2 || tail -n 5 "$log" >&2
    die "$mmcv did not compile; log: $log; if the compiler was killed because memory ran out, try MAX_JOBS=1"
  }
mv "$cache"/built/*.whl "$cache/"
rm -rf "$cache/source" "$cache/built"
wheel
