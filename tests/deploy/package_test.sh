#!/usr/bin/env bash
# The .deb and the tarball of a build folder: what is in them, that the unit is hardened as far as we say, and that
# installing, upgrading, removing and purging do what they should. Compiles nothing, needs no network.
#
#   tests/deploy/package_test.sh BUILD_FOLDER
#
# dpkg works on a throw-away root without a chroot (its scripts then get DPKG_ROOT), and what would change this machine
# (adduser, systemctl, ...) is a stub that writes down how it was called. A full install in a clean Debian is another test.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:?build folder}
for tool in dpkg-deb dpkg-shlibdeps dpkg strip perl; do
  command -v "$tool" >/dev/null || { echo "$tool is not installed: skipped"; exit 77; }
done
for program in hone honed honed-worker; do
  [ -x "$build/bin/$program" ] || { echo "$build/bin/$program is not built: skipped"; exit 77; }
done
scratch=$(mktemp -d)
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true; rm -rf "$scratch"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
same() { [ "$1" = "$2" ] || { diff <(printf '%s\n' "$1") <(printf '%s\n' "$2") >&2 || true; fail "$3"; }; }

deploy/package.sh --build "$build" --output "$scratch/out" --version 1.0 --host-cuda --fast
deb=$(echo "$scratch"/out/hone_1.0_*.deb)
tarball=$(echo "$scratch"/out/hone-1.0-linux-*.tar.gz)

echo "-- contents"
files=$scratch/files
dpkg-deb -R "$deb" "$files"
same "$(cd "$files" && find . -not -type d -not -path './DEBIAN/*' -printf '/%P\n' | LC_ALL=C sort)" "/etc/honed/honed.conf
/lib/systemd/system/honed.service
/usr/bin/hone
/usr/bin/honed
/usr/bin/honed-worker
/usr/lib/hone/hone
/usr/lib/hone/honed
/usr/lib/hone/honed-worker
/usr/lib/systemd/user/honed.service
/usr/share/bash-completion/completions/hone
/usr/share/doc/hone/README.md.gz
/usr/share/doc/hone/copyright
/usr/share/doc/hone/examples/cpu-only.conf
/usr/share/fish/vendor_completions.d/hone.fish
/usr/share/man/man1/hone.1.gz
/usr/share/man/man1/honed-worker.1.gz
/usr/share/man/man8/honed.8.gz
/usr/share/zsh/vendor-completions/_hone" "the package holds other files than it should"
same "$(cat "$files/DEBIAN/conffiles")" /etc/honed/honed.conf "conffiles"
(cd "$files" && md5sum --quiet -c DEBIAN/md5sums)
depends=$(dpkg-deb -f "$deb" Depends)
for needed in adduser libc6 libgrpc++1.51 libprotobuf32 libsqlite3-0 libopenblas0; do
  case ", $depends" in *", $needed"*) ;; *) fail "Depends lacks $needed: $depends" ;; esac
done
if find "$files" -perm /6022 -not -type l | grep .; then fail "setuid, or writable by others"; fi
"$files/usr/bin/hone" --version | grep -q '^hone ' || fail "hone does not run through its link"

