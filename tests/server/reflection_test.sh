#!/bin/bash
# reflection_test.sh HONED WORKER [real|hostile]: starts honed with that worker and lets reflection_client.py submit a job and
# watch it to the end: one for the fake worker or, with "real", KTO on a small random model. With "hostile",
# hostile_client.py tries bad input on the real worker.
set -euo pipefail
/usr/bin/python3 -c 'import grpc, google.protobuf' 2>/dev/null || { echo "skipped: python3-grpcio is not installed"; exit 77; }
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
mkdir "$folder/model"
echo '{"text": "a"}' > "$folder/data.jsonl"
cat > "$folder/spec.json" <<SPEC
{"name": "steps=6 crash=3 sleep=20", "model": {"source": "$folder/model"}, "objective": {"kto": {}}, "data": {"train": "x"},
 "batch": {"examples": 8}, "optimizer": {"learningRate": 1e-4}}
SPEC
if [ "${3:-}" = real ]; then
  cat > "$folder/model/config.json" <<CONFIG
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "vocab_size": 256,
 "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu",
 "tie_word_embeddings": true}
CONFIG
  for i in $(seq 16); do
    echo "{\"prompt\": \"What is $i? \", \"completion\": \"A number.\", \"label\": true}"
    echo "{\"prompt\": \"What is $i? \", \"completion\": \"Well, that depends\", \"label\": false}"
  done > "$folder/data.jsonl"
  cat > "$folder/spec.json" <<SPEC
{"model": {"source": "random:$folder/model/config.json"}, "objective": {"kto": {}}, "data": {"train": "x", "evalFraction": 0.25},
 "batch": {"examples": 8}, "optimizer": {"learningRate": 1e-3}, "run": {"maxSteps": 12, "saveSteps": 4}}
SPEC
fi
"$1" --state-dir "$folder/state" --socket "$folder/s" --metrics off --worker "$2" 2> "$folder/log" &
daemon=$!
trap 'kill $daemon 2>/dev/null; wait $daemon 2>/dev/null; rm -rf "$folder"' EXIT
for _ in $(seq 100); do [ -S "$folder/s" ] && break; sleep 0.1; done
if [ "${3:-}" = hostile ]; then
  files=()
  [ -d "${HONE_TEST_DATA:-}/hostile" ] && files=(--hostile "$HONE_TEST_DATA/hostile")
  client=("$here/hostile_client.py" --socket "$folder/s" "${files[@]}")
else
  client=("$here/reflection_client.py" --socket "$folder/s" --spec "$folder/spec.json" --upload "$folder/data.jsonl" --timeout 60)
fi
PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 "${client[@]}" || { cat "$folder/log"; exit 1; }
kill -0 $daemon
