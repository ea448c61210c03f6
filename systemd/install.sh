#!/bin/bash
# Stillwatch as a systemd service: install, upgrade, roll back, remove. systemd/install.sh --help
#
# A version is made to the side, in a directory of its own, by the same launcher that people use; it must run, load all
# it is made of and read the configuration before anything that runs is touched. Then one link is turned (rename, so
# there is no moment without it), the service restarted, and systemd asked whether READY came: if not, the link is
# turned back. A version that was interrupted lacks its mark and is made anew.
set -euo pipefail
shopt -s inherit_errexit
umask 022

opt=/opt/stillwatch                 # NAME-OF-VERSION/, current -> NAME-OF-VERSION, previous -> NAME-OF-VERSION
etc=/etc/stillwatch
config=$etc/stillwatch.toml
credentials=(r2-endpoint r2-access-key-id r2-secret-access-key r2-bucket r2-public-url)
unit=/etc/systemd/system/stillwatch.service
command=/usr/local/bin/stillwatch
user=stillwatch                     # and its group
log=/var/log/stillwatch-install.log # what pip said when it failed
parts=(pipeline ffmpeg systemd stillwatch requirements.txt README.md ARCHITECTURE.md CHANGELOG.md LICENSE)

help() {
    cat <<HELP
usage: sudo systemd/install.sh [install] [--no-start]   install this checkout, or upgrade to it
       sudo systemd/install.sh rollback                 back to the version before; once more: forward again
       sudo systemd/install.sh uninstall [--purge]      remove it; configuration and data stay, unless --purge

  $opt/VERSION  the program and its Python packages; "current" links to the one in use, "previous" to the one before
  $config  what to watch: an example at first, and never touched again
  $etc/credentials/  Cloudflare R2, one value per file (r2-endpoint, ...); empty: evidence stays here
  $unit  the unit; change it with: sudo systemctl edit stillwatch
  $command  the command, for everybody
  /var/lib/stillwatch, /run/stillwatch  incident log and evidence; frames and status. Of the user $user

It installs python3-venv and ffmpeg with apt-get where they are missing. Installing again changes nothing; --no-start
leaves the service as it is. If a new version does not become ready, the old one runs again.

exit codes: 0 done; 1 the new version did not become ready; 2 wrong command line; 66 there is no version to go back to;
            69 something is missing and could not be installed; 71 the system refused (not root, disk full);
            75 another call is at work; 78 the new version refuses $config
HELP
}

say() { printf 'install.sh: %s\n' "$*"; }
die() { printf 'install.sh: %s\n' "${*:2}" >&2; exit "$1"; }   # die CODE TEXT...

# --- a version ---------------------------------------------------------------------------------------------------------

# version_name: the version's number, and eight digits of what it is made of: the same files have the same name.
version_name() {
    local number digest
    number=$(sed -n 's/^__version__ = "\([A-Za-z0-9.+-]*\)"$/\1/p' "$root/pipeline/__init__.py")
    [[ $number ]] || die 69 "$root is not a checkout of Stillwatch"
    digest=$(cd -- "$root" && find "${parts[@]}" -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z |
        xargs -0 sha256sum | sha256sum)
    printf '%s-%s\n' "$number" "${digest:0:8}"
}

linked() { readlink -- "$opt/$1" || true; }   # linked current: the name of that version, or nothing

# make NAME: the version, whole and tried out; or nothing of it, and the end.
make() {
    local new=$opt/$1
    if [[ ! -e $new/.whole && ! $new -ef $root ]]; then
        rm -rf -- "$new"
        mkdir -p -- "$new"
        tar -c -C "$root" --exclude=__pycache__ --owner=0 --group=0 --mode=u=rwX,go=rX -- "${parts[@]}" |
            tar -x -C "$new" || fail "$new" 71 "cannot copy $root to $new: is the disk full?"
    fi
    # The launcher makes and mends the venv. Debian's Python, because root's own may lie where the service cannot read.
    STILLWATCH_PYTHON=${STILLWATCH_PYTHON:-/usr/bin/python3} "$new/stillwatch" --version >/dev/null ||
        fail "$new" 69 "the version could not be made (see above); nothing was changed"
    "$new/.venv/bin/python" -m compileall -q "$new/pipeline" >/dev/null   # the service may not write there
    try_out "$new" || fail "$new" 1 "the version does not run here (see above); nothing was changed"
    sync -f "$new"
    touch -- "$new/.whole"
}

# fail DIRECTORY CODE TEXT...: ends; a version that never was whole is removed, and its log kept.
fail() {
    if [[ ! -e $1/.whole ]]; then
        if [[ -s $1/.venv.log ]]; then cp -- "$1/.venv.log" "$log" && printf 'install.sh: log: %s\n' "$log" >&2; fi
        rm -rf -- "$1"
    fi
    die "${@:2}"
}

