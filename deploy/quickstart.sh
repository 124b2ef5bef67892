#!/usr/bin/env bash
# From a bare Debian 12 machine to a model that was trained here: installs packages, builds Hone, fetches
# SmolLM2-135M-Instruct, starts honed, runs a KTO job (on the card, where there is one) that teaches the model to answer in
# one short sentence, and shows the answers to questions that were not in the training data, before and after. Can be run
# again; what is there is used.
#
#   deploy/quickstart.sh [--model FILE.gguf]     --model: use this file (or a Hugging Face folder), fetch nothing
#
# Leaves: build/release (the programs), a running honed (`hone daemon stop` ends it), the job in the daemon's state folder,
# and quickstart-result.json in the clone's root.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/deploy/common.sh"

model=
while [ $# -gt 0 ]; do
  case $1 in
    --model)
      [ $# -ge 2 ] || die "--model needs a path"
      model=$(readlink -f -- "$2") || die "there is no $2"
      [ -e "$model" ] || die "there is no $2"
      shift 2
      ;;
    *) die "unknown argument '$1'; usage: deploy/quickstart.sh [--model FILE.gguf]" ;;
  esac
done
cd "$here"
begin=$(date +%s)

# ---- packages and build
deploy/dependencies.sh

build=$here/build/release
flags=(-DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DHONE_TESTS=OFF)
card=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>/dev/null | head -n 1) || card=
if [ -n "$card" ]; then
  say "found ${card%,*}: building with CUDA for it"
  cuda_flags=$(deploy/cuda.sh) || die "no CUDA toolkit for ${card%,*}"
  # shellcheck disable=SC2206  # one flag a word
  flags+=($cuda_flags -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache "-DCMAKE_CUDA_ARCHITECTURES=$(tr -dc 0-9 <<<"${card##*,}")-real")
else
  say "no NVIDIA card found: building for the CPU only"
  flags+=(-DHONE_CUDA=OFF)
fi
need_disk "$here" 2000 "the build"
mkdir -p "$here/build"
say "building in build/release with $(nproc) jobs (some minutes the first time)"
cmake -S "$here" -B "$build" -G Ninja "${flags[@]}" >"$build.log" 2>&1 || { tail -n 30 "$build.log"; die "CMake could not configure the build"; }
cmake --build "$build" --parallel "$(nproc)" >>"$build.log" 2>&1 ||
  { grep -E -A 15 '^FAILED|error:' "$build.log" | head -n 60; die "the build failed; all of its output: $build.log"; }
built=$(date +%s)
say "built in $((built - begin)) s, packages included"
export PATH=$build/bin:$PATH

# ---- model
if [ -z "$model" ]; then
  model=$(deploy/smollm2.sh) ||
    die "SmolLM2-135M-Instruct could not be fetched. With a model file of your own: deploy/quickstart.sh --model PATH"
fi
name=$(basename "$model" .gguf | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9\n' - | cut -c -62)
say "model $name: $model"

# ---- daemon
hone daemon start --if-stale || die "honed could not be started; hone doctor says more"
own_build=$(hone --version | sed -n 's/.*(\(.*\)).*/\1/p')
running_build=$(hone daemon status -o json | jq -r .build_id)
[ "$running_build" = "$own_build" ] || die "honed of build $running_build answers, this is build $own_build; hone doctor says more"
known=$(hone models get "$name" -o json 2>/dev/null | jq -r .path) || known=
if [ -n "$known" ] && [ "$known" != "$model" ]; then hone models rm "$name"; fi
if [ "$known" != "$model" ]; then hone models import "$model" --name "$name"; fi

# ---- training
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say "training: KTO on $(wc -l <deploy/quickstart/train.jsonl) answers, on $([ -n "$card" ] && echo "${card%,*}" || echo "the CPU")"
job=$(hone submit deploy/quickstart/job.yaml --watch --set "model.source=$name" \
  --set "data.train=$here/deploy/quickstart/train.jsonl") || die "the job did not succeed: hone get $job, hone logs $job"

# ---- before and after
say "asking $(wc -l <deploy/quickstart/heldout.jsonl) questions that were not in the training data, of the base and of the adapter"
jq -c '{messages, temperature: 0, max_new_tokens: 64}' deploy/quickstart/heldout.jsonl >"$scratch/requests.jsonl"
hone generate --job "$job" --base --file "$scratch/requests.jsonl" -o json >"$scratch/base.jsonl"
hone generate --job "$job" --file "$scratch/requests.jsonl" -o json >"$scratch/tuned.jsonl"
hone export "$job" --output "$scratch/export" --only steps.jsonl --quiet >/dev/null
hone get "$job" -o json >"$scratch/job.json"

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
jq -c --arg model "$name" --arg path "$model" --arg build "$own_build" --arg cpu "$cpu, $(nproc) threads" \
  --argjson seconds "$(($(date +%s) - begin))" '
  (.result_json | fromjson) as $result
  | {model: $model, model_path: $path, job: .id, build_id: $build, device: .plan.device, cpu: $cpu,
     training_seconds: $result.training_seconds, tokens_per_second: $result.tokens_per_second,
     reference_seconds: $result.reference_seconds, tokens: $result.tokens, total_seconds: $seconds}' \
  "$scratch/job.json" >"$scratch/run.json"
jq -n -f deploy/quickstart/result.jq --slurpfile heldout deploy/quickstart/heldout.jsonl \
  --slurpfile base "$scratch/base.jsonl" --slurpfile tuned "$scratch/tuned.jsonl" \
  --slurpfile steps "$scratch/export/steps.jsonl" --argjson run "$(cat "$scratch/run.json")" >quickstart-result.json

deploy/quickstart/show.sh quickstart-result.json
cat <<END

The job is $job: hone get $job. Its adapter and the merged model: hone export $job --output FOLDER
Ask the adapter:  hone generate --job $job --ask "What is a comet?"
The programs are in build/release/bin. honed keeps running: hone daemon status, hone daemon stop
All of the above as JSON: quickstart-result.json
END
