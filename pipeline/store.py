"""Where evidence ends up: one small protocol, and the embedded default behind it, a directory.

The other store, Cloudflare R2, stands in `r2`: the only module that imports boto3 (35 MB), loaded by `open_store` when
R2 is configured and not before. Errors are returned to the caller as StoreError, classed by what to do; nothing is
tried again and nothing is logged here.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import hashlib
import importlib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

import msgspec

from pipeline import durable
from pipeline.model import ConfigError, StillwatchError, describe, printable

MAX_KEY_BYTES = 1024  # R2's limit
MAX_PART_BYTES = 200  # five parts, `alerts` and their slashes are 1,011; a file name may have 255
MAX_TEXT = 300  # characters of a foreign text in a message
ENVIRONMENT_PREFIX = "CLOUDFLARE_R2_"
_HOME = "alerts"
_SCRATCH = ".tmp"
_NAMES = ("ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "BUCKET", "PUBLIC_URL")
_OPTIONAL = "PUBLIC_URL"


class Kind(enum.Enum):
    """What to do about a failure."""

    RETRY = "retry"  # the network or the server: the same again, later
    PAUSE = "pause"  # a person must mend it: everything waits and is kept
    CLOCK = "clock"  # this machine's clock is wrong: everything waits for it
    DEAD_LETTER = "dead-letter"  # this one object will never be taken: set it aside, go on with the next


class StoreError(StillwatchError):
    """What failed, on which key, why, and the mend. The text is one line and holds no secret."""

    def __init__(self, op: str, key: str, cause: str, hint: str, kind: Kind, server_date_ns: int | None = None) -> None:
        super().__init__(f"{op} {one_line(key)}: {one_line(cause)}; {hint}")
        self.op = op
        self.key = key
        self.cause = one_line(cause)
        self.hint = hint
        self.kind = kind
        self.server_date_ns = server_date_ns  # wall time of the server's answer


class ObjectStore(Protocol):
    """Objects under keys. A key has parts between slashes, none of them empty, `.` or `..`. Failures: StoreError."""

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store `data`, in place of what was there. Once it returns, the object is durable; before, the old one is."""

    def get(self, key: str) -> bytes:
        """The whole object; DEAD_LETTER if there is none."""

    def head(self, key: str) -> int | None:
        """The object's size; None if there is none."""

    def delete(self, key: str) -> None:
        """Remove the object; it is no error if there is none."""

    def url(self, key: str, *, expires_s: int | None = None) -> str:
        """Where to find the object: presigned if `expires_s` is given (1 s to 7 days), else public, else a name."""

    def describe(self) -> str:
        """The store, for people."""


def open_store(settings: R2Settings | None, root: str) -> ObjectStore:
    """R2 if it is configured, else the directory `root`."""
    if settings is None:
        return LocalStore(root)
    store: ObjectStore = importlib.import_module("pipeline.r2").R2Store(settings)
    return store


def one_line(text: str) -> str:
    """A text of foreign origin, cut, with everything that does not print escaped."""
    cut = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."
    return printable(cut)


# -- keys -----------------------------------------------------------------------------------------------------------


def evidence_key(condition: str, host: str, source: str, incident_id: str, file_name: str) -> str:
    """`alerts/<condition>/<host>/<source>/<incident id>/<file name>`: no two fives share a key, whatever they hold."""
    return "/".join((_HOME, *map(_safe_part, (condition, host, source, incident_id, file_name))))


def _safe_part(text: str) -> str:
    """`text` as one part of a key; other texts give other parts.

    Percent-encoded but for [A-Za-z0-9._-]. "%" alone is the empty text and "%-" marks one that was too long: quoting
    makes neither.
    """
    part = quote(text.encode("utf-8", "surrogatepass"), safe="").replace("~", "%7E")
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    if len(part) <= MAX_PART_BYTES:
        return part
    digest = hashlib.sha256(part.encode()).hexdigest()[:32]
    return f"{part[: MAX_PART_BYTES - 34]}%-{digest}"


def check_key(op: str, key: str) -> None:
    """Raise StoreError unless `key` is one that every store takes."""
    if not key.isprintable() or not 0 < len(key.encode("utf-8")) <= MAX_KEY_BYTES:  # surrogates do not print either
        cause = f"a key is 1 to {MAX_KEY_BYTES} bytes that print"
    elif not {"", ".", ".."}.isdisjoint(key.split("/")):
        cause = "a part of the key is empty, . or .."
    else:
        return
    raise StoreError(op, key, cause, "make keys with evidence_key", Kind.DEAD_LETTER)


# -- the embedded store ---------------------------------------------------------------------------------------------


