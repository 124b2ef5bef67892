#!/usr/bin/env bash
# Runs inside the root of `tests/clean_root.sh --only package`, nowhere else: it installs and purges packages.
# There is no systemd in a chroot: a stand-in for systemctl starts and stops the unit's command as the unit's user.
set -euo pipefail
cd "$(dirname "$0")"
if [ ! -f model.gguf ] || [ "$(pwd)" != /root/package ]; then echo "only for tests/clean_root.sh"; exit 1; fi
fail() { echo "FAILED: $*" >&2; tail -20 /run/honed.log >&2 || true; exit 1; }
rm -f /run/honed.pid /run/honed.log /run/systemctl.calls
export DEBIAN_FRONTEND=noninteractive
printf 'Dpkg::Use-Pty "0";\n' >/etc/apt/apt.conf.d/90pty

# Where dpkg's PATH under apt has it.
[ ! -e /usr/bin/systemctl ] || grep -q systemctl.calls /usr/bin/systemctl || fail "this root has a systemctl"
cat >/usr/bin/systemctl <<'END'
#!/bin/bash
echo "systemctl $*" >>/run/systemctl.calls
case " $* " in
  *' is-active '*) [ -f /run/honed.pid ] && kill -0 "$(cat /run/honed.pid)" 2>/dev/null ;;
  *' stop '*)
    [ ! -f /run/honed.pid ] || { pid=$(cat /run/honed.pid); kill "$pid" 2>/dev/null; while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done; rm -f /run/honed.pid; }
    ;;
  *' start '*)
    install -d -o hone -g hone -m 750 /var/lib/honed /var/cache/honed
    install -d -o hone -g hone -m 755 /run/honed
    command=$(sed -n 's/^ExecStart=//p' /lib/systemd/system/honed.service)
    # shellcheck disable=SC2086
    HOME=/var/lib/honed XDG_CACHE_HOME=/var/cache/honed setsid setpriv --reuid hone --regid hone --init-groups $command >>/run/honed.log 2>&1 </dev/null &
    echo $! >/run/honed.pid
    ;;
esac
END
chmod 755 /usr/bin/systemctl
mkdir -p /run/systemd/system

apt-get -qq update
apt-get -qq -y install --no-install-recommends ./hone_1.0_*.deb >install.log 2>&1 || { tail install.log; fail "apt cannot install"; }
tail -2 install.log
getent passwd hone >/dev/null || fail "no user hone"
hone --version
dpkg --verify hone

systemctl start honed.service
for _ in $(seq 100); do [ ! -S /run/honed/honed.sock ] || break; sleep 0.1; done
useradd -m -G hone anna
useradd -m bert
su anna -c 'hone status' || fail "a member of group hone cannot talk to the daemon"
if su bert -c 'hone status' >/dev/null 2>&1; then fail "anybody may talk to the daemon"; fi

# The quickstart's job, as a user would send it: the files are hers, readable by the daemon.
install -d -o anna -m 755 /home/anna /home/anna/job
cp model.gguf quickstart/train.jsonl quickstart/job.yaml /home/anna/job/
chmod 755 /home/anna && chmod 644 /home/anna/job/*
sed -i "s#source: [^,]*#source: /home/anna/job/model.gguf#" /home/anna/job/job.yaml
grep -n 'source\|train:' /home/anna/job/job.yaml
job=$(su anna -c 'cd ~/job && hone submit job.yaml -q --set run.max_steps=6 --set export=[peft]') || fail "submit"
echo "job $job"
for _ in $(seq 1200); do
  su anna -c "hone get $job -o json" >job.json
  grep -q '"step": *"\?[1-9]' job.json && break
  grep -q 'FAILED' job.json && { cat job.json; fail "the job failed"; }
  sleep 0.1
done
apt-get -qq -y install --no-install-recommends ./hone_1.1_*.deb >upgrade.log 2>&1 || { tail upgrade.log; fail "apt cannot upgrade"; }
cat /run/systemctl.calls
grep 'draining' /run/honed.log || fail "the upgrade did not stop the daemon"
[ "$(grep -c ' serves on ' /run/honed.log)" = 2 ] || fail "the upgrade did not start the daemon again"
dpkg-query -W hone
for _ in $(seq 100); do [ ! -S /run/honed/honed.sock ] || break; sleep 0.1; done
su anna -c "hone get $job"
su anna -c "hone wait $job --timeout 400" || fail "the job did not succeed after the upgrade"
su anna -c "hone get $job" | tee job.txt
grep -q '^attempt 2 .*succeeded, steps .* to 6' job.txt || fail "the job did not go on in a second attempt"

apt-get -qq -y purge hone >purge.log 2>&1 || { tail purge.log; fail "apt cannot purge"; }
[ ! -e /run/honed/honed.sock ] || fail "the daemon still runs"
if getent passwd hone || getent group hone; then fail "purge leaves the user"; fi
left=$(find / -xdev \( -name 'hone*' -o -name '_hone' -o -nouser \) -not -path '/root/*' -not -path '/home/*' -not -path '/var/lib/apt/*')
[ -z "$left" ] || fail "purge leaves: $left"
userdel -r anna 2>/dev/null; userdel -r bert 2>/dev/null
rm -f /usr/bin/systemctl /etc/apt/apt.conf.d/90pty
echo "package in a clean root: all holds"
