#!/usr/bin/env bash
# Installs what building Hone needs on Debian 12, and with --tests what its tests need too.
# Only Debian's own packages; does nothing (and needs no network) when all of them are there.
#
#   deploy/dependencies.sh [--tests]
set -euo pipefail
. "$(dirname "$0")/common.sh"

build=(
  ca-certificates                                          # for the package index over TLS
  g++ cmake ninja-build ccache pkg-config git              # tools
  protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libgrpc++-dev libabsl-dev
  nlohmann-json3-dev libyaml-cpp-dev libcli11-dev          # JSON, YAML, command lines
  libssl-dev libpcre2-dev libutf8proc-dev zlib1g-dev       # hashes, tokenizer patterns, Unicode
  libopenblas-pthread-dev                                  # matrix products on the CPU
  libsqlite3-dev prometheus-cpp-dev libspdlog-dev libsystemd-dev  # the daemon
  libcurl4-openssl-dev                                     # prometheus-cpp's CMake package asks for it
  python3-pip unzip jq                                     # quickstart: fetch and unpack a wheel, read JSON
)
tests=(
  libgtest-dev libgmock-dev libbenchmark-dev
  prometheus                                               # promtool checks the metrics and the scrape config
  python3-grpcio python3-protobuf grpc-proto               # a client that nobody here wrote, by reflection
  golang-go golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev
  protoc-gen-go-1-5 protoc-gen-go-grpc                     # one in Go, with stubs of its own
  systemd                                                  # systemd-analyze checks the unit file
  clang libclang-rt-14-dev                                 # fuzz targets
  clang-format-14 clang-tidy-14                            # the pinned style and lint tools
  shellcheck
  dpkg-dev binutils perl man-db                            # deploy/package.sh makes a .deb, its pages are read
)

packages=("${build[@]}")
for argument in "$@"; do
  case $argument in
    --tests) packages+=("${tests[@]}") ;;
    *) die "unknown argument '$argument'; usage: deploy/dependencies.sh [--tests]" ;;
  esac
done

. /etc/os-release
if [ "${ID:-}" != debian ] || [ "${VERSION_ID:-}" != 12 ]; then
  warn "this is ${PRETTY_NAME:-an unknown system}; Hone is built and tested on Debian 12, so package names or versions may differ"
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  say "all ${#packages[@]} Debian packages are installed"
  exit 0
fi

need_disk /usr 1800 "installing ${#missing[@]} Debian packages with their dependencies"
say "installing ${#missing[@]} Debian packages: ${missing[*]}"
as_root apt-get -o Acquire::Retries=3 -qq update ||
  warn "apt-get update failed; trying with the package lists that are there"
as_root env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 -qq -y \
  install --no-install-recommends "${missing[@]}" </dev/null >/dev/null ||
  die "apt-get could not install: ${missing[*]}"
say "installed"
