#!/usr/bin/env bash
# Makes nvcc and the CUDA 13.0 libraries available and prints the CMake flags that use them (stdout; the rest: stderr).
# Uses an nvcc that is already there; otherwise fetches the toolkit as PyPI wheels, pinned by hash in cuda.requirements,
# into ${XDG_CACHE_HOME:-~/.cache}/hone/cuda (1.5 GB). pip only downloads and unpacks: no Python is needed later.
#
#   deploy/cuda.sh [--fetch]      --fetch: fetch the wheels even where there is an nvcc
set -euo pipefail
deploy=$(cd "$(dirname "$0")" && pwd)
. "$deploy/common.sh"

fetch=
case ${1:-} in
  '') ;;
  --fetch) fetch=1 ;;
  *) die "unknown argument '$1'; usage: deploy/cuda.sh [--fetch]" ;;
esac

print_flags() {  # NVCC
  local toolkit
  toolkit=$(dirname "$(dirname "$(readlink -f "$1")")")
  printf '%s\n' "-DHONE_CUDA=ON -DCMAKE_CUDA_COMPILER=$1 -DCUDAToolkit_ROOT=$toolkit -DCMAKE_PROJECT_INCLUDE=$deploy/cuda_fixes.cmake"
}

nvcc=$(find_nvcc)
if [ -n "$nvcc" ] && [ -z "$fetch" ]; then
  say "using $nvcc ($("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/CUDA \1/p'))" >&2
  print_flags "$nvcc"
  exit 0
fi

[ "$(uname -m)" = x86_64 ] || die "the pinned CUDA wheels are for x86-64; install CUDA 13.0 by hand and put nvcc on PATH"
folder=$(hone_cache)/cuda
toolkit=$folder/nvidia/cu13
pin=$(sha256sum "$deploy/cuda.requirements" | cut -d' ' -f1)
if [ ! -f "$folder/pin" ] || [ "$(cat "$folder/pin")" != "$pin" ]; then
  need_disk "$folder" 3500 "the CUDA toolkit"
  say "fetching the CUDA 13.0 toolkit (1.1 GB to download, 1.5 GB on disk) into $folder" >&2
  rm -rf "$folder.new"
  mkdir -p "$folder.new"
  python3 -m pip --version >/dev/null 2>&1 || die "pip is missing: run deploy/dependencies.sh first"
  python3 -m pip install --quiet --no-deps --no-compile --only-binary :all: --require-hashes --no-cache-dir \
    --disable-pip-version-check --root-user-action ignore --target "$folder.new" -r "$deploy/cuda.requirements" >&2 ||
    die "pip could not fetch the pinned wheels; install CUDA 13.0 by hand and put nvcc on PATH"
  (
    cd "$folder.new/nvidia/cu13"
    ln -sfn lib lib64
    # Wheels carry versioned libraries only, the linker looks for the bare name.
    for library in lib/*.so.*; do
      name=${library#lib/}
      ln -sfn "$name" "lib/${name%%.so.*}.so"
    done
  )
  # cuDNN and NCCL come beside the toolkit; linking them in lets one root serve all of it.
  for part in cudnn nccl; do
    (
      cd "$folder.new/nvidia/$part"
      for file in include/*; do ln -sfn "../../$part/$file" "../cu13/include/$(basename "$file")"; done
      for file in lib/*.so.*; do
        name=$(basename "$file")
        ln -sfn "../../$part/lib/$name" "../cu13/lib/$name"
        ln -sfn "$name" "../cu13/lib/${name%%.so.*}.so"
      done
    )
  done
  printf '%s\n' "$pin" >"$folder.new/pin"
  rm -rf "$folder"
  mv "$folder.new" "$folder"
fi
say "using $toolkit/bin/nvcc ($("$toolkit/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/CUDA \1/p'))" >&2
print_flags "$toolkit/bin/nvcc"
