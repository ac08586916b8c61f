"""What a registrator wrote, on disk: the proof, after a crash, that a key in the store is its own.

A name proves nothing, for two nodes may have one by mistake; nor does the engine's id, for machines made from
one image share that too. What this machine noted down before it wrote it, since it booted, does.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import structlog

from discovery.schema import split_key

log = structlog.get_logger(__name__)

VALID_SECONDS = 3600.0
"""After so long without a registrator what it wrote has expired: a key that is there is another's."""

SPARE_LINES = 1000
"""How many lines more than needed make the file worth writing anew."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FORMAT = 1


class Journal:
    """The values that were written to each key and may be there still. Not thread-safe.

    Without ``path`` it is kept for this life only. A line is added before the store is written to, and is
    not synced: it must survive the death of the process, and after that of the machine all keys expire
    before we can be back. What cannot be read, or is of another boot or store, counts as nothing.
    """

    def __init__(self, path: Path | None = None, store_url: str = "") -> None:
        self.written: dict[str, tuple[str, ...]] = {}
        self._path = path
        self._head = {"format": _FORMAT, "boot": _boot_id(), "store": store_url}
        self._file: int | None = None
        self._lines = 0
        self._failed = False

    def open(self) -> None:
        """Read what a former life wrote, and lock the file; without it if another process has it."""
        if self._path is None or self._file is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if 0 <= time.time() - os.fstat(self._file).st_mtime < VALID_SECONDS:
                self._replay(self._path.read_text(encoding="utf-8").splitlines())
            self._rewrite()
        except (OSError, ValueError) as error:
            self._give_up(error)

    @property
    def services(self) -> set[str]:
        """Whose keys were written."""
        return {split_key(key)[0] for key in self.written}

    def note(self, values: Mapping[str, str]) -> None:
        """These are about to be written; what is there may be the former value as well as the new one."""
        for key, value in values.items():
            if value not in self.written.get(key, ()):
                self.written[key] = (*self.written.get(key, ()), value)
        self._append([[key, value] for key, value in values.items()])

    def settle(self, values: Mapping[str, str]) -> None:
        """These have been written: no other value of ours is there any more."""
        self.written.update({key: (value,) for key, value in values.items()})

    def forget(self, keys: Iterable[str]) -> None:
        """These are gone, or another's."""
        gone = [key for key in keys if self.written.pop(key, None) is not None]
        self._append([[key] for key in gone])

    def keep(self) -> None:
        """Say that its registrator lives."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.utime(self._file)

    def close(self) -> None:
        """Unlock the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # -- the file: a head, then a line for each note

    def _replay(self, lines: list[str]) -> None:
        if not lines or json.loads(lines[0]) != self._head:
            return
        for line in lines[1:]:
            try:
                match json.loads(line):
                    case [str(key), str(value)]:
                        if value not in self.written.get(key, ()):
                            self.written[key] = (*self.written.get(key, ()), value)
                    case [str(key)]:
                        self.written.pop(key, None)
            except ValueError:
                # The last line, torn by the crash: it was not written to the store then.
                continue

    def _rewrite(self) -> None:
        assert self._file is not None
        os.ftruncate(self._file, 0)
        self._lines = 0
        notes = [[key, value] for key, values in self.written.items() for value in values]
        self._append([self._head, *notes])

    def _append(self, lines: Sequence[object]) -> None:
        if self._file is None or not lines:
            return
        try:
            os.write(self._file, "".join(json.dumps(line) + "\n" for line in lines).encode())
            self._lines += len(lines)
            if self._lines > 4 * len(self.written) + SPARE_LINES:
                self._rewrite()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._failed:
            log.warning("journal_not_kept", path=str(self._path), error=str(error))
        self._failed = True
        self.close()


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        # Not a Linux /proc: then nothing outlives the process.
        return f"pid {os.getpid()}"
