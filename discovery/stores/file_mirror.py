"""What a file store holds, as last looked at, and the history of its changes.

Level-triggered: whoever hears of a change says where to look again; what is there now is compared with
what was known. Looking costs the size of what is looked at, and an unchanged file is not read again.
"""

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterable

import structlog

from discovery.stores.base import Change, Entry, Snapshot
from discovery.stores.file_lease import LEASE_BYTES, BootClock, Lease, decode
from discovery.stores.file_tree import (
    File,
    Identity,
    Tree,
    ancestors,
    is_key,
    read_file,
    shown,
    stamp_of,
    translated,
)
from discovery.stores.history import History

log = structlog.get_logger(__name__)

HISTORY_CHANGES = 10_000

TRUNCATED_NS = 1_000_000_000
"""A file emptied in place is believed to be empty only after this long: mostly it is being written."""

ROOT = ""


class Mirror:
    """Thread-safe. Revisions are nanoseconds since 1970, forced to grow.

    A change has the time at which the look that found it began. So a revision of one process means to
    another no more than that process had seen.
    """

    def __init__(self, tree: Tree, clock: BootClock, history_changes: int = HISTORY_CHANGES) -> None:
        """Look at everything once. Raises StoreUnavailable or StoreRefused."""
        self._tree = tree
        self._clock = clock
        self._lock = threading.RLock()
        self._names: dict[str, set[str]] = {}
        self._files: dict[str, File] = {}
        self._visible: dict[str, Entry] = {}
        self._touched: set[str] = set()
        self._half_written: set[str] = set()
        self._leases: dict[str, tuple[tuple[int, ...], Lease | None]] = {}
        self._expired: frozenset[str] = frozenset()
        self._expired_claims: dict[str, set[Identity]] = {}
        self.history = History(time.time_ns(), history_changes)
        self._look_at([ROOT])
        self._settle()

    # -- reading

    def snapshot(self, prefix: str, *, look: bool = True) -> Snapshot:
        """What is below ``prefix``, after looking at it."""
        key = prefix.rstrip("/")
        with self._lock:
            if look:
                self.refresh([key] if key == ROOT or is_key(key) else [])
            entries = self._visible.values()
            return Snapshot(
                self.history.revision,
                {entry.key: entry for entry in entries if entry.key.startswith(prefix)},
            )

    def expired(self) -> dict[str, Lease]:
        """Leases that have expired and whose files are still there, by id."""
        with self._lock:
            found = {id_: self._leases[id_][1] for id_ in self._expired}
            return {id_: lease for id_, lease in found.items() if lease is not None}

    def due_seconds(self) -> float | None:
        """When to refresh, without being told of a change; None if never."""
        with self._lock:
            dues = [0.1] if self._half_written else []
            for id_, (_, lease) in self._leases.items():
                if lease is not None and id_ not in self._expired:
                    dues.append(max(0.0, lease.left_seconds(self._clock)))
            return min(dues, default=None)

    def refresh(self, keys: Iterable[str] = ()) -> None:
        """Look at these keys, with all below them, and at the leases; log what changed."""
        with self._lock:
            began = time.time_ns()
            self._tree.check()
            again, self._half_written = self._half_written, set()
            self._look_at([*keys, *again])
            changes = self._settle()
            if changes:
                self.history.append(max(began, self.history.revision + 1), changes)

    # -- looking

    def _look_at(self, keys: Iterable[str]) -> None:
        # Leases first: one is written before its keys, and removed after them.
        wanted = {*keys, *self._look_at_leases()}
        for key in sorted(wanted):
            if wanted.isdisjoint(ancestors(key)) and (key == ROOT or ROOT not in wanted):
                self._look(key)

    def _look(self, key: str) -> None:
        for parent in ancestors(key):
            if not self._is_directory(parent):
                key = parent
                break
        if key == ROOT or self._is_directory(key):
            self._look_into(key)
        else:
            self._forget_below(key)
            self._read(key, None)

    def _is_directory(self, key: str) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(f"{self._tree.root}{key}").st_mode)
        except OSError:
            return False

    def _look_into(self, top: str) -> None:
        """A directory and all below it."""
        pending = [top]
        while pending:
            directory = pending.pop()
            found = self._list(directory)
            if found is None:
                continue
            self._link(directory)
            self._drop_file(directory)
            for name in self._names.get(directory, set()) - found.keys():
                self._forget(f"{directory}/{name}")
            self._names[directory] = set(found)
            for name, status in found.items():
                key = f"{directory}/{name}"
                if status is None:
                    pending.append(key)
                else:
                    self._forget_below(key)
                    self._read(key, status)

    def _list(self, directory: str) -> dict[str, os.stat_result | None] | None:
        """Names in a directory, with the status of what is no directory. None when it cannot be listed.

        What is known below a directory that cannot be listed stays, and its own key says why.
        """
        path = f"{self._tree.root}{directory}"
        found: dict[str, os.stat_result | None] = {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name[0] == ".":
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        is_directory = entry.is_dir(follow_symlinks=False)
                        found[entry.name] = None if is_directory else entry.stat(follow_symlinks=False)
        except OSError as error:
            if directory == ROOT:
                with translated(path):
                    raise
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                self._forget(directory)
            else:
                self._keep_unreadable(directory, error.strerror or str(error))
            return None
        return found

    def _keep_unreadable(self, directory: str, reason: str) -> None:
        entry = Entry(shown(directory), "", 0, 0, f"cannot be listed: {reason}")
        self._link(directory)
        self._keep(directory, File(entry, (0, 0), (), settled=False))

    def _read(self, key: str, status: os.stat_result | None) -> None:
        known = self._files.get(key)
        if known and known.settled and status and known.stamp == stamp_of(status):
            return
        file = read_file(f"{self._tree.root}{key}", key, status)
        if file is None:
            self._forget(key)
        elif known and self._is_half_written(known, file):
            self._half_written.add(key)
        else:
            self._link(key)
            self._keep(key, file)

    @staticmethod
    def _is_half_written(known: File, file: File) -> bool:
        """Whether a shell or an editor has just emptied the file that it is going to write."""
        inode, mtime_ns = file.identity
        emptied = known.entry.value != "" and file.entry.value == "" and file.entry.error is None
        return emptied and inode == known.identity[0] and abs(time.time_ns() - mtime_ns) < TRUNCATED_NS

    def _keep(self, key: str, file: File) -> None:
        self._files[key] = file
        self._touched.add(key)

    def _drop_file(self, key: str) -> None:
        if self._files.pop(key, None) is not None:
            self._touched.add(key)

    def _link(self, key: str) -> None:
        """Make a key known to the directories above it."""
        while key:
            key, _, name = key.rpartition("/")
            names = self._names.setdefault(key, set())
            if name in names:
                return
            names.add(name)

    def _forget(self, key: str) -> None:
        """There is nothing at ``key`` any more, nor below it."""
        parent, _, name = key.rpartition("/")
        self._names.get(parent, set()).discard(name)
        self._drop_file(key)
        self._forget_below(key)

    def _forget_below(self, key: str) -> None:
        pending = [key]
        while pending:
            directory = pending.pop()
            for name in self._names.pop(directory, ()):
                self._drop_file(f"{directory}/{name}")
                pending.append(f"{directory}/{name}")

    # -- leases

    def _look_at_leases(self) -> set[str]:
        """Read leases that changed; the keys of those that are gone, which are to be looked at."""
        found: dict[str, tuple[tuple[int, ...], Lease | None]] = {}
        with contextlib.suppress(FileNotFoundError), translated(self._tree.sessions):
            for id_ in os.listdir(self._tree.sessions):
                if not id_.startswith("."):
                    known = self._leases.get(id_)
                    fresh = self._read_lease(id_, known)
                    if fresh is not None:
                        found[id_] = fresh
        gone = [lease for id_, (_, lease) in self._leases.items() if id_ not in found and lease is not None]
        self._leases = found
        return {key for lease in gone for key in lease.keys}

    def _read_lease(
        self, id_: str, known: tuple[tuple[int, ...], Lease | None] | None
    ) -> tuple[tuple[int, ...], Lease | None] | None:
        path = f"{self._tree.sessions}/{id_}"
        stamp: tuple[int, ...] = ()
        try:
            stamp = stamp_of(os.lstat(path))
            if known is not None and known[0] == stamp:
                return known
            return stamp, read_lease(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if known is None or known[1] is not None:
                log.warning("lease_unreadable", path=path, error=str(error), consequence="its keys stay")
            return stamp, None

    # -- what readers see

    def _settle(self) -> list[Change]:
        """Bring what is visible up to date; what changed of it."""
        self._settle_expiry()
        changes = []
        for key in sorted(self._touched):
            file = self._files.get(key)
            hidden = file is not None and file.identity in self._expired_claims.get(key, ())
            entry = file.entry if file is not None and not hidden else None
            before = self._visible.get(key)
            if entry == before:
                continue
            if entry is None:
                del self._visible[key]
            else:
                self._visible[key] = entry
            changes.append(Change(shown(key), entry))
        self._touched.clear()
        return changes

    def _settle_expiry(self) -> None:
        expired = {
            id_: lease
            for id_, (_, lease) in self._leases.items()
            if lease is not None and lease.left_seconds(self._clock) <= 0
        }
        if self._expired == expired.keys():
            return
        before = set(self._expired_claims)
        self._expired = frozenset(expired)
        self._expired_claims = {}
        for lease in expired.values():
            for key, identity in lease.keys.items():
                self._expired_claims.setdefault(key, set()).add(identity)
        self._touched |= before | set(self._expired_claims)


def read_lease(path: str) -> Lease:
    """The lease at ``path``. Raises OSError, or ValueError when it is none."""
    with open(path, "rb", opener=_open_plain) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is no file")
        return decode(file.read(LEASE_BYTES))


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
