#!/usr/bin/env bash
# deploy/quickstart/result.jq computes the rates and the before/after figures that the quickstart prints.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v jq >/dev/null || { echo "jq is not installed: skipped"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

words() { printf 'w%.0s ' $(seq "$1"); }
question() { printf '{"messages":[{"role":"user","content":"What is %s?"}],"accept":"note"}\n' "$1"; }
answer() { printf '{"text":"%s","finish_reason":"%s"}\n' "$1" "$2"; }
for name in a b c d; do question $name; done >"$scratch/heldout"
# 25 words end in time, 26 do not; an answer that was cut off or is empty never counts.
{ answer "$(words 25)" stop; answer "$(words 26)" stop; answer "$(words 5)" length; answer "" stop; } >"$scratch/base"
{ answer "One." stop; answer "Two." stop; answer " Two  words. " stop; answer "Two." length; } >"$scratch/tuned"
printf '%s\n' '{"step":1,"loss":0.5,"kl":0,"rewards_chosen":0,"rewards_rejected":0}' \
  '{"step":2,"loss":0.3,"kl":1.5,"rewards_chosen":2,"rewards_rejected":-1}' >"$scratch/steps"
compute() {
  jq -n -f deploy/quickstart/result.jq --slurpfile heldout "$scratch/heldout" --slurpfile base "$scratch/base" \
    --slurpfile tuned "$scratch/tuned" --slurpfile steps "$scratch/steps" --argjson run '{"model":"m"}'
}
compute >"$scratch/result"
expect() { jq -e "$1" "$scratch/result" >/dev/null || { cat "$scratch/result"; echo "does not hold: $1"; exit 1; }; }
expect '.model == "m" and .questions == 4 and .steps == 2'
expect '.before.rate == 0.25 and .after.rate == 0.75'
expect '.after.distinct == 3'
expect '.before.loss == 0.5 and .after.loss == 0.3 and .after.kl == 1.5 and .after.rewards_rejected == -1'
expect '.answers[2].after_words == 2 and .answers[1].before_short == false and .answers[0].question == "What is a?"'
sed -i '$d' "$scratch/tuned"
if compute >/dev/null 2>&1; then echo "a missing answer goes unnoticed"; exit 1; fi
: >"$scratch/steps"
if compute >/dev/null 2>&1; then echo "missing step records go unnoticed"; exit 1; fi