echo "-- man pages and completions"
pages=$files/usr/share/man
for page in "$pages"/man*/*.gz; do
  if command -v man >/dev/null; then
    warnings=$(man --warnings -l "$page" 2>&1 >/dev/null) || fail "$page: $warnings"
    [ -z "$warnings" ] || fail "$page: $warnings"
  fi
done
headings=$(zcat "$pages/man1/hone.1.gz" | sed -n 's/^\.SS hone //p')
for subcommand in submit watch 'models import' 'daemon start' 'config set' report completion; do
  grep -qx "$subcommand" <<<"$headings" || fail "hone(1) lacks $subcommand"
done
# Every option that the programs print stands in their pages.
for program in hone:1 honed:8 honed-worker:1; do
  text=$(zcat "$pages/man${program#*:}/${program%:*}.${program#*:}.gz" | sed 's/\\-/-/g')
  while read -r option; do
    grep -q -e "$option" <<<"$text" || fail "${program%:*}(${program#*:}) lacks $option"
  done < <("$build/bin/${program%:*}" --help | grep -o -E '^  (-[a-z],)?--[a-z-]+' | grep -o -E -e '--[a-z-]+')
done
completion=$files/usr/share/bash-completion/completions/hone
# shellcheck disable=SC1090,SC2317  # a generated file, which calls compopt
found=$(. "$completion"; COMP_WORDS=(hone subm) COMP_CWORD=1; compopt() { :; }; _hone; echo "${COMPREPLY[*]}")
same "$found" submit "bash completes 'hone subm'"
if command -v zsh >/dev/null; then zsh -n "$files/usr/share/zsh/vendor-completions/_hone"; fi
if command -v fish >/dev/null; then fish -n "$files/usr/share/fish/vendor_completions.d/hone.fish"; fi

echo "-- settings"
while IFS='=' read -r option value; do
  line=$("$build/bin/honed" --help | grep -e "^  --$option ") || fail "honed.conf names $option, honed does not know it"
  default=$(sed -n 's/^  --[a-z-]* [^ =]*=\([^ ]*\).*/\1/p' <<<"$line")
  [ -z "$default" ] || same "$default" "$value" "the default of $option in honed.conf"
done < <(sed -n 's/^#\([a-z-]*=.*\)/\1/p' "$files/etc/honed/honed.conf")

if command -v systemd-analyze >/dev/null; then
  echo "-- units"
  units=$scratch/units
  mkdir -p "$units/gpu" "$units/cpu/honed.service.d" "$units/user" "$scratch/run"
  sed "s#/usr/bin/honed#$files/usr/bin/honed#" "$files/lib/systemd/system/honed.service" | tee "$units/gpu/honed.service" >"$units/cpu/honed.service"
  cp "$files/usr/share/doc/hone/examples/cpu-only.conf" "$units/cpu/honed.service.d/"
  sed "s#/usr/bin/honed#$files/usr/bin/honed#" "$files/usr/lib/systemd/user/honed.service" >"$units/user/honed.service"
  for kind in gpu cpu; do systemd-analyze --man=no --recursive-errors=yes verify "$units/$kind/honed.service"; done
  XDG_RUNTIME_DIR=$scratch/run systemd-analyze --user --man=no --recursive-errors=yes verify "$units/user/honed.service"
  security() { systemd-analyze security --offline=true --no-pager --threshold="$2" "$units/$1/honed.service" | tail -1; }
  # The figures reached: 1.5 with the card open, 1.2 with the drop-in that closes it.
  echo "gpu: $(security gpu 15)" || fail "the unit got weaker than 1.5"
  echo "cpu-only.conf: $(security cpu 12)" || fail "the unit with cpu-only.conf got weaker than 1.2"
  sed -i '/^ProtectSystem=/d; /^PrivateTmp=/d' "$units/gpu/honed.service"
  if security gpu 15 >/dev/null; then fail "the check passes a weaker unit"; fi
fi

echo "-- install, upgrade, remove, purge"
root=$scratch/root
stubs=$scratch/stubs
calls=$scratch/calls
mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates" "$root/run/systemd/system" "$stubs"
: >"$root/var/lib/dpkg/status"
for name in adduser systemctl getent userdel groupdel; do
  printf '#!/bin/sh\necho "%s $*" >>%q\n' "$name" "$calls" >"$stubs/$name"
  chmod +x "$stubs/$name"
