#!/bin/bash
# reflection_test.sh HONED WORKER [hostile]: starts honed with that worker; lets reflection_client.py submit and watch a job of
# the fake worker or, with "hostile", hostile_client.py try bad input on the real one.
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
