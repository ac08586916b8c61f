import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from discovery.stores.base import Changes, Entry, Store

WAIT_SECONDS = 20.0
"""Bounds a wait for something that happens at once on an idle machine."""


class Mirror:
    """List + watch, as the watcher does it: a snapshot, and every change after it applied in order."""

    def __init__(self, store: Store, prefix: str) -> None:
        snapshot = store.snapshot(prefix)
        self.revision = snapshot.revision
        self.entries: dict[str, Entry] = dict(snapshot.entries)
        self.seen: list[str] = []
        """Keys of all changes delivered, in order."""
        self.waits_seconds: list[float] = []
        """How long each delivery, or heartbeat, was waited for."""
        self._watch: Iterator[Changes] = store.watch(prefix, snapshot.revision)

    @property
    def values(self) -> Mapping[str, str]:
        return {key: entry.value for key, entry in self.entries.items()}

    def step(self) -> Changes:
        began = time.monotonic()
        changes = next(self._watch)
        self.waits_seconds.append(time.monotonic() - began)
        assert changes.revision >= self.revision
        self.revision = changes.revision
        for change in changes.changes:
            self.seen.append(change.key)
            if change.entry is None:
                self.entries.pop(change.key, None)
            else:
                assert change.entry.key == change.key
                self.entries[change.key] = change.entry
        return changes

    def until(self, condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Follow the watch until ``condition``; fails after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not seen in {seconds} s; the mirror is {self.shown()}"
            self.step()

    def until_values(self, values: Mapping[str, str], seconds: float = WAIT_SECONDS) -> None:
        self.until(lambda: self.values == values, seconds)

    def shown(self) -> str:
        return str(dict(list(self.values.items())[:10]))

    def close(self) -> None:
        self._watch.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def eventually(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Look again and again until ``condition``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.02)
