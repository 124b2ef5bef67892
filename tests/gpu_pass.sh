#!/bin/bash
# One whole pass over a GPU: op parity in fp32 and bf16, whole models against the CPU, memory and race checks, benchmarks with
# their share of ceilings measured in the same run. Prints a short table last; the full logs stay in OUT_DIR.
#   tests/gpu_pass.sh [BIN_DIR [OUT_DIR [PART...]]]      default: build/cuda/bin build/gpu_pass, and all parts
# Parts: parity model memcheck racecheck bench steps. HONE_COMMIT where there is no git, HONE_GOLDEN and HONE_SHAPES
# where the folders are not those of this tree, HONE_CHECK_SECONDS: most a sanitizer may take (400 each).
# Needs what preset "cuda" builds in BIN_DIR; a part whose program is missing is skipped and said so.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
bin=${1:-build/cuda/bin}
out=${2:-build/gpu_pass}
shift $(($# < 2 ? $# : 2))
parts=${*:-parity model memcheck racecheck bench steps}
golden=${HONE_GOLDEN:-$here/tests/golden}
shapes=${HONE_SHAPES:-$here/tests/bench/shapes}
seconds=${HONE_CHECK_SECONDS:-400}
mkdir -p "$out"

# libcublasLt may lie outside the loader's path.
if ! ldconfig -p | grep -q 'libcublasLt\.so\.13'; then
  for dir in /usr/local/cuda/lib64 /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib; do
    if [ -e "$dir/libcublasLt.so.13" ]; then export LD_LIBRARY_PATH=$dir:${LD_LIBRARY_PATH:-}; break; fi
  done
fi
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)

failed=0
summary=()
say() { summary+=("$*"); }
wants() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
has() { [ -x "$bin/$1" ] || { say "$1: not built, skipped"; return 1; }; }
# run NAME PROGRAM...: 0 passed, 77 skipped, anything else failed
run() {
  local name=$1 result
  shift
  "$@" >"$out/$name.txt" 2>&1
  result=$?
  case $result in
    0) say "$name: passed" ;;
    77) say "$name: skipped: $(grep -m 1 '^skipped' "$out/$name.txt")" ;;
    *) say "$name: FAILED ($result)"; failed=1 ;;
  esac
  return $result
}

{
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader
  echo "commit ${HONE_COMMIT:-$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)}"
  date -u +%FT%TZ
} >"$out/machine.txt" 2>&1

if wants parity && has kernels_cuda_test; then
  run parity "$bin/kernels_cuda_test"
  say "$(grep -hE '^==|^FAILED|checks,|^skipped' "$out/parity.txt" | head -40)"
  for tiles in small large; do
    run "${tiles}_tiles" "$bin/kernels_cuda_test" --$tiles-tiles --cases attention docs_ prompt_
    say "$(grep -hE '^FAILED|checks,' "$out/${tiles}_tiles.txt" | head -40)"
  done
fi
if wants model && has cuda_model_test; then
  run model "$bin/cuda_model_test" --golden "$golden"
  say "$(grep -hE '^FAILED|checks,' "$out/model.txt" | head -40)"
fi

if wants memcheck && has kernels_cuda_test; then
  if [ -z "$sanitizer" ]; then say "memcheck: no compute-sanitizer"; else
    timeout "$seconds" "$sanitizer" --tool memcheck --error-exitcode 9 "$bin/kernels_cuda_test" --cases >"$out/memcheck.txt" 2>&1
    result=$?
    [ $result = 0 ] || [ $result = 77 ] || failed=1
    say "memcheck ($result): $(grep -h 'ERROR SUMMARY' "$out/memcheck.txt" || echo "did not finish in $seconds s")"
  fi
fi

# Races in shared memory, over the cases whose kernels use it. Only ours count: the tool reports hazards inside cuBLASLt's own
# Hopper kernels (nvjet_*).
if wants racecheck && has kernels_cuda_test; then
  if [ -z "$sanitizer" ]; then say "racecheck: no compute-sanitizer"; else
    timeout "$seconds" "$sanitizer" --tool racecheck "$bin/kernels_cuda_test" --cases rms_norm log_prob/m=9 sum_squares adamw8bit \
      encode_nf4 augment weight_matmul docs_40_66 >"$out/racecheck.txt" 2>&1
    result=$?
    [ $result = 0 ] || [ $result = 77 ] || { failed=1; say "racecheck ended with $result"; }
    ours=$(grep -c 'Race reported.*hone' "$out/racecheck.txt")
    say "racecheck: $ours hazards in our kernels, $(grep -c 'Race reported' "$out/racecheck.txt") in all"
    [ "$ours" = 0 ] || failed=1
  fi
fi

if wants bench && has kernels_cuda_bench; then
  "$bin/kernels_cuda_bench" >"$out/bench.txt" 2>&1 || failed=1
  say "$(cat "$out/bench.txt")"
fi
if wants steps && has cuda_step_bench; then
  step() {
    say "cuda_step_bench $*"
    "$bin/cuda_step_bench" "$@" >"$out/step.txt" 2>&1 || failed=1
    cat "$out/step.txt" >>"$out/steps.txt"
    say "$(grep -E '^(STEP|driver|plan:|cuda_step_bench|ceilings|first step)' "$out/step.txt")"
  }
  step --shape "$shapes/llama-3.1-8b" --batch 2,2048 --budget-mib 24000
  step --shape "$shapes/llama-3.1-8b" --batch 4,2048 --policy smallest
  step --shape "$shapes/llama-3.1-8b" --objective kto --batch 8,512,ln=1 --budget-mib 24000
  step --shape "$shapes/qwen2.5-0.5b" --batch 16,1024
fi

cat "$out/machine.txt"
printf '%s\n' "${summary[@]}"
[ $failed = 0 ] && echo "gpu_pass: passed" || echo "gpu_pass: FAILED"
exit $failed
