#!/usr/bin/env bash
# Makes a .deb and a relocatable tarball of the programs in a build folder; compiles nothing, needs no network.
#
#   deploy/package.sh [--build FOLDER] [--output FOLDER] [--version V] [--only deb|tarball] [--host-cuda] [--fast]
#
# FOLDER/bin holds hone, honed and honed-worker (default: build/release). --fast: quick compression, for tests.
# The .deb depends on Debian's libraries; the tarball carries them (glibc is the host's: it must be as new as this one's).
# A library from outside Debian, such as CUDA's libcublasLt (half a GB), goes into both; --host-cuda leaves it to the host.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/deploy/common.sh"

build=$here/build/release output=$here/build/package version='' only='' fast='' host_cuda=''
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift ;;
    --output) output=$2; shift ;;
    --version) version=$2; shift ;;
    --only) only=$2; shift ;;
    --fast) fast=1 ;;
    --host-cuda) host_cuda=1 ;;
    *) die "unknown argument '$1'" ;;
  esac
  shift
done
programs=(hone honed honed-worker)
for program in "${programs[@]}"; do
  [ -x "$build/bin/$program" ] || die "$build/bin/$program is not there: build first (cmake --build $build)"
done
for tool in dpkg-deb dpkg-shlibdeps strip perl; do
  command -v "$tool" >/dev/null || die "$tool is missing: apt-get install dpkg-dev binutils perl"
done
[ -n "$version" ] || version=$("$build/bin/hone" --version | awk '{print $2}')
architecture=$(dpkg --print-architecture)
case $only in '' | deb | tarball) ;; *) die "--only deb or tarball" ;; esac

umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$output"

# Every library a program loads, with its path; asked of the loader, not run.
libraries() { ldd "${programs[@]/#/$build/bin/}" | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u; }
if ldd "${programs[@]/#/$build/bin/}" | grep 'not found'; then die "a program lacks these libraries on this machine"; fi
foreign() { [ -n "$host_cuda" ] || libraries | awk '$2 !~ /^(\/usr)?\/lib\//'; }
# glibc belongs to the host's loader.
carried() {
  libraries | awk '$2 ~ /^(\/usr)?\/lib\// && $1 !~ /^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|anl|mvec))\.so/'
  foreign
}
copy_libraries() {  # FOLDER, from stdin: name path
  local name path
  while read -r name path; do install -D -m 644 "$path" "$1/$name"; done
}

copy_programs() {  # FOLDER
  local program
  mkdir -p "$1"
  for program in "${programs[@]}"; do
    strip --strip-unneeded -o "$1/$program" "$build/bin/$program"
    chmod 755 "$1/$program"
  done
}