done
pretend() {  # dpkg's arguments; --force-depends: the root holds no libraries
  : >"$calls"
  PATH=$stubs:$PATH dpkg --root="$root" --log="$scratch/dpkg.log" --force-script-chrootless --force-not-root \
    --force-depends --force-bad-path --force-confold "$@" >"$scratch/dpkg.out" 2>&1 || { cat "$scratch/dpkg.out"; fail "dpkg $*"; }
}
pretend -i "$deb"
grep -q '^adduser --system --group .* hone$' "$calls" || fail "no user was made"
if grep -q -E 'systemctl (start|enable)' "$calls"; then fail "a first install starts the system's daemon"; fi
grep -q 'hone daemon start' "$scratch/dpkg.out" || fail "the install does not say how to go on"
"$root/usr/bin/hone" --version >/dev/null

echo 'max-jobs=7' >>"$root/etc/honed/honed.conf"
sed -i 's/^Version: .*/Version: 1.1/' "$files/DEBIAN/control"
echo '# new in 1.1' >>"$files/etc/honed/honed.conf"
dpkg-deb --root-owner-group -Znone --build "$files" "$scratch/new.deb" >/dev/null
pretend -i "$scratch/new.deb"
same "$(grep -n -o -E 'systemctl (is-active|stop|daemon-reload|start)' "$calls")" "1:systemctl is-active
2:systemctl stop
4:systemctl daemon-reload
5:systemctl start" "an upgrade stops (drains) before and starts after the files change"
grep -q '^max-jobs=7$' "$root/etc/honed/honed.conf" || fail "an upgrade overwrote the owner's settings"
[ ! -e "$root/run/honed-upgrade" ] || fail "the upgrade left its mark"
# Not running: not started.
# shellcheck disable=SC2016
printf '#!/bin/sh\necho "systemctl $*" >>%q\n[ "$1" != is-active ]\n' "$calls" >"$stubs/systemctl"
pretend -i "$scratch/new.deb"
if grep -q -E 'systemctl (start|stop)' "$calls"; then fail "an upgrade starts a daemon that did not run"; fi

mkdir -p "$root/var/lib/honed/jobs" "$root/var/cache/honed"
pretend -r hone
grep -q 'systemctl stop honed' "$calls" || fail "remove leaves the daemon running"
[ -d "$root/var/lib/honed/jobs" ] || fail "remove took the jobs"
[ -f "$root/etc/honed/honed.conf" ] || fail "remove took the settings"
pretend -P hone
grep -q 'userdel hone' "$calls" || fail "purge leaves the user"
left=$(cd "$root" && find . -not -type d -not -path './var/lib/dpkg/*' && find . -name 'hone*' -not -path './var/lib/dpkg/*')
[ -z "$left" ] || fail "purge leaves: $left"

echo "-- tarball"
mkdir "$scratch/a place"
tar -C "$scratch/a place" -xzf "$tarball"
mv "$scratch/a place/"hone-1.0-* "$scratch/a place/hone"
carried=$scratch/a\ place/hone
for program in hone honed honed-worker; do
  # What is not carried is glibc, or CUDA by --host-cuda.
  outside=$(ldd "$carried/$program" | grep '=> /' | grep -v -F "=> $carried/lib/" | grep -v -E '^\s*(lib(c|m|dl|rt|pthread|resolv)\.so|libcu|libnv)' || true)
  [ -z "$outside" ] || fail "$program of the tarball loads from this machine: $outside"
  "$carried/$program" --version >/dev/null
done
if perl deploy/packaging/rpath.pl LICENSE 2>/dev/null; then fail "rpath.pl takes a text for a program"; fi
# The daemon as a package runs it, but for the places, with every commented setting left at its default.
"$carried/honed" --config "$carried/../../files/etc/honed/honed.conf" --metrics off --state-dir "$scratch/state" --socket "$scratch/s" \
  2>"$scratch/honed.log" &
daemon=$!
for _ in $(seq 100); do [ ! -S "$scratch/s" ] || break; sleep 0.05; done
"$carried/hone" --socket "$scratch/s" status >/dev/null || { cat "$scratch/honed.log"; fail "the tarball's daemon does not answer"; }
kill "$daemon"
wait "$daemon" || fail "the daemon did not drain"
daemon=
echo "package: all holds"
