"""A watch that goes on from endpoint to endpoint.

The gateway's watch is one long chunked answer that is silent when nothing changes, and also when its server
hangs or the way to it is cut: no read time-out can tell these apart. etcd's own sign of life
(progress_notify) comes every ten minutes by default. A progress *request* on the stream itself needs HTTP/1
in both directions at once, which Go's server allows only by accident (it works with ``Connection: close``
and hangs without, on 3.4 and 3.5). So a second, cheap request asks the same endpoint when it has answered
nobody for a while: a serializable count of one key, which reads that member's memory and bothers no other.
Where the process keeps a session alive on it, and its watch has patience, that is never. TCP keepalives
find a stream whose connection alone is gone, the hasleader header one whose member has lost the quorum.
"""

import queue
import threading
import time
from collections.abc import Iterator

import structlog

from discovery.errors import HistoryLost, StoreError, StoreUnavailable
from discovery.retry import Backoff
from discovery.stores.base import HEARTBEAT_SECONDS, Changes
from discovery.stores.endpoints import Endpoint
from discovery.stores.etcd3_gateway import EndpointUnfit, Gateway, Stream, named
from discovery.stores.etcd3_wire import (
    UNINTELLIGIBLE,
    Body,
    WatchAnswer,
    decode_watch,
    encode,
    prefix_range,
    revision_of,
)

log = structlog.get_logger(__name__)

WAITING_ANSWERS = 64
"""Answers read ahead of a slow reader; then TCP holds the server back."""


def follow(
    gateway: Gateway, prefix: str, revision: int, patience_seconds: float | None = None
) -> Iterator[Changes]:
    """Every change under ``prefix`` after ``revision``, over any number of connections.

    Raises as Store.watch does. Out of reach means: since the last connection was lost, no endpoint has
    begun a watch for the gateway's time-out. When every endpoint in turn is one that will never do
    (EndpointUnfit), that is raised at once.
    """
    patience_seconds = patience_seconds or gateway.timeout_seconds / 4
    backoff = Backoff(first_seconds=0.1, most_seconds=HEARTBEAT_SECONDS)
    index = gateway.preferred
    lost_at = time.monotonic()
    interrupted = False
    unfit = 0
    while True:
        left = lost_at + gateway.timeout_seconds - time.monotonic()
        endpoint = gateway.endpoints[index]
        connection = _Connection(gateway, endpoint, prefix, revision, left, patience_seconds)
        try:
            for changes in connection.changes():
                if connection.established and interrupted:
                    log.info("store_watch_resumed", endpoint=str(connection.endpoint), revision=revision)
                    interrupted = False
                revision = changes.revision
                yield changes
        except (StoreUnavailable, EndpointUnfit) as error:
            if connection.established:
                lost_at = time.monotonic()
            if connection.lasted_seconds > gateway.timeout_seconds:
                backoff.reset()
            if gateway.closed.is_set():
                raise StoreUnavailable("the store is closed") from error
            unfit = unfit + 1 if isinstance(error, EndpointUnfit) else 0
            out_of_time = time.monotonic() - lost_at >= gateway.timeout_seconds
            if out_of_time or unfit == len(gateway.endpoints):
                raise _final(error, len(gateway.endpoints)) from error
            if not interrupted:
                log.warning("store_watch_interrupted", endpoint=str(connection.endpoint), error=str(error))
            interrupted = True
        finally:
            connection.close()
        index = (index + 1) % len(gateway.endpoints)
        gateway.closed.wait(backoff.next_seconds())
        yield Changes(revision)


