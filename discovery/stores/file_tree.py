"""The directory of a file store: keys as paths, files as entries, atomic writes. No state but the disk's.

    DIR/services/web/hosts/0      a key: its value, and a final newline that is no part of the value
    DIR/.sessions/<id>            a lease, see file_lease.py
    DIR/.sessions/.<random>       being written, renamed into place when whole
    DIR/.lock                     held (flock) by whoever of us writes or removes

Names with a leading dot are never keys. Symbolic links are not followed.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from discovery.errors import StoreRefused, StoreUnavailable
from discovery.stores.base import Entry

VALUE_BYTES = 64 * 1024
"""A longer value is neither written nor read."""

SETTLED_NS = 2_000_000_000
"""A file changed this long before it was read shows any later change in its time stamps, however coarse."""

LOCK_POLL_SECONDS = 0.01

SESSIONS = ".sessions"

Identity = tuple[int, int]
"""Inode and modification time: changes when anyone writes the file anew, in place or not."""

_REFUSALS = {
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
    errno.EXDEV,
}

_KINDS = {
    stat.S_IFLNK: "a symbolic link, which is not followed",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file as it was read. ``settled``: whoever finds the same ``stamp`` again need not read it again."""

    entry: Entry
    identity: Identity
    stamp: tuple[int, ...]
    settled: bool


@dataclass(frozen=True, slots=True)
class Staged:
    """A key's new file, whole but not yet in its place."""

    key: str
    path: str
    identity: Identity


@contextlib.contextmanager
def translated(path: str | Path) -> Iterator[None]:
    """Operating system errors about ``path`` as store errors."""
    try:
        yield
    except OSError as error:
        kind = StoreRefused if error.errno in _REFUSALS else StoreUnavailable
        raise kind(f"{error.filename2 or error.filename or path}: {error.strerror or error}") from error


def is_key(key: str) -> bool:
    """Whether ``key`` can be a file of the tree, as far as its text tells."""
    try:
        names = os.fsencode(key).split(b"/")
    except UnicodeEncodeError:
        return False
    return names[0] == b"" and all(
        name and name[0] != ord(".") and len(name) <= 255 and b"\0" not in name for name in names[1:]
    )


def shown(key: str) -> str:
    """A key with bytes that are no UTF-8 as backslash escapes."""
    return os.fsencode(key).decode(errors="backslashreplace")


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What tells one state of a file from another, but for writes within one tick of its time stamps."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode


def read_file(path: str, key: str, status: os.stat_result | None = None) -> File | None:
    """The file at ``path`` as an entry, with ``error`` set when it cannot be read; None when it is gone.

    Never blocks, whatever kind of file it is, and never reads much more than VALUE_BYTES. ``status`` is what
    lstat has just said of it, if it was asked.
    """
    data, error = b"", None
    try:
        status = status or os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            data, status = _read_data(path)
        if not stat.S_ISREG(status.st_mode):
            error = f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as failure:
        if status is None:
            return None
        error = failure.strerror or str(failure)
    data = data.removesuffix(b"\n")
    if len(data) > VALUE_BYTES:
        data, error = b"", f"is longer than {VALUE_BYTES // 1024} KiB"
    name = shown(key)
    if name != key:
        error = "its name is no UTF-8"
    # Our own writes carry the time of creation on in mtime; what happened last is in ctime.
    modified = max(status.st_mtime_ns, status.st_ctime_ns)
    entry = Entry(name, data.decode(errors="backslashreplace"), status.st_mtime_ns, modified, error)
    settled = time.time_ns() - status.st_ctime_ns > SETTLED_NS
    return File(entry, (status.st_ino, status.st_mtime_ns), stamp_of(status), settled)


