#!/bin/bash
# go_test.sh HONED WORKER PROTO-FOLDER BUILD-FOLDER: makes stubs with Debian's protoc plugins for Go, builds go_client against
# Debian's Go packages (no network), and lets it use a daemon over its Unix socket and over TCP with certificates.
set -euo pipefail
for program in go protoc protoc-gen-go protoc-gen-go-grpc; do
  command -v $program >/dev/null || { echo "skipped: $program is not installed"; exit 77; }
done
[ -d /usr/share/gocode/src/google.golang.org/grpc ] || { echo "skipped: golang-google-grpc-dev is not installed"; exit 77; }
here=$(cd "$(dirname "$0")" && pwd)
honed=$1 worker=$2 proto=$3 build=$4

mkdir -p "$build/src/hone" "$build/src/go_client"
export GOPATH="$build:/usr/share/gocode" GOCACHE="$build/cache" GO111MODULE=off GOFLAGS=-p=2 GOPROXY=off HOME="$build"
files=(hone/v1/{options,spec,plan,worker,jobs,models,datasets,daemon}.proto)
options=()
for file in "${files[@]}"; do options+=(--go_opt="M$file=hone/v1" --go-grpc_opt="M$file=hone/v1"); done
(cd "$proto" && protoc -I. --go_out="$build/src" --go-grpc_out="$build/src" "${options[@]}" "${files[@]}")
cp "$here"/go_client/*.go "$build/src/go_client/"
begin=$SECONDS
(cd "$build/src/go_client" && go build -o "$build/client" .)
echo "built in $((SECONDS - begin)) s by $(go version)"

folder=$(mktemp -d)
daemon=
trap '[ -n "$daemon" ] && kill $daemon 2>/dev/null; wait 2>/dev/null; rm -rf "$folder"' EXIT
"$build/client" make-certificates "$folder"
mkdir "$folder/model"
echo '{"text": "a"}' > "$folder/data.jsonl"
cat > "$folder/spec.json" <<SPEC
{"name": "steps=6 crash=3 sleep=20", "model": {"source": "$folder/model"}, "objective": {"sft": {}}, "data": {"train": "x"},
 "batch": {"examples": 2}, "optimizer": {"learningRate": 1e-4}}
SPEC
# A port that is free now; another try if somebody takes it meanwhile.
for try in 1 2 3 4 5; do
  port=$((20000 + (RANDOM + $$ + try * 977) % 12000))
  "$honed" --state-dir "$folder/state" --socket "$folder/s" --metrics off --worker "$worker" --listen "127.0.0.1:$port" \
    --tls-certificate "$folder/server.pem" --tls-key "$folder/server.key" --tls-client-ca "$folder/ca.pem" 2> "$folder/log" &
  daemon=$!
  for _ in $(seq 100); do
    grep -q ' serves on ' "$folder/log" && break 2
    kill -0 $daemon 2>/dev/null || break
    sleep 0.1
  done
  wait $daemon || true
done
"$build/client" jobs "$folder/s" "$folder/spec.json" "$folder/data.jsonl" || { cat "$folder/log"; exit 1; }
"$build/client" tls "127.0.0.1:$port" "$folder" || { cat "$folder/log"; exit 1; }
kill -0 $daemon
