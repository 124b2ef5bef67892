#!/usr/bin/env bash
# A real daemon runs a KTO job with evaluations on a tiny random model (CPU), a real Prometheus scrapes it, and every
# expression of the dashboard, every rule and every metric's name is asked for: a parse error or an empty answer fails.
# On a machine without a driver a stand-in (fake_nvml.cc) plays a card, and a second daemon whose worker only plays training on
# it (fake_worker, of a build with tests) gives what only a worker on a card can tell: so no expression is exempt. Last, the
# stand-in falls silent and the alert about the driver must notice. About 30 s; not in ctest.
#
#   tests/deploy/dashboard_live.sh BUILD/bin
set -euo pipefail
programs=$(cd "${1:?usage: tests/deploy/dashboard_live.sh BUILD/bin}" && pwd)
cd "$(dirname "$0")/../.."
for tool in prometheus promtool jq curl pkill; do
  command -v $tool >/dev/null || { echo "$tool is not installed: skipped"; exit 77; }
done
scratch=$(mktemp -d)
honed='' player='' prometheus=''
finish() {
  for process in $prometheus $honed $player; do kill "$process" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$scratch"
}
trap finish EXIT
fail() { echo "$*"; tail -n 5 "$scratch"/*.log; exit 1; }
until_true() {  # SECONDS COMMAND...
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || fail "waited in vain for: $*"; sleep 0.2; done
}

# ---- the daemon
libraries=
if ! ldconfig -p | grep -q libnvidia-ml.so.1; then
  mkdir "$scratch/libraries"
  g++ -std=c++20 -shared -fPIC -o "$scratch/libraries/libnvidia-ml.so.1" "$PWD/tests/deploy/fake_nvml.cc"
  libraries=$scratch/libraries
  echo "no NVIDIA driver here: a stand-in plays the card"
fi
daemon() {  # NAME ARGUMENTS...: in the folder where the stand-in looks for driver-gone
  cd "$scratch"
  LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$programs/honed" --state-dir "$scratch/state-$1" \
    --socket "$scratch/$1" --metrics 127.0.0.1:0 "${@:2}" >"$scratch/$1.log" 2>&1
}
daemon s & honed=$!
hone() { "$programs/hone" --socket "$scratch/s" "$@"; }
hone_player() { "$programs/hone" --socket "$scratch/player" "$@"; }
until_true 20 hone status
metrics_address() { "$1" status -o json | jq -re '.metrics_address // .metricsAddress'; }
address=$(metrics_address hone) || fail "the daemon names no metrics address"
targets=$address
if [ -x "$programs/fake_worker" ]; then
  daemon player --worker "$programs/fake_worker" & player=$!
  until_true 20 hone_player status
  player_address=$(metrics_address hone_player) || fail "the second daemon names no metrics address"
  targets="$address\", \"$player_address"
else
  echo "$programs/fake_worker is not built: what only a worker on a card tells is not asked"
fi

# ---- Prometheus, with the rules evaluated every second
port=$((20000 + RANDOM % 10000))
sed -E "s/_interval: 5s/_interval: 1s\n  evaluation_interval: 1s/; s/_timeout: 4s/_timeout: 1s/; s/127.0.0.1:9464/$targets/" \
  deploy/prometheus/prometheus.yml >"$scratch/prometheus.yml"
cp deploy/prometheus/rules.yml "$scratch"
prometheus --config.file="$scratch/prometheus.yml" --storage.tsdb.path="$scratch/tsdb" --log.level=warn \
  --web.listen-address="127.0.0.1:$port" >"$scratch/prometheus.log" 2>&1 &
prometheus=$!
until_true 20 curl -fsS "http://127.0.0.1:$port/-/ready"

# ---- the job
mkdir "$scratch/random"
cat >"$scratch/random/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
 "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 256,
 "max_position_embeddings": 128, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu",
 "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
JSON
for i in $(seq 48); do
  printf '{"prompt": "What is %d?", "completion": "It is %d.", "label": %s}\n' "$i" "$i" "$([ $((i % 3)) -ne 0 ] && echo true || echo false)"
done >"$scratch/rows.jsonl"
cat >"$scratch/job.yaml" <<YAML
name: dashboard
model: {source: "random:$scratch/random/config.json"}
objective: {kto: {}}
data: {train: $scratch/rows.jsonl, max_length: 64, eval_fraction: 0.25}
batch: {examples: 8}
optimizer: {learning_rate: 1e-3}
run: {max_steps: 100000, save_steps: 100, eval_steps: 100, device: cpu}
YAML
job=$(hone -q -o name submit "$scratch/job.yaml") || fail "the job was refused"
job=${job#jobs/}
if [ -n "$player" ]; then
  sed "s/^name: .*/name: card=1000000000 pinned=1000000 sleep=50 steps=1000000/; s/, device: cpu//" "$scratch/job.yaml" >"$scratch/played.yaml"
  hone_player -q submit "$scratch/played.yaml" >/dev/null || fail "the played job was refused"
fi
metrics() { curl -fsS "http://$address/metrics"; }
has() { metrics | grep -q "$1"; }
until_true 60 has '^hone_job_loss{.*split="eval"'
# Its worker is killed once, so that the counters of restarts are seen above zero.
pkill -KILL -P "$honed" || fail "no worker runs"
until_true 60 has '^hone_worker_restarts_total 1'
for _ in 1 2 3 4 5 6 7 8; do hone status >/dev/null; sleep 0.8; done  # some scrapes for the rates, some calls for theirs

# ---- what is exported
metrics >"$scratch/metrics"
promtool check metrics <"$scratch/metrics" || fail "promtool check metrics complains"
[ -z "$player" ] || curl -fsS "http://$player_address/metrics" | promtool check metrics || fail "promtool check metrics complains"
grep -q '^hone_gpu_memory_total_bytes' "$scratch/metrics" || fail "no card among the metrics"
# ---- every expression
bad=0 answered=0 exempt=0
ask() { curl -sS --get "http://127.0.0.1:$port/api/v1/query" --data-urlencode "query=$1" | jq -r 'if .status == "success" then .data.result | length else .error end'; }
while IFS=$'\t' read -r title expression; do
  # shellcheck disable=SC2016  # Grafana's variables, not the shell's
  expression=$(sed -E 's/\$__(rate_)?interval/5s/g; s/\$\{?[a-z_]+\}?/.+/g' <<<"$expression")
  count=$(ask "$expression")
  if [[ $count =~ ^[1-9][0-9]*$ ]]; then
    answered=$((answered + 1))
  elif [ "$count" = 0 ] && [ -z "$player" ] && [[ $expression =~ hone_job_(device_memory|pinned_memory|energy) ]]; then
    exempt=$((exempt + 1))
    echo "only on a card: $title"
  else
    bad=$((bad + 1))
    echo "EMPTY OR WRONG ($count): $title: $expression"
  fi
done < <(jq -r '.panels[] | recurse(.panels[]?) | select(.targets) | .title as $t | .targets[] | [$t, .expr] | @tsv' deploy/grafana/hone.json)

# ---- every family of the daemon, by its TYPE line, is on the dashboard or listed as unused
while read -r family; do
  grep -qE "(^|[^a-z_])$family(_bucket|_sum|_count)?([^a-z_]|\$)" deploy/grafana/hone.json tests/deploy/dashboard_unused.txt ||
    { bad=$((bad + 1)); echo "exported, but nowhere shown: $family"; }
done < <(awk '/^# TYPE hone_/ {print $3}' "$scratch/metrics")

# ---- every rule was evaluated without an error, and nothing healthy rings
curl -fsS "http://127.0.0.1:$port/api/v1/rules" >"$scratch/rules.json"
jq -r '.data.groups[].rules[] | select(.health != "ok") | "rule \(.name): \(.health) \(.lastError // "")"' "$scratch/rules.json" >"$scratch/sick"
jq -r '.data.groups[].rules[] | select(.type == "alerting" and .state == "firing") | "fires on a healthy run: \(.name)"' "$scratch/rules.json" >>"$scratch/sick"
if [ -s "$scratch/sick" ]; then cat "$scratch/sick"; bad=$((bad + 1)); fi
hone -q cancel "$job" >/dev/null || true
if [ -n "$player" ]; then hone_player -q cancel "$(hone_player ls -o name)" >/dev/null || true; fi

# ---- the driver falls silent: the alert is on its way (it rings after two minutes)
if [ -n "$libraries" ]; then
  : >"$scratch/driver-gone"
  noticed() { curl -fsS "http://127.0.0.1:$port/api/v1/alerts" | jq -e '.data.alerts[] | select(.labels.alertname == "HoneGpuDriverGone")'; }
  until_true 20 noticed
fi
echo "$answered expressions answered, $exempt that only a worker on a card answers, $bad bad; $(jq '[.data.groups[].rules[]] | length' "$scratch/rules.json") rules evaluated in $SECONDS s"
[ "$bad" = 0 ]
