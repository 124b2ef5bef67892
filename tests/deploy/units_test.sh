#!/usr/bin/env bash
# The unit file and the scrape configuration are what systemd and Prometheus understand.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v promtool >/dev/null || { echo "promtool is not installed: skipped"; exit 77; }
command -v systemd-analyze >/dev/null || { echo "systemd-analyze is not installed: skipped"; exit 77; }
promtool check config deploy/prometheus/prometheus.yml

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/home/.local/bin" "$scratch/run"
printf '#!/bin/sh\n' >"$scratch/home/.local/bin/honed"
chmod +x "$scratch/home/.local/bin/honed"
# An unknown key only warns unless recursive errors are asked for; %h is made a folder where the program exists.
verify() {
  sed "s#%h#$scratch/home#g" "$1" >"$scratch/honed.service"
  XDG_RUNTIME_DIR=$scratch/run systemd-analyze --user --man=no --recursive-errors=yes verify "$scratch/honed.service"
}
verify deploy/systemd/honed.service
sed 's/^RestartSec=/RestartSecs=/' deploy/systemd/honed.service >"$scratch/wrong"
if verify "$scratch/wrong" 2>/dev/null; then
  echo "the check passes a unit file with an unknown key"
  exit 1
fi
