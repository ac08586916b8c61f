"""What to believe after the store was out of reach: failure is not emptiness. Pure; the caller has the clock.

A store that was down longer than the TTL may come back without the expiring keys (etcd v2 does). Their
owners put them again within moments; until then a reader that believed the store would drop everything.
So for a bounded time after an outage removals are held back, each key for that time at most. What really
died meanwhile is kept out of rotation by the health checks.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from discovery.stores.base import Change, Changes, Entry, Snapshot


class OutageGuard:
    """Stands between a store and its reader; all of the reader's snapshots and changes pass through it."""

    def __init__(self, hold_seconds: float) -> None:
        self._hold_seconds = hold_seconds
        self._mirror: dict[str, Entry] = {}
        # Each held key with the time of its release: another outage does not put that off.
        self._held: dict[str, float] = {}
        self._until = -math.inf

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What the reader was told so far, held keys included."""
        return self._mirror

    @property
    def held(self) -> int:
        """How many removals are held back."""
        return len(self._held)

    def restore(self, entries: Mapping[str, Entry]) -> None:
        """Begin with what was known in a former life, before the first snapshot."""
        self._mirror = dict(entries)

    def reset(self, snapshot: Snapshot, *, after_outage: bool, now_seconds: float) -> Snapshot:
        """The snapshot as it should be believed at ``now_seconds`` (of a monotonic clock)."""
        if after_outage:
            self._until = now_seconds + self._hold_seconds
        gone = self._mirror.keys() - snapshot.entries.keys()
        releases = {key: self._held.get(key, self._until) for key in gone}
        self._held = {key: release for key, release in releases.items() if now_seconds < release}
        held = {key: self._mirror[key] for key in self._held}
        self._mirror = {**snapshot.entries, **held}
        return replace(snapshot, entries=dict(self._mirror)) if held else snapshot

    def apply(self, changes: Changes, *, now_seconds: float) -> Changes:
        """The changes as they should be believed: without held removals, and with those now released."""
        passed = []
        for change in changes.changes:
            if change.entry is None and now_seconds < self._until:
                if change.key in self._mirror:
                    self._held.setdefault(change.key, self._until)
                continue
            self._held.pop(change.key, None)
            self._remember(change)
            passed.append(change)
        released = [
            Change(key, None) for key, release in sorted(self._held.items()) if release <= now_seconds
        ]
        for change in released:
            del self._held[change.key]
            self._remember(change)
        return replace(changes, changes=(*released, *passed))

    def _remember(self, change: Change) -> None:
        if change.entry is None:
            self._mirror.pop(change.key, None)
        else:
            self._mirror[change.key] = change.entry
