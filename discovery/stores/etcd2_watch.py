"""Watches on etcd's v2 API: long polls in one thread, probes in another, and what is known of the keys.

Three things make a v2 watch lose changes, each has its answer here:

- *Deletion or expiry of a directory is one event*, which does not name what was in it. So a watch knows the
  entries under its prefix: those of the snapshot that it goes on from.
- *A server keeps 1,000 events*, those of other keys and every refresh among them. A poll that starts from an
  older index is refused (401). Could a poll that ended without an event move the index on, to the
  X-Etcd-Index in its head? No: that index is the server's when the poll began, and an event up to it may
  follow in the body; a poll that is given up before the body came, because the server hung, proves
  nothing. So a poll is not given up while its server lives: it waits for minutes, and its watcher needs no
  history. Where a refusal happens all the same (after a lost connection), the prefix is read again: when
  it holds what we know, nothing under it was changed and the watch goes on from the index of that read;
  otherwise changes are lost indeed.
- *A server that hangs, or is cut off from the majority, is silent*, as one with nothing to say. So it is
  asked every few seconds for a key that does not exist, by a read that needs the quorum. Its index also
  shows when the cluster was made anew or restored from a backup: then the index has gone back.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from discovery.errors import HistoryLost, StoreError, StoreRefused, StoreUnavailable
from discovery.retry import Backoff
from discovery.stores.base import HEARTBEAT_SECONDS, Change, Changes, Entry
from discovery.stores.etcd2_wire import INDEX_CLEARED, KEY_NOT_FOUND, Answer, Params, Servers, read_path

PROBE_SECONDS = 4.0
"""An idle watch costs one small request in this time."""

POLL_SECONDS = 300.0
"""A poll without an event is begun anew after this time, in case its server has silently lost it: a member
that catches up from a leader's snapshot tells its watchers nothing of what the snapshot changed."""

_REMOVALS = ("delete", "compareAndDelete", "expire")
_UNREAD = 10_000


# ---- values: pure -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """What a prefix held at ``revision``, in the cluster of that id."""

    revision: int
    cluster_id: str
    entries: Mapping[str, Entry]


def known_of(answer: Answer, prefix: str) -> Known:
    """What a recursive read of ``prefix`` says; that it does not exist is an answer, too."""
    entries: dict[str, Entry] = {}
    if answer.code not in (0, KEY_NOT_FOUND):
        raise StoreRefused(f"{prefix} cannot be read: {answer.body.get('message')}")
    nodes = [answer.node] if answer.code == 0 else []
    while nodes:
        node = nodes.pop()
        nodes.extend(node.get("nodes", ()))
        key = node.get("key", "/")
        if not node.get("dir") and key.startswith(prefix):
            entries[key] = entry_of(node)
    return Known(answer.index, answer.cluster_id, entries)


def entry_of(node: Mapping[str, Any]) -> Entry:
    """A node that is no directory. Bytes that are no UTF-8 are lost: etcd v2 itself sends U+FFFD."""
    return Entry(node["key"], node.get("value", ""), node["createdIndex"], node["modifiedIndex"])


def same_content(one: Mapping[str, Entry], other: Mapping[str, Entry]) -> bool:
    """Whether only refreshes lie between the two: they change ``modified``, any put ``created`` as well."""
    return one.keys() == other.keys() and all(
        entry.created == other[key].created and entry.value == other[key].value for key, entry in one.items()
    )


def changes_of(event: Mapping[str, Any], prefix: str, entries: Mapping[str, Entry]) -> list[Change]:
    """What an event changes under ``prefix``, where there were ``entries``."""
    node = event["node"]
    key, is_directory = node["key"], bool(node.get("dir"))
    removed = event["action"] in _REMOVALS
    if removed and is_directory:
        # Also one above the prefix. etcd reports any whose name the prefix begins with (/serv for
        # /services/) from its history; of those nothing is below.
        return [Change(gone, None) for gone in sorted(entries) if gone.startswith(f"{key}/")]
    if is_directory:
        # A directory was made, or given a TTL; `set` with dir=true may put it in the place of a key.
        return [Change(key, None)] if key in entries else []
    # From its history etcd also reports keys that it hides in listings.
    if not key.startswith(prefix) or "/_" in key[len(prefix) - 1 :]:
        return []
    return [Change(key, None if removed else entry_of(node))]


