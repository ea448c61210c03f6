"""Checks of directories: where the service keeps its state, its board and its secrets, and who may reach them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from pipeline.checks.checkup import AS_ROOT, Finding, counted, fail, ok, skipped, together, unknown, warn
from pipeline.checks.subject import Subject
from pipeline.instance import refuse_shared_directories
from pipeline.model import ConfigError
from pipeline.mounts import block_device, file_system_type, is_blind, is_memory
from pipeline.settings import Settings
from pipeline.spool import LEAST_BYTES
from pipeline.store import r2_settings

MIB = 2**20
LEAST_INODES = 1000


# -- the configuration ------------------------------------------------------------------------------------------------


def configuration(subject: Subject) -> list[Finding]:
    """What can be wrong with settings that are valid one by one."""
    return together("configuration", _of_configuration(subject))


def _of_configuration(subject: Subject) -> Iterator[Finding]:
    name, settings = "configuration", subject.settings
    yield ok(name, f"{subject.config_file or 'no file'}: {counted(len(settings.source), 'source')}")
    if not settings.source:
        mend = "name one: --source NAME=DIR, or --config FILE"
        yield warn(name, "no source is configured", "there is nothing to watch; the rest was checked without", mend)
    try:
        refuse_shared_directories(settings)
        if not subject.closed_secret():
            r2_settings(subject.environment, subject.credentials_dir)
    except ConfigError as error:
        yield fail(name, str(error), "the service does not start with it (exit code 78)", "correct it")


# -- directories of the service ---------------------------------------------------------------------------------------


def state_directory(subject: Subject) -> list[Finding]:
    """Where incidents and evidence go: on a disk, writable, with room for what the bounds allow."""
    return together("state directory", _of_state_directory(subject))


def _of_state_directory(subject: Subject) -> Iterator[Finding]:
    name, settings = "state directory", subject.settings
    path = _existing(settings.state_dir)
    kind = file_system_type(path)
    yield ok(name, f"{settings.state_dir} on {describe_place(path)}")
    yield from _rights(name, subject, settings.state_dir)
    if is_memory(kind):
        why = "a boot or a power cut takes all incidents and their evidence away"
        yield warn(name, f"{settings.state_dir} is in memory", why, "name a directory on a disk with --state-dir")
    if is_blind(kind):
        why = "SQLite's locks and write-ahead log need a disk of this machine"
        yield warn(name, f"{settings.state_dir} is on {kind}", why, "name a directory on a disk with --state-dir")
    yield _room_for_evidence(subject, path)


def _room_for_evidence(subject: Subject, path: str) -> Finding:
    name, settings = "state directory", subject.settings
    found = os.statvfs(path)
    free, least = found.f_bavail * found.f_frsize, settings.min_free_bytes
    bounds = settings.spool_max_bytes + (0 if has_r2(subject) else settings.store_max_bytes)
    mend = "make room, or lower spool_max_bytes, store_max_bytes and min_free_bytes"
    if free < least:
        why = f"evidence is given up, oldest first, down to the newest {LEAST_BYTES // MIB} MB; incidents stay recorded"
        return fail(name, f"{free // MIB} MB free, less than min_free_bytes ({least // MIB} MB)", why, mend)
    if found.f_files and found.f_favail < LEAST_INODES:
        return fail(name, f"{found.f_favail} inodes free", "evidence cannot be written without them", "delete files")
    if free < least + bounds:
        why = "the oldest evidence gives way before the bounds are reached"
        text = f"{free // MIB} MB free; bounds and min_free_bytes may take {(least + bounds) // MIB} MB"
        return warn(name, text, why, mend)
    return ok(name, f"{free / 2**30:.1f} GB free")


def runtime_directory(subject: Subject) -> list[Finding]:
    """Where board, captured frames and evidence in hand are: in memory, ours, with room."""
    return together("runtime directory", _of_runtime_directory(subject))


def _of_runtime_directory(subject: Subject) -> Iterator[Finding]:
    name, settings = "runtime directory", subject.settings
    path = _existing(settings.runtime_dir)
    yield ok(name, f"{settings.runtime_dir} on {describe_place(path)}")
    yield from _rights(name, subject, settings.runtime_dir)
    owner = os.stat(path).st_uid
    if path == settings.runtime_dir and owner not in (0, subject.account.uid):
        mend = f"sudo chown {subject.account.name} {path}, or name another with --runtime-dir"
        yield fail(name, f"{path} belongs to another user (number {owner})", "the service refuses it", mend)
    if not is_memory(file_system_type(path)):
        why = "the board is written every second, and a card wears out by it"
        yield warn(name, f"{settings.runtime_dir} is not in memory", why, "name one on a tmpfs with --runtime-dir")
    found = os.statvfs(path)
    free, wanted = found.f_bavail * found.f_frsize, _in_memory(settings)
    text = f"{free // MIB} MB free"
    if free < wanted:
        why = "evidence of the next incidents gives way before hold_max_bytes is reached, captured frames before keep_s"
        mend = f"sudo mount -o remount,size=... {_mount_point(path)}, or lower max_bytes and hold_max_bytes"
        yield warn(name, f"{text}; what is to be kept there may take {wanted // MIB} MB", why, mend)
    yield ok(name, text)


def _in_memory(settings: Settings) -> int:
    """Bytes of the bounds of what is below the runtime directory, less what is there already."""
    inside = [s for s in settings.source if s.capture and s.dir.startswith(f"{settings.runtime_dir}/")]
    used = sum(_size(source.dir) for source in inside) + _size(os.path.join(settings.runtime_dir, "hold"))
    return max(0, settings.hold_max_bytes + sum(source.max_bytes for source in inside) - used)


def _size(directory: str) -> int:
    try:
        with os.scandir(directory) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0


def _rights(name: str, subject: Subject, directory: str) -> Iterator[Finding]:
    """Whether the service's user may use a directory, or make it."""
    account, path = subject.account, _existing(directory)
    if path != directory and subject.is_installed:
        return  # systemd makes it
    if not os.path.isdir(path):
        mend = f"name another directory, or move {path} away"
        yield fail(name, f"{path} is no directory", "the service cannot start without it (exit code 78)", mend)
        return
    may = account.may(path)
    if may is None:
        yield unknown(name, f"only root can find out what {account.name} may do in {path}", AS_ROOT)
    elif not may:
        text = f"{account.name} may not write in {path}"
        if path != directory:
            text += f", where {directory} is to be made"
        mend = f"sudo install -d -o {account.name} -m 0750 {directory}"
        yield fail(name, text, "the service cannot start without it (exit code 78)", mend)
    elif foreign := next(_foreign_files(directory, account.uid), ""):
        mend = f"sudo chown -R {account.name}: {directory}"
        yield fail(name, f"{foreign} belongs to another user", "it was made by a run as another user", mend)


