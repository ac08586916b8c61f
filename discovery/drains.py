"""Requests to drain a container, as files in the state directory: from `discovery stop` to the registrator.

A file for each container, so that whoever may stop containers here need not be let into the store, and so
that a registrator that is started anew still knows of it.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from discovery import files
from discovery.errors import ApplyError, CommandError

log = structlog.get_logger(__name__)


class Drains:
    """The containers that are to be drained. For any thread and process.

    A request ends with its time, for whoever made it may have been killed.
    """

    def __init__(self, directory: Path, wall_clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._wall_clock = wall_clock
        self._read_at = -1
        self._until: dict[str, float] = {}

    def changed(self) -> bool:
        """Whether requests came or went since the last ``current``."""
        return self._changed_at() != self._read_at

    def current(self) -> dict[str, float]:
        """The ids of containers to be drained, each with the seconds for which that holds."""
        changed_at = self._changed_at()
        if changed_at != self._read_at:
            self._until = dict(self._read())
            self._read_at = changed_at
        now = self._wall_clock()
        return {id_: until - now for id_, until in self._until.items() if until > now}

    @contextmanager
    def requested(self, container_id: str, seconds: float) -> Iterator[None]:
        """Ask for a container to be drained meanwhile, for so long at most. Raises CommandError."""
        path = self._directory / container_id
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            files.replace(path, json.dumps({"until": self._wall_clock() + seconds}), mode=0o600)
        except (OSError, ApplyError) as error:
            raise CommandError(f"{path}: the request to drain cannot be left: {error}") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def _changed_at(self) -> int:
        try:
            return self._directory.stat().st_mtime_ns
        except OSError:
            return 0

    def _read(self) -> Iterator[tuple[str, float]]:
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                if path.name.startswith("."):
                    # One that is being written.
                    continue
                try:
                    until = float(json.loads(path.read_text())["until"])
                except (OSError, ValueError, KeyError, TypeError) as error:
                    log.warning("drain_request_unreadable", path=str(path), error=repr(error))
                    continue
                if until <= self._wall_clock():
                    with contextlib.suppress(OSError):
                        path.unlink()
                else:
                    yield path.name, until
