#!/bin/bash
# What a Raspberry Pi shows: run as root, on the Pi or on an emulated one, in a checkout. Installs the service, watches
# three captured test pictures for a minute, prints what docs/raspberry-pi.md quotes, runs the demo and removes it all.
#   PIP_FIND_LINKS=DIR PIP_NO_INDEX=1   take Python's packages from DIR: a machine without a network
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "$0")")/../.."

say() { printf '\n== %s\n' "$*"; }

until_true() {   # until_true SECONDS COMMAND...: waits until it succeeds
    local end=$((SECONDS + $1))
    until "${@:2}" >/dev/null 2>&1; do
        ((SECONDS < end)) || { say "waited in vain for: ${*:2}"; return 1; }
        sleep 0.5
    done
}

reported() { journalctl -u stillwatch -o cat --no-pager | grep -q 'host report'; }

judged() { stillwatch status --json | grep -q '"judged": *[1-9][0-9]'; }

say machine
grep -m1 'model name\|CPU part' /proc/cpuinfo || true
printf '%s, %s cores, %s\n' "$(uname -m)" "$(nproc)" "$(systemctl --version | head -n 1)"

say install
systemd/install.sh --no-start
cat >/etc/stillwatch/stillwatch.toml <<'TOML'
report_every_s = 20
min_free_bytes = 0
[[source]]
stall_s = 60
name = "stb1"
[source.capture]
profile = "lavfi"
input = "testsrc2=size=320x180:rate=1"
fps = 1
[[source]]
stall_s = 60
name = "stb2"
[source.capture]
profile = "lavfi"
input = "testsrc2=size=320x180:rate=1"
fps = 1
[[source]]
stall_s = 60
name = "tv"
[source.capture]
profile = "lavfi"
input = "testsrc2=size=320x180:rate=1"
fps = 1
TOML
systemctl start stillwatch
systemctl show stillwatch -p ActiveState -p StatusText -p NRestarts

say pinned
until_true 600 judged
for pid in $(pgrep -f 'stillwatch: (supervisor|watcher|worker|uploader|capture)'); do
    printf '%-28s cores %s\n' "$(ps -o args= -p "$pid" | cut -c1-28)" "$(taskset -pc "$pid" | sed 's/.*: //')"
done

say status
until_true 120 reported
COLUMNS=150 stillwatch status || true
say report
journalctl -u stillwatch -o cat --no-pager | grep ' report ' | tail -n 12
say doctor
COLUMNS=150 stillwatch doctor || true
say stop
before=$SECONDS
systemctl stop stillwatch
printf 'stopped within %s s\n' "$((SECONDS - before + 1))"
say demo
current=$(readlink -f /opt/stillwatch/current)
"$current/stillwatch" demo --in-turn || { printf 'demo: exit %s\n' "$?"; exit 1; }
systemd/install.sh uninstall --purge