def _foreign_files(directory: str, uid: int) -> Iterator[str]:
    """Files of other users, of whom root may be one: whoever ran it as root once left them."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if uid and status.st_uid != uid and stat.S_ISREG(status.st_mode):
                    yield entry.path
    except OSError:
        return


def files(subject: Subject) -> list[Finding]:
    """Whether log and metrics file can be written, where they are asked for."""
    name = "files"
    paths = {key: getattr(subject.settings, key) for key in ("log_file", "metrics_file")}
    found = [_file(name, subject, key, path) for key, path in paths.items() if path]
    return together(name, found) if found else [skipped(name, "neither log_file nor metrics_file is set")]


def _file(name: str, subject: Subject, key: str, path: str) -> Finding:
    directory, account = os.path.dirname(path), subject.account
    why = "without it the service does not start (exit code 78)"
    if not os.path.isdir(directory):
        mend = f"sudo install -d -o {account.name} -m 0755 {directory}"
        return fail(name, f"{key}: there is no directory {directory}", why, mend)
    if account.may(directory) is False:
        why = why if key == "log_file" else "Prometheus sees nothing of it"
        return fail(name, f"{key}: {account.name} may not write in {directory}", why, f"choose another {key}")
    return _metrics_file(name, path) if key == "metrics_file" else ok(name, f"{key}: {path}")


def _metrics_file(name: str, path: str) -> Finding:
    """Whether node_exporter, which is another user, can find and read it; and what it is written on."""
    unseen, directory = "node_exporter does not see it", os.path.dirname(path)
    if not path.endswith(".prom"):
        return warn(name, f"metrics_file: {path} does not end in .prom", unseen, "call it stillwatch.prom")
    if closed := _closed_to_others(directory):
        mend = f"sudo chmod o+rx {closed}, or name a file in a directory of its own, such as /run/textfile"
        return warn(name, f"metrics_file: {closed} is closed to other users", unseen, mend)
    if os.path.isfile(path) and not os.stat(path).st_mode & stat.S_IROTH:
        return warn(name, f"metrics_file: {path} may not be read by other users", unseen, f"sudo chmod o+r {path}")
    if not is_memory(file_system_type(directory)):
        why = "it is written every 15 s: an SD card wears out by it"
        return warn(name, f"metrics_file: {path} is not in memory", why, "name one on a tmpfs")
    return ok(name, f"metrics_file: {path}")


def _closed_to_others(directory: str) -> str:
    """The directory itself, if others may not list it (the collector looks for *.prom), or one above it that they may
    not pass; empty if there is none."""
    path, wanted = os.path.realpath(directory), stat.S_IROTH | stat.S_IXOTH
    while os.stat(path).st_mode & wanted == wanted:
        if path == os.path.dirname(path):
            return ""
        path, wanted = os.path.dirname(path), stat.S_IXOTH
    return path


# -- secrets ----------------------------------------------------------------------------------------------------------


def secrets(subject: Subject) -> list[Finding]:
    """Who else may read the keys of R2 and the webhook's URL."""
    found = list(_of_secrets(subject))
    return together("secrets", found) if found else [skipped("secrets", "none are kept in files")]


