"""Upstreams' replies, kept for as long as their TTLs allow, and for need a while longer."""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from discovery.dns import wire
from discovery.dns.relay import Body, relay
from discovery.dns.wire import Query

STALE_TTL_SECONDS = 30
"""Of answers past their time (RFC 8767, 5.2)."""
MOST_BODY_BYTES = 4096
"""Longer ones are rare, and many of them would take much memory."""

Key = tuple[tuple[bytes, ...], bytes, bool, bool]


def cache_key(query: Query) -> Key:
    """What two questions must have in common to have one answer: name, type and class, DO, CD."""
    dnssec_ok = query.edns is not None and query.edns.dnssec_ok
    return query.labels, query.question[-4:], dnssec_ok, bool(query.flags & wire.CD)


class Kept(NamedTuple):
    """A reply, when it came, and until when it is good; times by the cache's clock."""

    body: Body
    since: float
    until: float

    def reply(self, query: Query, most_bytes: int, now: float) -> bytes:
        """It as the reply to ``query``: TTLs count down, and past their time say STALE_TTL_SECONDS."""
        if now < self.until:
            return relay(self.body, query, most_bytes, age_seconds=int(now - self.since))
        return relay(self.body, query, most_bytes, ttl_seconds=STALE_TTL_SECONDS)


class ReplyCache:
    """At most ``most_entries`` replies; the one asked for least lately gives way. Not thread-safe.

    ``stale_seconds`` is how long past its time a reply is still to be had.
    """

    def __init__(self, *, most_entries: int, stale_seconds: float, clock: Callable[[], float]) -> None:
        self._most_entries = most_entries
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Key) -> Kept | None:
        """What is kept, fresh or stale."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if self._clock() >= kept.until + self._stale_seconds:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return kept

    def keep(self, key: Key, body: Body) -> None:
        """Keep this newest reply; one that may not be kept replaces what there was all the same."""
        self._kept.pop(key, None)
        if not body.kept_seconds or not self._most_entries or len(body.records) > MOST_BODY_BYTES:
            return
        if len(self._kept) >= self._most_entries:
            self._kept.popitem(last=False)
        now = self._clock()
        self._kept[key] = Kept(body, now, now + body.kept_seconds)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
