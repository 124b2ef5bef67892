#!/bin/bash
# check_ptxas.sh FOLDER ARCHITECTURE MAY_SPILL [SOURCE...]: of every kernel compiled for sm_ARCHITECTURE under FOLDER (the
# .ptxas files of keep_ptxas.sh): no spills, and at most 99 KiB of static shared memory, what a block of an sm_86 card may
# have. Kernels whose mangled name matches MAY_SPILL are excused. Each SOURCE must be among the files. Prints the largest
# figures. (Stack that is no spill is the sine's of large arguments.)
set -euo pipefail
folder=$1
architecture=$2
may_spill=$3
shift 3
for source in "$@"; do
  [ -s "$folder/$source.o.ptxas" ] || { echo "FAILED: $folder/$source.o.ptxas is missing or empty"; exit 1; }
done
# shellcheck disable=SC2016  # awk's own
find "$folder" -name '*.ptxas' -print0 | sort -z | xargs -0 awk -v sm="sm_$architecture" -v excused="$may_spill" '
  /Compiling entry function/ { kernel = $0; sub(/.*entry function ./, "", kernel); sub(/. for .*/, "", kernel)
                               wanted = index($0, sm) > 0; spills = 0; next }
  /Compiling/ { wanted = 0; next }
  !wanted { next }
  /bytes stack frame/ { spills = $5 + $9; next }
  /Used [0-9]+ registers/ {
    registers = shared = 0
    for (i = 2; i <= NF; ++i) {
      if ($i ~ /^registers/) registers = $(i - 1)
      if ($i == "bytes" && $(i + 1) ~ /^smem/) shared = $(i - 1)
    }
    ++kernels
    if (registers > most_registers) most_registers = registers
    if (shared > most_shared) most_shared = shared
    if (spills > 0 && kernel ~ excused) { ++let_off; next }
    if (spills > 0 || shared > 99 * 1024) {
      ++failed
      printf "FAILED %s: %d bytes of spills, %d of shared memory\n", kernel, spills, shared
    }
  }
  END {
    printf "%s: %d kernels, at most %d registers and %d bytes of static shared memory; %d fail, %d are excused\n", sm,
           kernels, most_registers, most_shared, failed, let_off
    exit !(kernels > 0 && failed == 0)
  }'
