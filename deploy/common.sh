# shellcheck shell=bash
# Small helpers that the scripts in deploy/ and tests/ share. To be sourced, not run.

say() { printf '== %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Runs a command as root: directly, or through sudo.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null 2>&1; then
    sudo "$@"
  else
    die "'$1' needs root: run this script as root, or install sudo"
  fi
}

# need_disk FOLDER MIB WHAT: stops when the file system of FOLDER (or its nearest existing parent) is too full.
need_disk() {
  local folder=$1 free
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  free=$(df -Pm "$folder" | awk 'NR == 2 {print $4}')
  [ "$free" -ge "$2" ] || die "$3 needs $2 MiB free on the file system of $folder, which has $free MiB: free some space"
}

hone_cache() { printf '%s/hone' "${XDG_CACHE_HOME:-${HOME:-/root}/.cache}"; }

# Prints the nvcc to use, or nothing: PATH, then the usual places, then what deploy/cuda.sh fetched.
find_nvcc() {
  local candidate
  for candidate in "$(command -v nvcc 2>/dev/null)" "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" \
      "$(hone_cache)/cuda/nvidia/cu13/bin/nvcc"; do
    if [ -n "$candidate" ] && [ -x "$candidate" ]; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}
