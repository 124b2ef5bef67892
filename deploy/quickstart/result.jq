# Puts the quickstart's measurements into one object. Run with -n and
#   --slurpfile heldout, base, tuned, steps; --argjson run {model, job, build_id, ...}
# base and tuned hold one {text, finish_reason} for each held-out question. An answer counts as short when the model ended
# it itself within 25 words. Step 1's record was taken before any update: it is the base model's.
def words: [splits("\\s+") | select(. != "")] | length;
def short: .finish_reason == "stop" and (.text | words) >= 1 and (.text | words) <= 25;
def rate: (map(select(short)) | length) / length;
def measures: {loss, kl, rewards_chosen, rewards_rejected, rewards_margins} | with_entries(select(.value != null));

if ($heldout | length) == 0 or ($heldout | length) != ($base | length) or ($heldout | length) != ($tuned | length) then
  error("\($heldout | length) questions, \($base | length) answers before and \($tuned | length) after")
elif ($steps | length) == 0 then error("no step records")
else
  $run + {
    questions: ($heldout | length),
    before: ({rate: ($base | rate)} + ($steps[0] | measures)),
    after: ({rate: ($tuned | rate), distinct: ($tuned | map(.text) | unique | length)} + ($steps[-1] | measures)),
    steps: ($steps | length),
    answers: [range($heldout | length) as $i | {
      question: $heldout[$i].messages[-1].content,
      accept: $heldout[$i].accept,
      before: $base[$i].text, before_words: ($base[$i].text | words), before_short: ($base[$i] | short),
      after: $tuned[$i].text, after_words: ($tuned[$i].text | words), after_short: ($tuned[$i] | short)}]}
end
