"""The configurations on disk, each in a directory of its own, swapped in as a whole.

candidate/            being written and checked; one that HAProxy refused stays, for people to look at
generations/12/       one that passed the check
current -> …/12       what HAProxy loads when it is started or reloaded
good -> …/12          what HAProxy was last seen running
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from discovery import files
from discovery.errors import ApplyError


class Generations:
    """The generations below one directory that is this object's alone. A failed write is an ApplyError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._all = directory / "generations"
        self._current = directory / "current"
        self._good = directory / "good"

    def stage(self, texts: Mapping[str, str]) -> Path:
        """Write the files into ``candidate/``, and return that directory."""
        candidate = self._directory / "candidate"
        try:
            if candidate.exists():
                shutil.rmtree(candidate)
            candidate.mkdir(mode=0o700)
        except OSError as error:
            raise ApplyError(f"{candidate}: cannot be written: {error}") from error
        for name, text in texts.items():
            files.replace(candidate / name, text, mode=0o600)
        return candidate

    def promote(self) -> None:
        """Make the candidate a generation, and the current one."""
        try:
            self._all.mkdir(mode=0o700, exist_ok=True)
            number = (
                max((int(each.name) for each in self._all.iterdir() if each.name.isdigit()), default=0) + 1
            )
            target = self._all / str(number)
            (self._directory / "candidate").rename(target)
            _sync(self._all)
        except OSError as error:
            raise ApplyError(f"{self._all}: cannot be written: {error}") from error
        self._point(self._current, target)

    def confirm(self) -> None:
        """The current generation runs: it is the good one now, and the others are removed."""
        target = self._target(self._current)
        if target is None:
            raise ApplyError(f"{self._current}: there is no such generation")
        self._point(self._good, target)
        for each in self._all.iterdir():
            if each != target:
                shutil.rmtree(each, ignore_errors=True)

    def roll_back(self) -> bool:
        """Make the last good generation the current one again; False if there is none."""
        target = self._target(self._good)
        if target is not None and self._target(self._current) != target:
            self._point(self._current, target)
        return target is not None

    @property
    def has_good(self) -> bool:
        """Whether there is a good generation."""
        return self._target(self._good) is not None

    def current(self) -> Mapping[str, str]:
        """The files of the current generation; none if there is no such generation or it cannot be read."""
        return _read(self._target(self._current))

    def good(self) -> Mapping[str, str]:
        """The files of the last good generation; none if there is no such generation or it cannot be read."""
        return _read(self._target(self._good))

    def _target(self, link: Path) -> Path | None:
        """The generation a link leads to; None if it leads nowhere."""
        try:
            target = self._directory / link.readlink()
        except OSError:
            return None
        return target if (target / "haproxy.cfg").is_file() else None

    def _point(self, link: Path, target: Path) -> None:
        temporary = link.with_name(f".{link.name}.new")
        try:
            temporary.unlink(missing_ok=True)
            # Relative, so that the state directory may be moved.
            temporary.symlink_to(target.relative_to(self._directory))
            temporary.replace(link)
            _sync(self._directory)
        except OSError as error:
            raise ApplyError(f"{link}: cannot be changed: {error}") from error


def _read(target: Path | None) -> Mapping[str, str]:
    if target is None:
        return {}
    try:
        return {each.name: each.read_text() for each in target.iterdir()}
    except (OSError, UnicodeDecodeError):
        return {}


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
