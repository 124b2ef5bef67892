#!/usr/bin/env bash
# The quickstart's data set keeps its promises: size, balance, short true-looking answers, disjoint questions.
# shellcheck disable=SC2016  # $-names are those of jq
set -euo pipefail
cd "$(dirname "$0")/../../deploy/quickstart"
command -v jq >/dev/null || { echo "jq is not installed: skipped"; exit 77; }
check() {  # NAME JQ-CONDITION FILE
  jq -es "$2" "$3" >/dev/null || { echo "$3: $1"; exit 1; }
}
check "fewer than 128 rows, or an odd number" 'length >= 128 and length % 2 == 0' train.jsonl
check "a row is not a question, an answer and a label" 'all(.[];
  (keys == ["completion", "label", "prompt"]) and (.prompt | length == 1) and (.completion | length == 1)
  and .prompt[0].role == "user" and .completion[0].role == "assistant" and (.["label"] | type == "boolean")
  and (.prompt[0].content | test("^What is .*\\?$")))' train.jsonl
check "labels do not alternate" '[.[] | .["label"]] | . == [range(length) | . % 2 == 0]' train.jsonl
check "a question has not exactly one answer of each kind" '
  group_by(.prompt[0].content) | all(.[]; map(.["label"]) | sort == [false, true])' train.jsonl
check "neighbours ask the same question" '
  [.[] | .prompt[0].content] | . as $q | all(range(1; length); $q[.] != $q[. - 1])' train.jsonl
check "a desirable answer is not one sentence of at most 20 words" 'all(.[] | select(.["label"]) | .completion[0].content;
  test("^[A-Z][^.?!]*\\.$") and (split(" ") | length <= 20))' train.jsonl
check "an undesirable answer is not longer than 25 words" 'all(.[] | select(.["label"] | not) | .completion[0].content;
  split(" ") | length > 25)' train.jsonl
check "fewer than 24 held-out questions, or one twice" '
  length >= 24 and ([.[] | .messages[0].content] | unique | length) == length' heldout.jsonl
check "a held-out question has no note on what is true" 'all(.[]; .accept | length > 10)' heldout.jsonl
jq -r '.prompt[0].content' train.jsonl | sort -u >"${TMPDIR:-/tmp}/hone-train-questions.$$"
shared=$(jq -r '.messages[0].content' heldout.jsonl | sort -u | comm -12 - "${TMPDIR:-/tmp}/hone-train-questions.$$")
rm -f "${TMPDIR:-/tmp}/hone-train-questions.$$"
[ -z "$shared" ] || { echo "held out and trained on: $shared"; exit 1; }
echo "$(wc -l <train.jsonl) rows, $(wc -l <heldout.jsonl) held-out questions"
