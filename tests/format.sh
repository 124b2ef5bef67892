#!/usr/bin/env bash
# Checks (or with --fix mends) the format of all C++ and CUDA sources with the pinned clang-format, Debian 12's 14.
#
#   tests/format.sh [--fix]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/deploy/common.sh"
cd "$here"
command -v clang-format-14 >/dev/null || die "clang-format-14 is missing: run deploy/dependencies.sh --tests"
action=(--dry-run -Werror)
case ${1:-} in
  '') ;;
  --fix) action=(-i) ;;
  *) die "unknown argument '$1'; usage: tests/format.sh [--fix]" ;;
esac
mapfile -t sources < <(find proto server engine kernels client deploy tests -type f \
  \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) | sort)
[ ${#sources[@]} -gt 0 ] || die "found no sources under $here"
if ! printf '%s\0' "${sources[@]}" | xargs -0 -n 40 -P "$(nproc)" clang-format-14 --style=file "${action[@]}" 2>&1; then
  die "the files named above are not formatted: tests/format.sh --fix"
fi
say "${#sources[@]} sources are formatted"
