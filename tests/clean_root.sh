#!/usr/bin/env bash
# Runs the README's two commands in a clean clone inside a clean Debian 12 root made by debootstrap.
# Heavy (a full build and a training run, twice the packages); needs root and `apt-get install debootstrap`.
#
#   tests/clean_root.sh [--root FOLDER] [--fresh] [--only root|dependencies|quickstart|tests|package] [--model FILE]
#                       [--build FOLDER]
#
# --only package: the .deb of FOLDER (default: build/release), installed, upgraded under a running job and purged; in a root of
# its own, for --only tests leaves a systemctl there.
# The root is kept, so that a second run only repeats what is asked. Network settings (resolver, apt sources, package
# index settings, certificates) are this machine's. ../shared/data beside this clone, if there, is given to the tests.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/deploy/common.sh"

root=/var/tmp/hone-clean-root
fresh=
only=
model=
build=$here/build/release
while [ $# -gt 0 ]; do
  case $1 in
    --root) root=$2; shift ;;
    --fresh) fresh=1 ;;
    --only) only=$2; shift ;;
    --model) model=$2; shift ;;
    --build) build=$2; shift ;;
    *) die "unknown argument '$1'" ;;
  esac
  shift
done
[ "$(id -u)" -eq 0 ] || die "a chroot needs root"
command -v debootstrap >/dev/null || die "install debootstrap first"

mounted=()
unmount_all() {
  local i
  [ ! -x "$root/root/hone/build/release/bin/hone" ] || in_clone build/release/bin/hone daemon stop >/dev/null 2>&1 || true
  for ((i = ${#mounted[@]} - 1; i >= 0; i--)); do umount -l "${mounted[i]}" || true; done
}
trap unmount_all EXIT
mount_at() {
  mountpoint -q "${!#}" && return
  mkdir -p "${!#}"
  mount "$@"
  mounted+=("${!#}")
}

if [ -n "$fresh" ] && [ -d "$root" ]; then
  if mount | grep -q " $root/"; then die "something is still mounted under $root"; fi
  rm -rf --one-file-system "$root"
fi
if [ ! -x "$root/usr/bin/apt-get" ]; then
  say "debootstrap bookworm into $root"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$root" http://deb.debian.org/debian >"$root.log" 2>&1 ||
    die "debootstrap failed, see $root.log"
fi
mount_at -t proc proc "$root/proc"
mount_at --bind /dev "$root/dev"
mount_at --bind /dev/pts "$root/dev/pts"
mount_at -t tmpfs tmpfs "$root/run"

cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
mkdir -p "$root/etc/ssl/certs"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
rm -f "$root/etc/apt/sources.list"
cp /etc/apt/sources.list.d/*.sources "$root/etc/apt/sources.list.d/"
for file in /etc/apt/apt.conf.d/99* /etc/pip.conf; do
  if [ -f "$file" ]; then install -D -m 644 "$file" "$root$file"; fi
done
# Nothing that gets installed may start a service in here.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

# A bare login environment plus this machine's package-index settings; what is exported here on purpose is nothing else.
inside() {
  local settings=() name
  for name in $(env | sed -n 's/^\(PIP_[A-Z_]*\|[A-Z_]*_proxy\|[a-z_]*_proxy\|SSL_CERT_FILE\|REQUESTS_CA_BUNDLE\)=.*/\1/p'); do
    [ "$name" = PIP_FIND_LINKS ] || settings+=("$name=${!name}")
  done
  chroot "$root" /usr/bin/env -i HOME=/root USER=root SHELL=/bin/bash TERM=dumb LC_ALL=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${settings[@]}" "$@"
}

clone_clean() {  # the committed state only, as a user would get it
  say "clean clone of $(git -C "$here" rev-parse --short HEAD)"
  rm -rf "$root/root/hone"
  git clone -q --no-local "$here" "$root/root/hone"
  if [ -d "$here/../shared/data" ]; then
    mkdir -p "$root/root/shared"
    cp -a "$here/../shared/data" "$root/root/shared/"
  fi
}

in_clone() { inside bash -c 'cd /root/hone && "$@"' hone "$@"; }
wants() { [ -z "$only" ] || [ "$only" = "$1" ]; }

if [ "$only" = root ]; then exit 0; fi
if [ "$only" = package ]; then
  say "the .deb: install, upgrade under a running job, purge"
  [ -n "$model" ] || model=$("$here/deploy/smollm2.sh")
  rm -rf "$root/root/package"
  mkdir -p "$root/root/package"
  for version in 1.0 1.1; do
    "$here/deploy/package.sh" --build "$build" --output "$root/root/package" --version "$version" --only deb --fast
  done
  cp "$model" "$root/root/package/model.gguf"
  cp -r "$here/deploy/quickstart" "$here/tests/deploy/package_inside.sh" "$root/root/package/"
  inside bash /root/package/package_inside.sh
  exit 0
fi
clone_clean
if [ "$only" = dependencies ]; then
  in_clone deploy/dependencies.sh --tests
  in_clone deploy/dependencies.sh --tests
fi
if wants quickstart; then
  say "command one: deploy/quickstart.sh"
  model_arguments=()
  if [ -n "$model" ]; then
    cp "$model" "$root/root/model.gguf"
    model_arguments=(--model /root/model.gguf)
  fi
  in_clone deploy/quickstart.sh "${model_arguments[@]}" </dev/null
  in_clone cat quickstart-result.json
  in_clone build/release/bin/hone daemon stop
fi
if wants tests; then
  say "command two: tests/run.sh"
  in_clone tests/run.sh </dev/null
fi
say "done"
