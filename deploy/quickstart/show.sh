#!/usr/bin/env bash
# Prints quickstart-result.json for people: all answers side by side, then the table.
#
#   deploy/quickstart/show.sh [RESULT.json]
set -euo pipefail
result=${1:-quickstart-result.json}
width=$(tput cols 2>/dev/null || echo 100)
[ "$width" -le 140 ] || width=140
[ "$width" -ge 70 ] || width=70
column=$(((width - 3) / 2))

# side LEFT RIGHT: two wrapped columns.
side() {
  local left right i lines
  mapfile -t left < <(fold -s -w "$column" <<<"$1")
  mapfile -t right < <(fold -s -w "$column" <<<"$2")
  lines=${#left[@]}
  [ "$lines" -ge "${#right[@]}" ] || lines=${#right[@]}
  for ((i = 0; i < lines; i++)); do
    printf "%-${column}s | %s\n" "${left[i]:-}" "${right[i]:-}"
  done
}

rule=$(printf '%*s' "$width" '' | tr ' ' -)
side "BASE MODEL (64 new tokens at most)" "WITH THE ADAPTER"
while IFS=$'\t' read -r question before before_words after after_words; do
  printf '%s\n%s\n' "$rule" "$question"
  side "$before [$before_words]" "$after [$after_words]"
done < <(jq -r '.answers[] | [.question, (.before | gsub("\\s+"; " ")),
    "\(.before_words) words\(if .before_short then "" else ", not short" end)", (.after | gsub("\\s+"; " ")),
    "\(.after_words) words\(if .after_short then "" else ", not short" end)"] | join("\t")' "$result")
printf '%s\n\n' "$rule"

jq -r '
  def number: if . == null then "-" elif . < 0.0005 and . > -0.0005 then "0" else (. * 1000 | round) / 1000 | tostring end;
  def percent: "\(. * 1000 | round / 10)%";
  def line($name; $a; $b): "\($name + " " * (46 - ($name | length)))\(" " * (10 - ($a | length)) + $a)\(" " * (12 - ($b | length)) + $b)";
  . as $r
  | line("short answers, of \(.questions) held-out questions"; "before"; "after"),
    line("  ended by the model within 25 words"; (.before.rate | percent); (.after.rate | percent)),
    line("training step"; "1"; (.steps | tostring)),
    (["loss", "KTO loss"], ["kl", "KL"], ["rewards_chosen", "reward of desirable answers"],
     ["rewards_rejected", "reward of undesirable answers"]
     | . as [$key, $name] | line("  " + $name; $r.before[$key] | number; $r.after[$key] | number)),
    "",
    "Step 1 is measured before the first update; the rows of the last step had not been trained on before.",
    "Trained \(.tokens // 0) tokens in \(.training_seconds | . * 10 | round / 10) s, reference pass included: \(
      .tokens_per_second | . * 10 | round / 10) tokens/s on \(.device) (\(.cpu))."' "$result"