man_page() {  # PROGRAM SECTION SUMMARY [SUBCOMMAND...]
  local name=$1 section=$2 summary=$3 subcommand
  shift 3
  printf '.TH %s %s "" "hone %s" "Hone"\n.SH NAME\n%s \\- %s\n' "${name^^}" "$section" "$version" "$name" "$summary"
  "$build/bin/$name" --help | awk -v level=SH -f "$here/deploy/packaging/manpage.awk"
  [ $# -eq 0 ] || printf '.SH SUBCOMMANDS IN DETAIL\n'
  for subcommand in "$@"; do
    printf '.SS %s %s\n' "$name" "$subcommand"
    # shellcheck disable=SC2086  # "daemon start" is two words
    "$build/bin/$name" $subcommand --help | grep -v '^Exit codes and global flags' | awk -v level=SS -f "$here/deploy/packaging/manpage.awk"
  done
  printf '.SH SEE ALSO\n.BR hone (1),\n.BR honed (8),\n.BR honed\\-worker (1)\n'
}

subcommands_of() {  # PROGRAM [SUBCOMMAND]: names beneath "Subcommands:", with those beneath them
  local name
  "$build/bin/$1" "${@:2}" --help | awk '/^Subcommands:/ {on = 1; next} on && !NF {exit} on && /^  [a-z]/ {print $1}' |
    while read -r name; do
      printf '%s\n' "${*:2}${2:+ }$name"
      [ $# -gt 1 ] || subcommands_of "$1" "$name"
    done
}

documents() {  # SHARE: man pages and completions
  local subcommands
  mkdir -p "$1/man/man1" "$1/man/man8" "$1/bash-completion/completions" "$1/zsh/vendor-completions" "$1/fish/vendor_completions.d"
  mapfile -t subcommands < <(subcommands_of hone)
  [ ${#subcommands[@]} -gt 20 ] || die "hone --help lists only ${#subcommands[@]} subcommands: has its layout changed?"
  man_page hone 1 'fine-tune language models on your own machine' "${subcommands[@]}" | gzip -9n >"$1/man/man1/hone.1.gz"
  mapfile -t subcommands < <(subcommands_of honed-worker)
  man_page honed-worker 1 'inspect, train and run models' "${subcommands[@]}" | gzip -9n >"$1/man/man1/honed-worker.1.gz"
  man_page honed 8 'the daemon of Hone' | gzip -9n >"$1/man/man8/honed.8.gz"
  "$build/bin/hone" completion bash >"$1/bash-completion/completions/hone"
  "$build/bin/hone" completion zsh >"$1/zsh/vendor-completions/_hone"
  "$build/bin/hone" completion fish >"$1/fish/vendor_completions.d/hone.fish"
}

depends() {  # ROOT
  mkdir -p "$work/shlibs/debian"
  printf 'Source: hone\n\nPackage: hone\nArchitecture: any\n' >"$work/shlibs/debian/control"
  (cd "$work/shlibs" && dpkg-shlibdeps -O --ignore-missing-info ${2:+"-l$2"} "${programs[@]/#/-e$1/usr/lib/hone/}" 2>"$work/shlibs.log") |
    sed -n 's/^shlibs:Depends=//p'
}

make_deb() {
  local root=$work/deb compression=(-Zxz) name
  [ -z "$fast" ] || compression=(-Zgzip -z1)
  # The programs lie together, so that each finds the others and lib/ beside itself whatever link it was started by.
  copy_programs "$root/usr/lib/hone"
  foreign | copy_libraries "$root/usr/lib/hone/lib"
  mkdir -p "$root/usr/bin" "$root/DEBIAN"
  for name in "${programs[@]}"; do ln -s "../lib/hone/$name" "$root/usr/bin/$name"; done
  documents "$root/usr/share"
  install -D -m 644 "$here/deploy/packaging/honed.conf" "$root/etc/honed/honed.conf"
  install -D -m 644 "$here/deploy/systemd/system/honed.service" "$root/lib/systemd/system/honed.service"
  mkdir -p "$root/usr/lib/systemd/user"
  # The user's unit says how to install itself; here it is.
  sed -e '1,4c# Hone'\''s daemon for one user: systemctl --user enable --now honed' -e 's#%h/.local/bin/#/usr/bin/#' \
    -e 's#^Documentation=.*#Documentation=man:honed(8) man:hone(1)#' "$here/deploy/systemd/honed.service" >"$root/usr/lib/systemd/user/honed.service"
  install -D -m 644 "$here/deploy/systemd/system/cpu-only.conf" "$root/usr/share/doc/hone/examples/cpu-only.conf"
  install -D -m 644 "$here/deploy/packaging/copyright" "$root/usr/share/doc/hone/copyright"
  gzip -9nc "$here/README.md" >"$root/usr/share/doc/hone/README.md.gz"
  local needs
  needs=$(depends "$root" "$([ ! -d "$root/usr/lib/hone/lib" ] || echo "$root/usr/lib/hone/lib")")
  [ -n "$needs" ] || { cat "$work/shlibs.log" >&2; die "dpkg-shlibdeps named no package"; }
  cat >"$root/DEBIAN/control" <<END
Package: hone
Version: $version
Architecture: $architecture
Maintainer: The Hone authors <hone@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: adduser, $needs
Section: science
Priority: optional
Description: fine-tunes language models on the machine you already own
 hone talks to honed, which keeps a queue of training jobs and runs one worker
 process for each, on an NVIDIA card or on the CPU. honed runs for one user
 (hone daemon start) or, as a hardened system service, for group hone.
END
  echo /etc/honed/honed.conf >"$root/DEBIAN/conffiles"
  for name in postinst prerm postrm; do install -m 755 "$here/deploy/packaging/$name" "$root/DEBIAN/$name"; done
  (cd "$root" && find . -type f -not -path './DEBIAN/*' -not -path './etc/*' -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
  dpkg-deb --root-owner-group "${compression[@]}" --build "$root" "$output/hone_${version}_$architecture.deb" >/dev/null
  say "$output/hone_${version}_$architecture.deb"
}

make_tarball() {
  local name=hone-$version-linux-$architecture level=-9
  [ -z "$fast" ] || level=-1
  local root=$work/$name program
  copy_programs "$root"
  for program in "${programs[@]}"; do perl "$here/deploy/packaging/rpath.pl" "$root/$program"; done
  carried | copy_libraries "$root/lib"
  documents "$root/share"
  install -m 644 "$here/LICENSE" "$here/README.md" "$root"
  install -D -m 644 "$here/deploy/systemd/honed.service" "$root/share/systemd/user/honed.service"
  tar -C "$work" --owner=0 --group=0 --sort=name -cf - "$name" | gzip "$level" -n >"$output/$name.tar.gz"
  say "$output/$name.tar.gz"
}

if [ "$only" != tarball ]; then make_deb; fi
if [ "$only" != deb ]; then make_tarball; fi