class _Connection:
    """One watch on one endpoint: a thread that reads it, another that sees whether the server lives."""

    def __init__(
        self,
        gateway: Gateway,
        endpoint: Endpoint,
        prefix: str,
        revision: int,
        left_seconds: float,
        patience_seconds: float,
    ) -> None:
        self.endpoint = endpoint
        self.established = False
        self._gateway = gateway
        self._prefix = prefix
        self._revision = revision
        self._patience_seconds = patience_seconds
        self._began = time.monotonic()
        share_seconds = gateway.timeout_seconds / len(gateway.endpoints)
        # The last try may end a little late; with next to no time it would only say that there was none.
        self._share_seconds = min(share_seconds, max(left_seconds, share_seconds / 2))
        self._closed = threading.Event()
        self._answers: queue.Queue[WatchAnswer | StoreError] = queue.Queue(WAITING_ANSWERS)
        self._stream: Stream | None = None
        # Daemons: what they wait for is bounded, but a process that ends need not wait for it.
        for work in (self._read, self._probe):
            threading.Thread(target=work, name=f"etcd3-watch{work.__name__}", daemon=True).start()

    @property
    def lasted_seconds(self) -> float:
        """Since it was opened."""
        return time.monotonic() - self._began

    def close(self) -> None:
        """End both threads, soon."""
        self._closed.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def changes(self) -> Iterator[Changes]:
        """Complete changes, and heartbeats; ends with the error that ended the connection."""
        while True:
            try:
                answer = self._answers.get(timeout=HEARTBEAT_SECONDS / 2)
            except queue.Empty:
                if self._gateway.closed.is_set():
                    raise StoreUnavailable("the store is closed") from None
                yield Changes(self._revision)
                continue
            if isinstance(answer, StoreError):
                raise answer
            self.established = True
            self._revision = _reached(answer, self._revision)
            if answer.created and not answer.changes:
                continue
            yield Changes(self._revision, answer.changes)

    # ---- the two threads ----------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._check_history()
            self._stream = self._gateway.stream(self.endpoint, "watch", self._request(), self._share_seconds)
            if self._closed.is_set():
                self._stream.close()
            for line in self._stream.lines():
                self._tell(self._decoded(line))
        except UNINTELLIGIBLE as error:
            self._tell(EndpointUnfit(f"{self.endpoint} answers a watch unintelligibly: {error!r}"))
        except StoreError as error:
            self._tell(error)
        finally:
            # Whatever ended this thread, nobody may wait for it.
            self._tell(StoreUnavailable(f"etcd at {self.endpoint} ended the watch"))

    def _decoded(self, line: bytes) -> WatchAnswer:
        try:
            return decode_watch(line)
        except StoreError as error:
            raise named(self.endpoint, error) from error

    def _check_history(self) -> None:
        """A store that is behind what was seen of it has been made anew: its revisions mean other changes.

        A watch from a future revision would wait in silence. This read is linearizable, so a member that
        merely lags is not taken for one. It also renews the token that the stream is about to use.
        """
        now = self._gateway.ask(self.endpoint, "kv/range", self._count(), self._share_seconds, revision_of)
        if now < self._revision:
            raise HistoryLost(f"the store is at revision {now}, before {self._revision}: it was made anew")

    def _probe(self) -> None:
        """Ask when it has answered nobody for longer than the patience; no answer ends the connection."""
        seconds = self._gateway.timeout_seconds
        body = {**self._count(), "serializable": True}
        pause_seconds = self._patience_seconds
        while not self._closed.wait(pause_seconds):
            left_seconds = self._patience_seconds - self._gateway.silent_seconds(self.endpoint)
            if left_seconds > 0:
                pause_seconds = left_seconds
                continue
            pause_seconds = self._patience_seconds
            try:
                self._gateway.ask(self.endpoint, "kv/range", body, seconds / 2, revision_of)
            except StoreUnavailable as error:
                self._tell(error)
                return
            except StoreError:
                # It refuses, so it lives; whether it may refuse is for the stream to say.
                continue

    def _tell(self, answer: WatchAnswer | StoreError) -> None:
        while not self._closed.is_set():
            try:
                self._answers.put(answer, timeout=HEARTBEAT_SECONDS)
            except queue.Full:
                continue
            return

    # ---- requests -----------------------------------------------------------------------------------

    def _count(self) -> Body:
        # The prefix itself as a key: nobody who may watch the prefix is refused it.
        return {"key": encode(self._prefix or "\0"), "count_only": True}

    def _request(self) -> Body:
        return {
            "create_request": {
                **prefix_range(self._prefix),
                "start_revision": str(self._revision + 1),
                "progress_notify": True,
                # Not "fragment": only that would let etcd split the changes of one revision.
            }
        }


def _final(error: StoreError, endpoints: int) -> StoreError:
    """``error`` as the last word on all endpoints."""
    if endpoints == 1 or not isinstance(error, StoreUnavailable):
        return error
    return StoreUnavailable(f"none of {endpoints} etcd endpoints can be watched; the last: {error}")


def _reached(answer: WatchAnswer, revision: int) -> int:
    """The revision up to which everything was told, once ``answer`` is in.

    The header's revision is the store's when the message was sent. With changes it may be ahead of them,
    for a watch that catches up gets them in parts; so it may in the first message. Only in a progress
    notification, which has no changes, does it say that nothing is missing.
    """
    if answer.last is not None:
        return max(answer.last, revision)
    return revision if answer.created else max(answer.revision, revision)
