#!/usr/bin/env bash
# Makes train.jsonl and heldout.jsonl from questions.tsv and heldout.tsv (README.md says how they were chosen).
# A row's desirable answer is written by hand; the undesirable one is the model's own: greedy, 64 new tokens, cut to its
# first 32 words, so that training stays short. To be run only to change the data set: both results are committed.
#
#   deploy/quickstart/make_data.sh HONED_WORKER MODEL.gguf
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
worker=$1
model=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

jq -cR 'split("\t") | {messages: [{role: "user", content: .[0]}], temperature: 0, max_new_tokens: 64}' \
  "$here/questions.tsv" >"$scratch/requests.jsonl"
"$worker" generate --model "$model" --device cpu <"$scratch/requests.jsonl" >"$scratch/answers.jsonl"
"$here/compose.sh" "$scratch/answers.jsonl"
