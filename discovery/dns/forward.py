"""Asks upstream resolvers on behalf of clients, many questions at once, in the server's own loop."""

import heapq
import itertools
import secrets
import selectors
import socket
from collections.abc import Callable

from discovery.dns import wire
from discovery.dns.cache import Kept, Key, ReplyCache, cache_key
from discovery.dns.exchange import StreamExchange
from discovery.dns.relay import Body, read_body, relay
from discovery.dns.respond import Reply, failure
from discovery.dns.stats import ForwardCounts
from discovery.dns.upstreams import Upstream, Upstreams, family_of
from discovery.dns.wire import BadMessage, Query, UpstreamReply

TRY_SECONDS = 0.9
TRIES = 2
"""Unanswered tries. All together stay below 2 s, and so below the patience of musl (2.5 s)."""
MOST_QUESTIONS = 400
"""Questions in flight; each holds a socket or two, of the 1,024 that a process commonly may have."""
MOST_WAITING = 4000
"""Clients that wait, over all questions."""

_BAD_RCODES = frozenset((wire.FORMERR, wire.SERVFAIL, wire.NOTIMP, wire.REFUSED))
_MOST_PLAIN_RCODE = 15
_NO_EDNS_RCODES = frozenset((wire.FORMERR, wire.NOTIMP))
_DATAGRAM_BYTES = 65535
_MOST_DATAGRAMS = 16

Answer = Callable[[Reply], None]
_Key = tuple[Key, int, bool]