# as_service VERSION WORD...: runs Python as the service's user, with nothing of our environment.
as_service() {
    runuser -u "$user" -- env -i PATH=/usr/bin:/bin LANG=C.UTF-8 PYTHONPATH="$1" "$1/.venv/bin/python" -P "${@:2}"
}

# try_out VERSION: does it answer, and can all that it consists of be loaded here, OpenCV and boto3 included?
try_out() {
    as_service "$1" -m pipeline --help >/dev/null && as_service "$1" -c '
import importlib, pkgutil, pipeline
for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
    importlib.import_module(module.name)
'
}

# check_configuration VERSION: does it take the configuration? As the service's user, who must be able to read it.
check_configuration() {
    as_service "$1" -c '
import sys
from pipeline import config
from pipeline.model import StillwatchError
try:
    config.load(sys.argv[1], {}, {"state_dir": "/", "runtime_dir": "/"})
except StillwatchError as error:
    sys.exit(f"install.sh: {error}")
' "$config"
}

# remove_others: versions that are neither current nor previous.
remove_others() {
    local path
    for path in "$opt"/*/; do
        path=${path%/}
        [[ ! -L $path && ${path##*/} != "$(linked current)" && ${path##*/} != "$(linked previous)" ]] || continue
        rm -rf -- "$path"
    done
}

# --- what surrounds it ---------------------------------------------------------------------------------------------------

make_user() {
    getent group "$user" >/dev/null || groupadd --system "$user"
    id -u "$user" >/dev/null 2>&1 || useradd --system --gid "$user" --home-dir /var/lib/stillwatch --no-create-home \
        --shell /usr/sbin/nologin --comment Stillwatch "$user"
}

# make_configuration: the example and empty credentials, where there is nothing yet.
make_configuration() {
    local name
    install -d -m 0755 "$etc"
    if [[ ! -e $config && ! -L $config ]]; then
        install -m 0640 -g "$user" -- "$root/systemd/stillwatch.toml" "$config"
        say "$config is an example: put your sources there"
    fi
    install -d -m 0700 "$etc/credentials"
    for name in "${credentials[@]}"; do
        if [[ ! -e $etc/credentials/$name ]]; then
            install -m 0600 /dev/null "$etc/credentials/$name"
        elif [[ $(stat -L -c %a -- "$etc/credentials/$name") != [0-7]00 ]]; then
            chmod go= -- "$etc/credentials/$name"
            say "$etc/credentials/$name could be read by others: closed"
        fi
    done
}

# --- turning over ----------------------------------------------------------------------------------------------------------

link() { ln -sfn -- "$1" "$2.new" && mv -T -- "$2.new" "$2"; }   # link TARGET NAME: in one step

booted() { [[ -d /run/systemd/system ]]; }   # or an image is being made, in a chroot

state() { systemctl show -p ActiveState --value stillwatch 2>/dev/null || true; }

# turn_to NAME: the version in use. Nothing is restarted.
turn_to() {
    link "$1" "$opt/current"
    if ! cmp -s -- "$opt/$1/systemd/stillwatch.service" "$unit"; then
        install -m 0644 -- "$opt/$1/systemd/stillwatch.service" "$unit"
    fi
    link "$opt/current/stillwatch" "$command"
    sync -f "$opt/current/" "$unit"
    if booted; then systemctl daemon-reload; fi
}

# start: whether READY came. If not, what the journal says.
start() {
    local since
    since=$(date +%s)
    systemctl reset-failed stillwatch 2>/dev/null || true
    if systemctl restart stillwatch; then return; fi
    status=$(systemctl show -p ExecMainStatus --value stillwatch)
    systemctl stop stillwatch   # else it would be tried again behind our back
    journalctl --sync || true
    journalctl -u stillwatch --since "@$since" -p warning -o cat --no-pager | tail -n 20 >&2 || true
    return 1
}

# turn_over FROM TO: TO in use and running, and FROM the one before; or all as it was. FROM may be nothing.
turn_over() {
    local before
    before=$(linked previous)
    [[ -z $1 || $1 == "$2" ]] || link "$1" "$opt/previous"
    turn_to "$2"
    if ! booted || [[ ! $starting ]] || start; then return; fi
    if [[ $1 && $1 != "$2" ]]; then
        if [[ $before ]]; then link "$before" "$opt/previous"; else rm -- "$opt/previous"; fi
        turn_to "$1"
        start || die 1 "$2 did not become ready, and neither did $1 now: mend what the journal says, systemctl start stillwatch"
        die 1 "$2 did not become ready (see above); $1 runs again"
    fi
    [[ $status != 78 ]] || die 78 "the service refuses its configuration (see above): mend it, then systemctl start stillwatch"
    die 1 "the service did not become ready: mend what is said above, then systemctl start stillwatch"
}

