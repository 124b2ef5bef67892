#!/bin/bash
# One whole pass over a GPU: op parity in fp32 and bf16, a memory check, benchmarks with their share of ceilings measured in
# the same run. Prints a short table last; the full logs stay in OUT_DIR.
#   tests/gpu_pass.sh [BIN_DIR [OUT_DIR]]      default: build/cuda/bin build/gpu_pass (HONE_COMMIT where there is no git)
# Needs kernels_cuda_test and kernels_cuda_bench in BIN_DIR (preset "cuda"). HONE_MEMCHECK=off skips compute-sanitizer.
set -u
bin=${1:-build/cuda/bin}
out=${2:-build/gpu_pass}
mkdir -p "$out"

# libcublasLt may lie outside the loader's path.
if ! ldconfig -p | grep -q 'libcublasLt\.so\.13'; then
  for dir in /usr/local/cuda/lib64 /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib; do
    if [ -e "$dir/libcublasLt.so.13" ]; then export LD_LIBRARY_PATH=$dir:${LD_LIBRARY_PATH:-}; break; fi
  done
fi

failed=0
{
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader
  echo "commit ${HONE_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}"
  date -u +%FT%TZ
} >"$out/machine.txt" 2>&1

"$bin/kernels_cuda_test" >"$out/parity.txt" 2>&1
parity=$?
[ $parity = 0 ] || failed=1

memcheck="not run"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
if [ "${HONE_MEMCHECK:-on}" = on ] && [ -n "$sanitizer" ] && [ $parity != 77 ]; then
  timeout 400 "$sanitizer" --tool memcheck --error-exitcode 9 "$bin/kernels_cuda_test" >"$out/memcheck.txt" 2>&1 || failed=1
  memcheck=$(grep -h 'ERROR SUMMARY' "$out/memcheck.txt" || echo "did not finish")
fi

if [ $parity != 77 ]; then
  "$bin/kernels_cuda_bench" >"$out/bench.txt" 2>&1 || failed=1
fi

# Races in shared memory, over the cases whose kernels use it. Only ours count: the tool reports hazards inside cuBLASLt's own
# Hopper kernels (nvjet_*).
races="not run"
if [ "${HONE_MEMCHECK:-on}" = on ] && [ -n "$sanitizer" ] && [ $parity != 77 ]; then
  : >"$out/racecheck.txt"
  for part in rms_norm log_prob/m=9 sum_squares docs_40_66 'folded linear'; do
    timeout 100 "$sanitizer" --tool racecheck "$bin/kernels_cuda_test" "$part" >>"$out/racecheck.txt" 2>&1 || failed=1
  done
  ours=$(grep -c 'Race reported.*hone' "$out/racecheck.txt")
  races="$ours hazards in our kernels, $(grep -c 'Race reported' "$out/racecheck.txt") in all"
  [ "$ours" = 0 ] || failed=1
fi

cat "$out/machine.txt"
grep -hE '^==|^FAILED|checks,|^skipped|^PASSED' "$out/parity.txt" | head -60
echo "memcheck: $memcheck"
echo "racecheck: $races"
[ -e "$out/bench.txt" ] && cat "$out/bench.txt"
[ $failed = 0 ] && echo "gpu_pass: passed" || echo "gpu_pass: FAILED"
exit $failed