class StoredObject(msgspec.Struct, frozen=True, gc=False):
    """One object of a LocalStore, as the bounds need it."""

    mtime_ns: int  # wall clock
    key: str
    size: int


class LocalStore:
    """A directory with R2's layout. One thread puts; any may read and delete.

    A put writes a file of its own in `.tmp`, fsyncs it, renames it to its key and fsyncs every directory on the way: a
    power cut leaves the old object or the new one.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._scratch = os.path.join(self.root, _SCRATCH)
        self._numbers = itertools.count()
        self._durable = ""  # the directory whose own name is known to be on the disk

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """See ObjectStore. The content type is not kept: the key's suffix says it."""
        with self._failures("put", key):
            path = self._path("put", key)
            os.makedirs(self._scratch, mode=0o750, exist_ok=True)
            name = f"{os.getpid()}-{next(self._numbers)}"
            temporary = os.path.join(self._scratch, name)
            try:
                durable.write_files(self._scratch, {name: data})
                self._rename(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def _rename(self, temporary: str, path: str) -> None:
        directory = os.path.dirname(path)
        try:
            os.rename(temporary, path)
        except FileNotFoundError:
            self._durable = ""
            os.makedirs(directory, mode=0o750, exist_ok=True)
            os.rename(temporary, path)
        durable.sync_directory(directory)
        if self._durable != directory:
            for parent in self._parents(directory):
                durable.sync_directory(parent)
            with contextlib.suppress(PermissionError):  # whose it is, made the root
                durable.sync_directory(os.path.dirname(self.root))
            self._durable = directory

    def _parents(self, path: str) -> Iterator[str]:
        """The directories above `path`, up to the root."""
        while path != self.root:
            path = os.path.dirname(path)
            yield path

    def get(self, key: str) -> bytes:
        """See ObjectStore."""
        with self._failures("get", key):
            return Path(self._path("get", key)).read_bytes()

    def head(self, key: str) -> int | None:
        """See ObjectStore."""
        with self._failures("head", key):
            try:
                found = os.stat(self._path("head", key))
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None

    def delete(self, key: str) -> None:
        """See ObjectStore. Directories that this empties go too; a power cut may bring all of it back."""
        with self._failures("delete", key):
            path = self._path("delete", key)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                os.unlink(path)
            for directory in self._parents(path):
                if directory == self.root or not _remove_empty(directory):
                    return
                self._durable = ""

    def url(self, key: str, *, expires_s: int | None = None) -> str:
        """The file's URL; it never expires."""
        return Path(self._path("url", key)).as_uri()

    def describe(self) -> str:
        """See ObjectStore."""
        return f"local directory {self.root}"

    def clean(self) -> None:
        """Remove what a killed writer left in `.tmp`. For the one writer, before its first put."""
        with self._failures("clean", _SCRATCH), contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._scratch):
                os.unlink(os.path.join(self._scratch, name))

    def objects(self) -> list[StoredObject]:
        """All objects, oldest first."""
        with self._failures("list", ""):
            return sorted(self._walk(self.root), key=lambda item: (item.mtime_ns, item.key))

    def _walk(self, directory: str) -> Iterator[StoredObject]:
        try:
            entries = list(os.scandir(directory))
        except FileNotFoundError:  # deleted meanwhile, or the root before the first put
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.path != self._scratch:
                    yield from self._walk(entry.path)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    yield StoredObject(found.st_mtime_ns, entry.path[len(self.root) + 1 :], found.st_size)

    def free_bytes(self) -> int:
        """What others than root may still write to the root's file system."""
        with self._failures("statvfs", ""):
            return durable.free_bytes(self.root)

    def _path(self, op: str, key: str) -> str:
        check_key(op, key)
        if key.split("/", maxsplit=1)[0] == _SCRATCH:
            raise StoreError(
                op, key, "its first part is this store's own", "make keys with evidence_key", Kind.DEAD_LETTER
            )
        return os.path.join(self.root, key)

    @contextlib.contextmanager
    def _failures(self, op: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind, hint = _local_mend(error, op, self.root)
            raise StoreError(op, key, describe(error), hint, kind) from error


def _remove_empty(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError:
        return False
    return True


def _local_mend(error: OSError, op: str, root: str) -> tuple[Kind, str]:
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR):
        return Kind.DEAD_LETTER, "this key has no place here"
    if error.errno == errno.ENOENT and op == "get":
        return Kind.DEAD_LETTER, "there is no such object"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Kind.PAUSE, f"make {root} writable for this user"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Kind.RETRY, f"free space on the disk of {root}, or lower the bounds"
    return Kind.RETRY, f"check the disk of {root}"


# -- settings of the other ------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class R2Settings:
    """How to reach a bucket. Its text shows neither key: people swap the two."""

    endpoint: str  # https://ACCOUNT_ID.r2.cloudflarestorage.com
    access_key_id: str
    secret_access_key: str
    bucket: str
    public_url: str | None = None  # without a slash at the end
    ca_bundle: str | None = None  # a file; None: the certificates that botocore brings

    def __repr__(self) -> str:
        return f"R2Settings(endpoint={self.endpoint!r}, bucket={self.bucket!r}, public_url={self.public_url!r})"


def r2_settings(environment: Mapping[str, str], credentials_dir: str | None) -> R2Settings | None:
    """R2's settings, or None if there are none. Some but not all, or one that cannot be: ConfigError.

    Each is the variable `CLOUDFLARE_R2_<NAME>`, or a file in systemd's credentials directory, which goes first:
    `r2-endpoint`, `r2-access-key-id`, `r2-secret-access-key`, `r2-bucket`, `r2-public-url`.
    """
    places = {name: _read(name, environment, credentials_dir) for name in _NAMES}
    if not any(value for value, _ in places.values()):
        return None
    for name, (value, _) in places.items():
        if not value and name != _OPTIONAL:
            given = next(where for value, where in places.values() if value)
            raise ConfigError(
                f"{given} is set but {ENVIRONMENT_PREFIX}{name} is not; set it (or the credential "
                f"{_file_name(name)}), or none of them to keep evidence here"
            )
    for name, (value, where) in places.items():
        if value and not _RIGHT[name](value):
            raise ConfigError(f"{where} is not right; {_WRITE[name]}")  # the value may be a secret pasted one line off
    return R2Settings(
        endpoint=places["ENDPOINT"][0].rstrip("/"),
        access_key_id=places["ACCESS_KEY_ID"][0],
        secret_access_key=places["SECRET_ACCESS_KEY"][0],
        bucket=places["BUCKET"][0],
        public_url=places["PUBLIC_URL"][0].rstrip("/") or None,
        ca_bundle=_ca_bundle(environment),
    )


def _read(name: str, environment: Mapping[str, str], credentials_dir: str | None) -> tuple[str, str]:
    """A value and where it stands; white space around it is an editor's."""
    if credentials_dir:
        path = os.path.join(credentials_dir, _file_name(name))
        try:
            if value := Path(path).read_text(encoding="utf-8").strip():
                return value, f"credential {path}"
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ConfigError(f"credential {path}: {describe(error)}; see LoadCredential= in the unit") from None
        except UnicodeError:
            raise ConfigError(f"credential {path} is not text; {_WRITE[name]}") from None
    return environment.get(ENVIRONMENT_PREFIX + name, "").strip(), f"environment variable {ENVIRONMENT_PREFIX}{name}"


def _file_name(name: str) -> str:
    return "r2-" + name.lower().replace("_", "-")


def _ca_bundle(environment: Mapping[str, str]) -> str | None:
    for name in (ENVIRONMENT_PREFIX + "CA", "AWS_CA_BUNDLE"):
        if path := environment.get(name, "").strip():
            if not os.path.isfile(path):
                raise ConfigError(f"environment variable {name}: there is no file {path}; name a PEM file, or unset it")
            return path
    return None


def _is_key(value: str) -> bool:
    return re.fullmatch(r"[!-~]+", value) is not None


def _is_endpoint(value: str) -> bool:
    address = re.fullmatch(r"(https?)://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/?", value)
    return address is not None and (address[1] == "https" or address[2] in ("127.0.0.1", "localhost", "[::1]"))


def _is_public_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    clean = re.fullmatch(r"[!-~]+", value) and not (parts.query or parts.fragment or "@" in parts.netloc)
    return bool(clean and parts.scheme in ("http", "https") and parts.netloc)


_RIGHT = {
    "ENDPOINT": _is_endpoint,
    "ACCESS_KEY_ID": _is_key,
    "SECRET_ACCESS_KEY": _is_key,
    "BUCKET": lambda value: re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value) is not None,
    "PUBLIC_URL": _is_public_url,
}
_WRITE = {
    "ENDPOINT": "write it like https://ACCOUNT_ID.r2.cloudflarestorage.com, without the bucket",
    "ACCESS_KEY_ID": "copy it from the R2 API token: one word",
    "SECRET_ACCESS_KEY": "copy it from the R2 API token: one word",
    "BUCKET": "a bucket's name is 3 to 63 of a-z, 0-9, - and .",
    "PUBLIC_URL": "write it like https://evidence.example.com",
}