# ---- one server being watched -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Event:
    answer: Answer


@dataclass(frozen=True, slots=True)
class _Reread:
    """The index was too old; this is what the prefix holds now. Events after its revision follow."""

    known: Known


@dataclass(frozen=True, slots=True)
class _Alive:
    """A probe was answered. ``floor`` is the index that the watch had reached before it was sent."""

    answer: Answer
    floor: int


@dataclass(frozen=True, slots=True)
class _Failed:
    """The server is of no use; ``since`` is when that began (monotonic seconds)."""

    error: StoreError
    since: float


_Result = _Event | _Reread | _Alive | _Failed


class _Line:
    """One server being watched, by two daemon threads that end with ``close`` or with the first failure."""

    def __init__(self, servers: Servers, number: int, prefix: str, index: int) -> None:
        self._servers = servers
        self._server = servers.server(number)
        self._polling = servers.polling(number, POLL_SECONDS)
        self._prefix = prefix
        self._index = index
        # With several servers a hung one must leave time for the others.
        self._share_seconds = servers.timeout_seconds / len(servers)
        self._closed = threading.Event()
        self._results: queue.Queue[_Result] = queue.Queue(_UNREAD)
        for task in (self._probe, self._poll):
            threading.Thread(target=self._run, args=(task,), name=f"etcd2-watch{prefix}", daemon=True).start()

    def next(self, timeout_seconds: float) -> _Result | None:
        """The next result, None if there is none in time."""
        try:
            return (
                self._results.get(timeout=timeout_seconds)
                if timeout_seconds > 0
                else self._results.get_nowait()
            )
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the poll that waits, and both threads."""
        self._closed.set()
        self._polling.abort()

    def _run(self, task: Callable[[], None]) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                task()
            except StoreError as error:
                self._put(_Failed(error, began if task == self._probe else time.monotonic()))
                return

    def _poll(self) -> None:
        path = read_path(self._prefix)
        params: Params = {"wait": "true", "recursive": "true", "waitIndex": self._index + 1}
        answer = self._polling.poll(path, params, self._servers.timeout_seconds)
        if answer.code == INDEX_CLEARED:
            known = read(self._servers, self._prefix)
            self._index = known.revision
            self._put(_Reread(known))
        elif answer.code:
            raise StoreRefused(f"{self._prefix} cannot be watched: {answer.body.get('message')}")
        else:
            self._index = answer.node["modifiedIndex"]
            self._put(_Event(answer))

    def _probe(self) -> None:
        floor = self._index
        # A name that no one uses, under the prefix, where the user may read; one leaf, however much there is.
        path = read_path(f"{self._prefix}_discovery")
        self._put(_Alive(self._server.request("GET", path, {"quorum": "true"}, self._share_seconds), floor))
        self._closed.wait(PROBE_SECONDS)

    def _put(self, result: _Result) -> None:
        # Bounded: a reader that stands still must not fill the memory.
        while not self._closed.is_set():
            try:
                self._results.put(result, timeout=HEARTBEAT_SECONDS)
            except queue.Full:
                continue
            return


# ---- the watch --------------------------------------------------------------------------------------


def read(servers: Servers, prefix: str) -> Known:
    """All under ``prefix``, by a read that needs the quorum: without, a server may tell an old state."""
    params = {"recursive": "true", "quorum": "true"}
    return known_of(servers.call("GET", read_path(prefix), params), prefix)


class Watch:
    """The changes under a prefix after ``revision``. ``known`` is of that revision or of a later one.

    When it is later, the directories deleted between the two cannot be resolved into keys: HistoryLost.
    """

    def __init__(self, servers: Servers, prefix: str, revision: int, known: Known) -> None:
        self._servers = servers
        self._prefix = prefix
        self._reached = revision
        self._known_revision = known.revision
        self._cluster_id = known.cluster_id
        self._entries = dict(known.entries)
        self._number = servers.preferred
        self._line: _Line | None = None
        self._down_since: float | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._backoff = Backoff(first_seconds=0.1, most_seconds=1.0)

    @property
    def known(self) -> Known | None:
        """What the prefix held at the last revision yielded; None when that is not known."""
        if self._reached < self._known_revision:
            return None
        return Known(self._reached, self._cluster_id, self._entries)

    def changes(self) -> Iterator[Changes]:
        """What ``Store.watch`` promises; an end of any kind frees connections and threads."""
        try:
            while True:
                changes = self._gather()
                yield Changes(self._reached, tuple(changes))
        finally:
            if self._line is not None:
                self._line.close()

    def _gather(self) -> list[Change]:
        """Wait for changes, at most until the next heartbeat is due, and take all that are there."""
        heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        changes: list[Change] = []
        while (left_seconds := heartbeat - time.monotonic()) > 0:
            if self._servers.closed.is_set():
                raise self._servers.closed_error()
            line = self._line or self._open()
            if line is None:
                self._servers.closed.wait(min(left_seconds, max(0.0, self._retry_at - time.monotonic())))
                continue
            result = line.next(0 if changes else left_seconds)
            if result is None:
                break
            changes += self._take(result)
        return changes

    def _open(self) -> _Line | None:
        if time.monotonic() >= self._retry_at:
            self._line = _Line(self._servers, self._number, self._prefix, self._reached)
        return self._line

    def _take(self, result: _Result) -> list[Change]:
        match result:
            case _Event(answer):
                return self._apply(answer)
            case _Reread(known):
                self._compare(known)
            case _Alive(answer, floor):
                if answer.index < floor or answer.cluster_id != self._cluster_id:
                    raise HistoryLost("the cluster was made anew or restored from a backup")
                self._down_since, self._failures = None, 0
                self._backoff.reset()
            case _Failed(error, since):
                self._leave(error, since)
        return []

    def _apply(self, answer: Answer) -> list[Change]:
        if answer.cluster_id != self._cluster_id:
            raise HistoryLost("this is another cluster than before")
        index = answer.node["modifiedIndex"]
        if index <= self._known_revision:
            if answer.node.get("dir"):
                raise HistoryLost(f"what {answer.node['key']} held at revision {self._reached} is unknown")
            changes = changes_of(answer.body, self._prefix, {})
        else:
            changes = changes_of(answer.body, self._prefix, self._entries)
            for change in changes:
                if change.entry is None:
                    self._entries.pop(change.key, None)
                else:
                    self._entries[change.key] = change.entry
        self._reached = index
        return changes

    def _compare(self, now: Known) -> None:
        if (
            self._reached < self._known_revision
            or now.revision < self._reached
            or now.cluster_id != self._cluster_id
            or not same_content(self._entries, now.entries)
        ):
            raise HistoryLost(f"the server no longer knows what changed after revision {self._reached}")
        self._entries = dict(now.entries)
        self._reached = now.revision

    def _leave(self, error: StoreError, since: float) -> None:
        """Go on with the next server, at once if it was not tried yet; raise when time is over."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if not isinstance(error, StoreUnavailable):
            raise error
        self._down_since = self._down_since or since
        self._failures += 1
        self._number += 1
        if time.monotonic() - self._down_since >= self._servers.timeout_seconds:
            raise StoreUnavailable(f"no server could be watched: {error}") from error
        tried_all = self._failures >= len(self._servers)
        self._retry_at = time.monotonic() + (self._backoff.next_seconds() if tried_all else 0.0)