def _of_secrets(subject: Subject) -> Iterator[Finding]:
    name, why = "secrets", "whoever reads it can write to your bucket, or speak in your name"
    directory = subject.credentials_dir
    if directory and not os.path.isdir(directory):
        directory = None
    if directory and not os.access(directory, os.R_OK | os.X_OK, effective_ids=True):
        yield unknown(name, f"{directory} may not be read by you, as it should be", AS_ROOT)
    elif directory:
        open_to_all = [path for path in _files(directory) if os.stat(path).st_mode & (stat.S_IRWXO | stat.S_IRWXG)]
        if open_to_all:
            yield warn(name, f"{open_to_all[0]} may be read by others", why, f"sudo chmod 600 {directory}/*")
        else:
            yield ok(name, f"{directory}: closed to others")
    if subject.settings.webhook_url and subject.config_file:
        if os.stat(subject.config_file).st_mode & stat.S_IROTH:
            text = f"{subject.config_file} holds webhook_url and may be read by everybody"
            yield warn(name, text, why, f"sudo chmod o-r {subject.config_file}")
        else:
            yield ok(name, f"{subject.config_file}: closed to others")


def _files(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.path for entry in entries if entry.is_file())


# -- what several of them ask -----------------------------------------------------------------------------------------


def has_r2(subject: Subject) -> bool:
    """Whether evidence goes to R2, as far as this process may know."""
    try:
        return r2_settings(subject.environment, subject.credentials_dir) is not None
    except ConfigError:
        return True


def describe_place(path: str) -> str:
    """`tmpfs`, or `ext4 (mmcblk0p2, an SD card)`."""
    kind, device = file_system_type(path), block_device(path)
    card = ", an SD card" if device.startswith("mmcblk") else ""
    return f"{kind} ({device}{card})" if device else kind


def _existing(path: str) -> str:
    """The path, or the nearest directory above it that is there."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def _mount_point(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
