#!/usr/bin/env bash
# Runs the pinned clang-tidy (Debian 12's 14) with .clang-tidy over all C++ sources; CUDA sources are left out.
# Takes minutes, so tests/run.sh does not call it. With FILES, only those.
#
#   tests/lint.sh [FILES...]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/deploy/common.sh"
cd "$here"
command -v clang-tidy-14 >/dev/null || die "clang-tidy-14 is missing: run deploy/dependencies.sh --tests"

build=${HONE_LINT_BUILD:-$here/build/lint}
mkdir -p "$(dirname "$build")"
cmake -S "$here" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
  -DHONE_TESTS=ON >"$build.configure.log" 2>&1 || { tail -n 30 "$build.configure.log"; die "CMake could not configure"; }
# Only the generated headers are needed, not the programs.
cmake --build "$build" --parallel "$(nproc)" --target hone_grpc >"$build.build.log" 2>&1 ||
  { tail -n 30 "$build.build.log"; die "the generated sources do not build"; }

sources=("$@")
if [ ${#sources[@]} -eq 0 ]; then
  mapfile -t sources < <(jq -r '.[].file' "$build/compile_commands.json" | grep -v "^$build/" | sort -u)
fi
say "clang-tidy over ${#sources[@]} sources"
printf '%s\0' "${sources[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy-14 --quiet --extra-arg=-Wno-unknown-warning-option -p "$build" 2>/dev/null ||
  die "clang-tidy found the above"
say "clang-tidy found nothing"