# --- commands ----------------------------------------------------------------------------------------------------------------

install_version() {
    local name was before
    if [[ -e $command || -L $command ]] && [[ $(readlink -- "$command") != "$opt/current/stillwatch" ]]; then
        die 71 "$command is not ours: move it away"
    fi
    name=$(version_name)
    was=$(linked current)
    make_user
    make "$name"
    make_configuration
    check_configuration "$opt/$name" || die 78 "$name refuses the configuration (see above); ${was:-nothing} is in use"
    type -P ffmpeg >/dev/null || say "ffmpeg is missing, so nothing can be captured: apt-get install -y ffmpeg"

    before=$(state)
    [[ ! $no_start && ( ! $was || $before != inactive ) ]] || starting=''
    if [[ $was == "$name" && $before == active ]] && cmp -s -- "$opt/$name/systemd/stillwatch.service" "$unit"; then
        say "$name is installed already, and runs"
        return
    fi
    if [[ ! $was ]]; then
        turn_to "$name"
        systemctl enable -q stillwatch
    fi
    turn_over "$was" "$name"
    remove_others
    if booted && [[ $starting ]]; then
        say "$name runs: $(systemctl show -p StatusText --value stillwatch)"
        hints
    else
        say "$name is installed; the service is as it was: systemctl restart stillwatch"
    fi
}

hints() {
    cat <<HINTS
  see it         systemctl status stillwatch; journalctl -fu stillwatch; sudo stillwatch incidents
  what to watch  sudo nano $config, then: sudo systemctl reload stillwatch
  who may look   sudo usermod -aG $user ${SUDO_USER:-NAME}
  back           sudo $opt/current/systemd/install.sh rollback
HINTS
}

rollback() {
    local was name
    was=$(linked current) name=$(linked previous)
    [[ $name && -e $opt/$name/.whole ]] || die 66 "there is no version before ${was:-this one}"
    try_out "$opt/$name" || die 1 "$name does not run here any more (see above); $was is in use"
    check_configuration "$opt/$name" || die 78 "$name refuses the configuration (see above); $was is in use"
    [[ $(state) != inactive ]] || starting=''
    turn_over "$was" "$name"
    say "$name is in use, as before $was"
}

# remove PATH...: with all that is in it, but nothing of another file system, and no end where one is mounted there.
remove() {
    local path
    for path; do
        rm -rf --one-file-system -- "$path" || say "$path could not be removed whole (see above): umount what is mounted there, then sudo rm -r $path"
    done
}

uninstall() {
    local path
    if [[ -e $unit ]]; then
        if booted; then systemctl disable -q --now stillwatch; else systemctl disable -q stillwatch; fi
    fi
    rm -f -- "$unit"
    remove /run/stillwatch
    if booted; then systemctl daemon-reload && systemctl reset-failed stillwatch 2>/dev/null || true; fi
    [[ $(readlink -- "$command" || true) != "$opt/current/stillwatch" ]] || rm -- "$command"
    remove "$opt"
    rm -f -- "$log"
    if [[ $purge ]]; then
        remove "$etc" /var/lib/stillwatch /var/log/stillwatch "$unit.d"
        ! id -u "$user" >/dev/null 2>&1 || userdel "$user"
        ! getent group "$user" >/dev/null || groupdel "$user"
        say "removed, with everything that it had"
        return
    fi
    say "removed"
    for path in "$etc" /var/lib/stillwatch /var/log/stillwatch "$unit.d"; do
        [[ ! -e $path ]] || say "stays: $path"
    done
}

main() {
    local action='' word no_start='' purge='' starting=1 status=''
    for word; do
        case $word in
            -h | --help) help && exit ;;
            install | rollback | uninstall) [[ ! $action ]] || die 2 "one command only; see --help" && action=$word ;;
            --no-start) no_start=1 ;;
            --purge) purge=1 ;;
            *) die 2 "${word@Q}: not known; see --help" ;;
        esac
    done
    action=${action:-install}
    [[ ! $no_start || $action == install ]] || die 2 "--no-start is for install"
    [[ ! $purge || $action == uninstall ]] || die 2 "--purge is for uninstall"
    ((EUID == 0)) || die 71 "must be root: sudo $0 $action"
    type -P systemctl >/dev/null || die 69 "this system has no systemd"

    root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
    [[ ! -e $root/docs ]] || parts+=(docs)
    exec 8</etc
    flock -n 8 || die 75 "another call is at work"
    cd /
    [[ $action != install ]] || action=install_version
    "$action"
}

main "$@"   # at the end, and all in functions: uninstall may remove this very file