class Forwarder:
    """Every question gets exactly one answer: an upstream's, or SERVFAIL within TRIES times TRY_SECONDS.

    What upstreams say is kept in ``cache``. While they do not answer, it serves past its time (RFC 8767).
    Equal questions share one exchange. Each try has its own socket, hence a random port, and a random id.
    Not thread-safe: called by the loop that owns ``selector``, whose keys hold callables.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        upstreams: Upstreams,
        cache: ReplyCache,
        *,
        clock: Callable[[], float],
        most_questions: int = MOST_QUESTIONS,
    ) -> None:
        self.selector = selector
        self.upstreams = upstreams
        self.cache = cache
        self.clock = clock
        self.waiting = 0
        self.stale = 0
        self._hits = 0
        self._misses = 0
        self._most_questions = most_questions
        self._generation = upstreams.generation
        self._questions: dict[_Key, _Question] = {}
        self._due: list[tuple[float, int, _Question]] = []
        self._sequence = itertools.count()

    def ask(self, query: Query, *, stream: bool, answer: Answer) -> None:
        """Have ``query`` answered by calling ``answer`` once, maybe before this returns.

        ``stream`` tells that the client came over TCP, so that the answer may be long.
        """
        if self._generation != self.upstreams.generation:
            self._generation = self.upstreams.generation
            self.cache.clear()
        key = cache_key(query)
        kept = self.cache.find(key)
        if kept is not None and self._answer_kept(kept, query, stream, answer):
            return
        self._misses += 1
        question = self._question((key, query.flags & wire.RD, stream), query, kept)
        if question is None or self.waiting >= MOST_WAITING:
            answer(failure(query, wire.SERVFAIL, stream=stream))
        elif question.done:
            question.give(query, answer)
        else:
            self.waiting += 1
            question.waiters.append((query, answer))

    def _answer_kept(self, kept: Kept, query: Query, stream: bool, answer: Answer) -> bool:
        """Whether what is kept was answer enough."""
        now = self.clock()
        if now < kept.until:
            self._hits += 1
        elif self.upstreams.are_down(query.labels):
            # The client need not wait for what will hardly come; but it may (RFC 8767, 5).
            self.stale += 1
            self._question((cache_key(query), query.flags & wire.RD, stream), query, kept)
        else:
            return False
        answer(_reply(kept.reply(query, _most_bytes(query, stream), now), query))
        return True

    def _question(self, key: _Key, query: Query, kept: Kept | None) -> "_Question | None":
        """The question on its way, maybe just set out and even done; None if there are too many."""
        question = self._questions.get(key)
        if question is None and len(self._questions) < self._most_questions:
            question = _Question(self, key, query, kept)
            self._questions[key] = question
            heapq.heappush(self._due, (self.clock() + TRY_SECONDS, next(self._sequence), question))
            question.next_try()
        return question

    def counts(self) -> ForwardCounts:
        """So far."""
        return ForwardCounts(self._hits, self.stale, self._misses, len(self.cache), self.upstreams.counts())

    def forget(self, question: "_Question") -> None:
        """It has been answered."""
        del self._questions[question.key]

    @property
    def next_due(self) -> float | None:
        """When ``expire`` is to be called next, by the clock."""
        return self._due[0][0] if self._due else None

    def expire(self) -> None:
        """Go on with every question whose try has taken too long."""
        now = self.clock()
        while self._due and self._due[0][0] <= now:
            question = heapq.heappop(self._due)[2]
            if not question.done:
                question.on_time()
            if not question.done:
                heapq.heappush(self._due, (self.clock() + TRY_SECONDS, next(self._sequence), question))

    def close(self) -> None:
        """Answer every open question with SERVFAIL."""
        for question in list(self._questions.values()):
            question.fail()


class _Question:
    """One question on its way. Replies to earlier tries still count while later ones are out.

    ``kept`` is what was kept of an earlier one.
    """

    def __init__(self, forwarder: Forwarder, key: _Key, query: Query, kept: Kept | None) -> None:
        self.key = key
        self.waiters: list[tuple[Query, Answer]] = []
        self.done = False
        self._forwarder = forwarder
        self._upstreams = forwarder.upstreams
        self._query = query
        self._stream = key[-1]
        self._kept = kept
        self._body: Body | None = None
        self._candidates = self._upstreams.candidates(query.labels)
        if len(self._candidates) == 1:
            # A packet may just have been lost.
            self._candidates *= 2
        self._overdue = 0
        self._tries: dict[socket.socket, Upstream] = {}
        self._exchange: StreamExchange | None = None
        self._refusal: Body | None = None

    def next_try(self) -> None:
        """Ask the next upstream; give up if none is left and no try is out."""
        while self._candidates:
            upstream = self._candidates.pop(0)
            try:
                self._send(upstream)
            except OSError as error:
                self._failed(upstream, str(error))
                continue
            return
        if not self._tries and self._exchange is None:
            self.fail()

    def on_time(self) -> None:
        """Another TRY_SECONDS have passed."""
        self._overdue += 1
        for upstream in self._tries.values():
            self._upstreams.failed(upstream, "no answer in time")
        if self._overdue >= TRIES:
            self.fail()
            return
        if self._kept is not None:
            # Past its time, but there; the question goes on for those who ask later.
            self._answer_waiters()
        if self._exchange is None:
            self.next_try()

    def fail(self) -> None:
        """No usable answer: pass on what was kept, or what an upstream said, or SERVFAIL."""
        self._finish(self._refusal if self._kept is None else None)

    # -- one try

    def _send(self, upstream: Upstream) -> None:
        id_ = secrets.randbits(16)
        edns = self._upstreams.speaks_edns(upstream)
        udp = socket.socket(family_of(upstream.address[0]), socket.SOCK_DGRAM)
        try:
            udp.setblocking(False)
            # Connected, the kernel picks a random port, takes packets from this upstream only, and
            # reports at once that nobody listens there.
            udp.connect(upstream.address)
            udp.send(wire.build_query(self._query, id_, edns=edns))
        except OSError:
            udp.close()
            raise
        upstream.queries += 1
        self._tries[udp] = upstream
        self._forwarder.selector.register(
            udp, selectors.EVENT_READ, lambda _events: self._on_readable(udp, upstream, id_, edns)
        )

    def _on_readable(self, udp: socket.socket, upstream: Upstream, id_: int, edns: bool) -> None:
        for _ in range(_MOST_DATAGRAMS):
            try:
                message = udp.recv(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._close_try(udp)
                self._failed(upstream, str(error))
                self._go_on()
                return
            reply = wire.parse_reply(message, id_, self._query)
            if reply is not None:
                self._close_try(udp)
                self._on_reply(reply, upstream, edns)
                return

    def _on_reply(self, reply: UpstreamReply, upstream: Upstream, edns: bool) -> None:
        self._upstreams.answered(upstream)
        body = _read(reply, self._query)
        if edns and reply.rcode in _NO_EDNS_RCODES and (body is None or not body.has_edns):
            # RFC 6891, 7: it does not know what we added.
            self._upstreams.refused_edns(upstream)
            self._candidates.insert(0, upstream)
            self._go_on()
        elif body is None or body.rcode in _BAD_RCODES:
            self._refusal = body or self._refusal
            self._go_on()
        elif body.truncated and self._stream:
            self._ask_stream(upstream)
        else:
            # Over UDP a truncated reply is passed on: we asked for as much as any client can take.
            self._finish(body)

    def _ask_stream(self, upstream: Upstream) -> None:
        if self._exchange is not None:
            return
        edns = self._upstreams.speaks_edns(upstream)
        try:
            self._exchange = StreamExchange(
                self._forwarder.selector, upstream.address, self._query, self._on_stream, edns=edns
            )
        except OSError as error:
            self._failed(upstream, str(error))
            self._go_on()

    def _on_stream(self, reply: UpstreamReply | None) -> None:
        self._exchange = None
        body = _read(reply, self._query) if reply is not None else None
        if body is None or body.rcode in _BAD_RCODES:
            self._go_on()
        else:
            self._finish(body)

    def _go_on(self) -> None:
        """Something failed before its time: ask the next one at once."""
        if not self.done:
            self.next_try()

    def _failed(self, upstream: Upstream, reason: str) -> None:
        self._upstreams.failed(upstream, reason)
        # It said so itself; asking it again at once is of no use.
        self._candidates = [each for each in self._candidates if each is not upstream]

    # -- the end

    def _close_try(self, udp: socket.socket) -> None:
        del self._tries[udp]
        self._forwarder.selector.unregister(udp)
        udp.close()

    def _finish(self, body: Body | None) -> None:
        self.done = True
        self._body = body
        for udp in list(self._tries):
            self._close_try(udp)
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self._forwarder.forget(self)
        # What a server says without looking further (RD clear) is half an answer at best.
        if body is not None and body.rcode not in _BAD_RCODES and not body.truncated and self.key[1]:
            self._forwarder.cache.keep(self.key[0], body)
        self._answer_waiters()

    def _answer_waiters(self) -> None:
        waiters, self.waiters = self.waiters, []
        self._forwarder.waiting -= len(waiters)
        for query, answer in waiters:
            self.give(query, answer)

    def give(self, query: Query, answer: Answer) -> None:
        """Answer by what there is now."""
        most_bytes = _most_bytes(query, self._stream)
        if self._body is not None:
            answer(_reply(relay(self._body, query, most_bytes), query))
        elif self._kept is not None:
            self._forwarder.stale += 1
            answer(_reply(self._kept.reply(query, most_bytes, self._forwarder.clock()), query))
        else:
            answer(failure(query, wire.SERVFAIL, stream=self._stream))


def _read(reply: UpstreamReply, query: Query) -> Body | None:
    """What it says, None if it is broken or says nothing of the question."""
    if not reply.complete:
        return None
    try:
        body = read_body(reply.message, query)
    except BadMessage:
        return None
    # The rcodes that EDNS adds are about EDNS, which was ours.
    return body if body.rcode <= _MOST_PLAIN_RCODE else None


def _reply(message: bytes, query: Query) -> Reply:
    return Reply(message, query.qtype, message[3] & 0xF)


def _most_bytes(query: Query, stream: bool) -> int:
    return wire.STREAM_BYTES if stream else query.udp_bytes
