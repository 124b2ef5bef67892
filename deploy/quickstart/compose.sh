#!/usr/bin/env bash
# The second half of make_data.sh: ANSWERS.jsonl holds one object with the model's "text" for each line of questions.tsv.
#
# Neighbours must differ in label, so that any 8 rows in a row hold 4 of each, and in question: KTO's KL term pairs a
# prompt with its neighbour's completion, which must not be an answer to that very prompt. So row 2k is question k's
# desirable answer and row 2k + 1 the undesirable answer to the question half the list further on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
jq -cnR --slurpfile answers "$1" '
  def row($question; $answer; $good):
    {prompt: [{role: "user", content: $question}], completion: [{role: "assistant", content: $answer}], "label": $good};
  [inputs | split("\t")] as $questions | ($questions | length) as $n
  | if ($answers | length) != $n then error("\($n) questions but \($answers | length) answers") else . end
  | range($n) as $k | (($k + ($n / 2 | floor)) % $n) as $j
  | row($questions[$k][0]; $questions[$k][1]; true),
    row($questions[$j][0]; ($answers[$j].text | [splits("\\s+") | select(. != "")][:32] | join(" ")); false)
' "$here/questions.tsv" >"$here/train.jsonl"
jq -cR 'split("\t") | {messages: [{role: "user", content: .[0]}], accept: .[1]}' "$here/heldout.tsv" >"$here/heldout.jsonl"
