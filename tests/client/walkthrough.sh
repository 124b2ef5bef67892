#!/usr/bin/env bash
# Does what a new user does, from the README alone, on a pseudo-terminal, with the real programs, and writes down what they
# said: the text of deploy/walkthrough.md. Nothing is made up or left out but colours, the frames of a progress line before
# its last, and the home folder's name, written ~. About 2 minutes on two cores; not in ctest.
#
#   tests/client/walkthrough.sh BUILD/bin MODEL.gguf >deploy/walkthrough.md
set -euo pipefail
usage="usage: tests/client/walkthrough.sh BUILD/bin MODEL.gguf"
programs=$(cd "${1:?$usage}" && pwd)
model=$(realpath "${2:?$usage}")
source=$(cd "$(dirname "$0")/../.." && pwd)
for tool in script perl jq; do command -v $tool >/dev/null || { echo "$tool is not installed" >&2; exit 77; }; done

home=$(mktemp -d)
finish() {
  "$programs/hone" -q daemon stop >/dev/null 2>&1 || true
  rm -rf "$home"
}
trap finish EXIT
mkdir "$home/models" "$home/run" && chmod 700 "$home/run"
ln -s "$model" "$home/models/SmolLM2-135M-Instruct.Q4_1.gguf"
export HOME=$home XDG_STATE_HOME=$home/.local/state XDG_RUNTIME_DIR=$home/run XDG_CONFIG_HOME=$home/.config
export PATH=$programs:$PATH LANG=C.UTF-8 TERM=xterm
unset HONE_CONTEXT NO_COLOR
cd "$home"

# What a terminal shows in the end of what was written to it: of a line that was written over, the last; of a screen that was
# drawn again and again, the last.
shown() {
  perl -0777 -CSD -pe '
    if (/\e\[\?1049h/) { s/\e\[\?1049l.*//s; s/.*\e\[H//s; }
    s/\r+\n/\n/g; s/[^\n]*\r\e\[K//g; s/[^\n]*\r(?=[^\n])//g; s/\e\[[0-9;?]*[A-Za-z]//g; s/\^C//g; s/^Script (started|done).*\n//mg; s/\n*\z/\n/;' |
    sed "s#$home#~#g"
}

# The newest job has done as many steps.
until_step() {
  for _ in $(seq 600); do
    local have
    have=$(hone ls -o json 2>/dev/null | head -n 1 | jq -r '.last_step.step // 0') || have=0
    [ "${have:-0}" -lt "$1" ] || return 0
    sleep 0.2
  done
}

# COMMAND [SECONDS|step=N KEYS]: on a terminal of 110 columns; then, or after step N, somebody presses KEYS.
run() {
  printf '\n    $ %s\n' "$1"
  local code=0
  { if [ $# -gt 1 ]; then
      case $2 in step=*) until_step "${2#step=}" ;; *) sleep "$2" ;; esac
      printf '%b' "$3"; sleep 1
    fi; } |
    script -q -e -c "stty cols 110 rows 30 -echoctl; $1" /dev/null >"$home/typescript" 2>&1 || code=$?
  shown <"$home/typescript" | sed -E 's/[ \t]+$//; s/^(.)/    \1/'
  [ $code = 0 ] || printf '    (exit code %s)\n' $code
}
say() { printf '\n%s\n' "$*"; }

cat <<'MD'
# A first hour with Hone

What a terminal showed: made by `tests/client/walkthrough.sh BUILD/bin MODEL.gguf` on a machine without a card (two cores), with
SmolLM2-135M-Instruct and the quickstart's data. Colours are left out; of a line or screen that is drawn over, the last is shown;
`~` is the home folder.
MD
say "## Start"
run "hone submit job.yaml"
say "There is no job file yet, and no daemon. The file first:"
cp "$source/deploy/quickstart/train.jsonl" answers.jsonl
cat >job.yaml <<'YAML'
name: my-first-job
model:     {source: ~/models/SmolLM2-135M-Instruct.Q4_1.gguf}
objective: {kto: {}}
data:      {train: answers.jsonl}
batch:     {examples: 8}
optimizer: {learning_rate: 1e-4}
run:       {max_steps: 14, save_steps: 5}
export:    [peft]
YAML
run "cat job.yaml"
run "hone submit job.yaml"
run "hone daemon start --metrics off"
run "hone doctor"
say "## Look before you leap"
run "hone data validate job.yaml"
run "hone plan job.yaml"
run "hone submit job.yaml --set optimizer.learnin_rate=1e-3"
say "## Submit, watch, detach (Ctrl-C)"
run "hone submit job.yaml --watch" step=3 '\003'
job=$(hone ls -o name | head -n 1)
say "## Who does what (\`q\` leaves)"
run "hone top" 3 q
say "## Pause and resume"
run "hone pause $job"
run "hone wait $job --for paused"
run "hone ls"
run "hone resume $job"
run "hone watch $job"
say "## Again, with a change, and away with it"
run "hone submit --from $job --set optimizer.learning_rate=5e-5 --set name=slower"
other=$(hone ls -o name | head -n 1)
sleep 1
run "hone queue"
run "hone cancel $other"
run "hone wait $other"
run "hone resume $other"
say "## What came of it"
run "hone ls"
run "hone get $job"
run "hone report $job --ask \"What is a tide?\""
run "hone generate --job $job --ask \"What is a tide?\" --compare"
run "hone export $job --output out"
run "hone daemon stop"