def _read_data(path: str) -> tuple[bytes, os.stat_result]:
    """Content and status of a regular file; of anything else that it has become meanwhile, the status."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return b"", status
        # Two bytes more: the final newline, and one that shows that it is too long.
        return os.read(descriptor, VALUE_BYTES + 2), status
    finally:
        os.close(descriptor)


class Tree:
    """The directory, and what may be done in it. Thread-safe."""

    def __init__(self, directory: Path, timeout_seconds: float) -> None:
        self.directory = directory
        self.root = str(directory)
        self.sessions = f"{self.root}/{SESSIONS}"
        self._timeout_seconds = timeout_seconds
        self._prepared = False
        self._seen_alive = False
        self._closing = threading.Event()

    def close(self) -> None:
        """End any wait for the lock."""
        self._closing.set()

    def check(self) -> os.stat_result:
        """The directory's status. Raises StoreUnavailable when it is gone.

        It is made at the first call, and never again: later on its absence may be a lost mount, and so may
        its emptiness, for once in use it holds at least ``.sessions``.
        """
        with translated(self.root):
            if not self._prepared:
                self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                # Where nothing can be written, it can still be read.
                with contextlib.suppress(OSError):
                    os.mkdir(self.sessions, 0o755)
                self._prepared = True
            try:
                status = os.stat(self.root)
            except FileNotFoundError:
                raise StoreUnavailable(
                    f"{self.root}: the store's directory is gone; mount it again, or begin anew with"
                    f" mkdir -p {self.root}/services"
                ) from None
            alive = os.path.isdir(self.sessions) or any(name[0] != "." for name in os.listdir(self.root))
        if self._seen_alive and not alive:
            raise StoreUnavailable(
                f"{self.root}: the store's directory is empty, as when it is not mounted; mount it again, or"
                f" begin anew with mkdir -p {self.root}/services"
            )
        self._seen_alive = alive
        return status

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes' writers. Raises StoreUnavailable when that takes too long."""
        self.check()
        deadline = time.monotonic() + self._timeout_seconds
        while (lock := self._lock()) is None:
            if self._closing.wait(LOCK_POLL_SECONDS) or time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"{self.root}/.lock: held by another process for {self._timeout_seconds:g} s"
                )
        try:
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def try_locked(self) -> Iterator[bool]:
        """As ``locked``, without waiting; says whether it got the lock."""
        lock = self._lock()
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    def _lock(self) -> int | None:
        """A descriptor that holds the lock until it is closed; None when another has it."""
        path = f"{self.root}/.lock"
        with translated(path):
            # Opened for reading, so that users who share the store need not share the file.
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError:
                os.close(descriptor)
                raise
        return descriptor

    # -- under the lock

    def stage(self, values: Mapping[str, str], *, durable: bool) -> list[Staged]:
        """Write values beside the tree. Raises StoreRefused for a bad key or value, having written none."""
        encoded = {key: _encode(key, value) for key, value in values.items()}
        staged: list[Staged] = []
        try:
            for parent in sorted({parent for key in encoded for parent in ancestors(key)}):
                self._make_directory(parent)
            for key, data in encoded.items():
                staged.append(Staged(key, *self.write_beside(data, self._carried_time(key), durable)))
        except BaseException:
            self.unstage(staged)
            raise
        return staged

    def write_beside(self, data: bytes, mtime_ns: int | None, durable: bool) -> tuple[str, Identity]:
        """A new file with ``data``, out of sight; its path, and its identity, which a rename keeps."""
        path = f"{self.sessions}/.{secrets.token_hex(8)}"
        with translated(path):
            os.makedirs(self.sessions, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                with open(descriptor, "wb", buffering=0) as file:
                    file.write(data)
                    if mtime_ns is not None:
                        os.utime(descriptor, ns=(mtime_ns, mtime_ns))
                    if durable:
                        os.fsync(descriptor)
                    status = os.fstat(descriptor)
            except OSError:
                os.unlink(path)
                raise
        return path, (status.st_ino, status.st_mtime_ns)

    def commit(self, staged: list[Staged]) -> None:
        """Put staged files in their places."""
        for position, each in enumerate(staged):
            try:
                with translated(f"{self.root}{each.key}"):
                    os.rename(each.path, f"{self.root}{each.key}")
            except (StoreRefused, StoreUnavailable):
                self.unstage(staged[position:])
                raise

    def unstage(self, staged: list[Staged]) -> None:
        """Drop staged files."""
        for each in staged:
            with contextlib.suppress(OSError):
                os.unlink(each.path)

    def remove(self, key: str, identity: Identity | None = None) -> None:
        """Remove a key's file, and directories that this empties; with ``identity`` only that very file."""
        if not is_key(key):
            return
        path = f"{self.root}{key}"
        with translated(path):
            try:
                status = os.lstat(path)
                if stat.S_ISDIR(status.st_mode) or not self._has_real_parents(key):
                    return
                if identity in (None, (status.st_ino, status.st_mtime_ns)):
                    os.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                return
        parent = key.rpartition("/")[0]
        with contextlib.suppress(OSError):
            # The topmost directory stays: people look there.
            while parent.count("/") > 1:
                os.rmdir(f"{self.root}{parent}")
                parent = parent.rpartition("/")[0]

    def sweep(self) -> None:
        """Remove what writers that crashed have left beside the tree."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.sessions):
                if name.startswith("."):
                    os.unlink(f"{self.sessions}/{name}")

    def _carried_time(self, key: str) -> int | None:
        """The mtime for a file that replaces another: the key's age, and yet another identity."""
        try:
            status = os.lstat(f"{self.root}{key}")
        except OSError:
            return None
        return status.st_mtime_ns + 1 if stat.S_ISREG(status.st_mode) else None

    def _make_directory(self, key: str) -> None:
        path = f"{self.root}{key}"
        with translated(path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o755)
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise StoreRefused(f"{path}: is no directory, so no key can be below it")

    def _has_real_parents(self, key: str) -> bool:
        return all(stat.S_ISDIR(os.lstat(f"{self.root}{parent}").st_mode) for parent in ancestors(key))


def ancestors(key: str) -> Iterator[str]:
    """``/a/b/c`` → ``/a``, ``/a/b``."""
    end = key.find("/", 1)
    while end > 0:
        yield key[:end]
        end = key.find("/", end + 1)


def _encode(key: str, value: str) -> bytes:
    try:
        key.encode()
        data = value.encode()
    except UnicodeEncodeError as error:
        raise StoreRefused(f"{key!r}: key or value cannot be written as UTF-8") from error
    if not is_key(key):
        raise StoreRefused(
            f"{key!r}: a key of a file store is /NAME/…, each name 1 to 255 bytes, without a leading dot"
        )
    if len(data) > VALUE_BYTES:
        raise StoreRefused(f"{key!r}: a value of a file store is at most {VALUE_BYTES // 1024} KiB")
    return data + b"\n"
