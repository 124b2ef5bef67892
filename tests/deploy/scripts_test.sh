#!/usr/bin/env bash
# Every shell script parses and passes shellcheck, and can be run.
set -euo pipefail
cd "$(dirname "$0")/../.."
mapfile -t scripts < <(find deploy tests .ci -name '*.sh'; echo .ci/run)
[ "${#scripts[@]}" -ge 10 ] || { echo "found only ${#scripts[@]} scripts"; exit 1; }
for script in "${scripts[@]}"; do
  bash -n "$script"
  [ "$(basename "$script")" = common.sh ] || [ -x "$script" ] || { echo "$script is not executable"; exit 1; }
done
command -v shellcheck >/dev/null || { echo "shellcheck is not installed: skipped"; exit 77; }
shellcheck -x -S warning "${scripts[@]}"
echo "${#scripts[@]} scripts"
