"""Asks upstream resolvers on behalf of clients, many questions at once, in the server's own loop."""

import heapq
import itertools
import secrets
import selectors
import socket
from collections.abc import Callable

from discovery.dns import wire
from discovery.dns.exchange import StreamExchange
from discovery.dns.respond import Reply, failure
from discovery.dns.upstreams import Upstream, Upstreams, family_of
from discovery.dns.wire import Query, UpstreamReply

TRY_SECONDS = 0.9
TRIES = 2
"""Unanswered tries. All together stay below 2 s, and so below the patience of musl (2.5 s)."""
MOST_QUESTIONS = 400
"""Questions in flight; each holds a socket or two, of the 1,024 that a process commonly may have."""
MOST_WAITING = 4000
"""Clients that wait, over all questions."""

_BAD_RCODES = frozenset((wire.FORMERR, wire.SERVFAIL, wire.NOTIMP, wire.REFUSED))
_DATAGRAM_BYTES = 65535
_MOST_DATAGRAMS = 16

Answer = Callable[[Reply], None]
_Key = tuple[tuple[bytes, ...], bytes, int, bool, bool, int, bool]


class Forwarder:
    """Every question gets exactly one answer: an upstream's, or SERVFAIL within TRIES times TRY_SECONDS.

    Equal questions share one exchange. Each try has its own socket, hence a random port, and a random id.
    Not thread-safe: called by the loop that owns ``selector``, whose keys hold callables.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        upstreams: Upstreams,
        *,
        clock: Callable[[], float],
        most_questions: int = MOST_QUESTIONS,
    ) -> None:
        self.selector = selector
        self.upstreams = upstreams
        self.clock = clock
        self.waiting = 0
        self._most_questions = most_questions
        self._questions: dict[_Key, _Question] = {}
        self._due: list[tuple[float, int, _Question]] = []
        self._sequence = itertools.count()

    def ask(self, query: Query, *, stream: bool, answer: Answer) -> None:
        """Have ``query`` answered by calling ``answer`` once, maybe before this returns.

        ``stream`` tells that the client came over TCP, so that the answer may be long.
        """
        key = _key(query, stream=stream)
        question = self._questions.get(key)
        full = len(self._questions) >= self._most_questions if question is None else False
        if full or self.waiting >= MOST_WAITING:
            answer(failure(query, wire.SERVFAIL, stream=stream))
            return
        self.waiting += 1
        if question is not None:
            question.waiters.append((query, answer))
            return
        question = _Question(self, key, query, answer, stream=stream)
        self._questions[key] = question
        self._schedule(question)
        question.next_try()

    def _schedule(self, question: "_Question") -> None:
        heapq.heappush(self._due, (self.clock() + TRY_SECONDS, next(self._sequence), question))

    def forget(self, question: "_Question") -> None:
        """It has been answered."""
        del self._questions[question.key]
        self.waiting -= len(question.waiters)

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
                self._schedule(question)

    def close(self) -> None:
        """Answer every open question with SERVFAIL."""
        for question in list(self._questions.values()):
            question.fail()


class _Question:
    """One question on its way. Replies to earlier tries still count while later ones are out."""

    def __init__(
        self, forwarder: Forwarder, key: _Key, query: Query, answer: Answer, *, stream: bool
    ) -> None:
        self.key = key
        self.waiters = [(query, answer)]
        self.done = False
        self._forwarder = forwarder
        self._query = query
        self._stream = stream
        self._candidates = forwarder.upstreams.candidates()
        if len(self._candidates) == 1:
            # A packet may just have been lost.
            self._candidates *= 2
        self._overdue = 0
        self._tries: dict[socket.socket, Upstream] = {}
        self._exchange: StreamExchange | None = None
        self._refusal: UpstreamReply | None = None

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
            self._forwarder.upstreams.failed(upstream, "no answer in time")
        if self._overdue >= TRIES:
            self.fail()
        elif self._exchange is None:
            self.next_try()

    def fail(self) -> None:
        """No usable answer: pass on what an upstream said, or SERVFAIL."""
        self._finish(self._refusal)

    # -- one try

    def _send(self, upstream: Upstream) -> None:
        id_ = secrets.randbits(16)
        udp = socket.socket(family_of(upstream.address[0]), socket.SOCK_DGRAM)
        try:
            udp.setblocking(False)
            # Connected, the kernel picks a random port, takes packets from this upstream only, and
            # reports at once that nobody listens there.
            udp.connect(upstream.address)
            udp.send(wire.build_query(self._query, id_))
        except OSError:
            udp.close()
            raise
        self._tries[udp] = upstream
        self._forwarder.selector.register(
            udp, selectors.EVENT_READ, lambda _events: self._on_readable(udp, upstream, id_)
        )

    def _on_readable(self, udp: socket.socket, upstream: Upstream, id_: int) -> None:
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
                self._on_reply(reply, upstream)
                return

    def _on_reply(self, reply: UpstreamReply, upstream: Upstream) -> None:
        self._forwarder.upstreams.answered(upstream)
        if not reply.complete or reply.rcode in _BAD_RCODES:
            self._refusal = reply if reply.complete else self._refusal
            self._go_on()
        elif reply.truncated and self._stream:
            self._ask_stream(upstream)
        else:
            # Over UDP a truncated reply is passed on: we asked for as much as the client can take.
            self._finish(reply)

    def _ask_stream(self, upstream: Upstream) -> None:
        if self._exchange is not None:
            return
        try:
            self._exchange = StreamExchange(
                self._forwarder.selector, upstream.address, self._query, self._on_stream
            )
        except OSError as error:
            self._failed(upstream, str(error))
            self._go_on()

    def _on_stream(self, reply: UpstreamReply | None) -> None:
        self._exchange = None
        if reply is None:
            self._go_on()
        else:
            self._finish(reply)

    def _go_on(self) -> None:
        """Something failed before its time: ask the next one at once."""
        if not self.done:
            self.next_try()

    def _failed(self, upstream: Upstream, reason: str) -> None:
        self._forwarder.upstreams.failed(upstream, reason)
        # It said so itself; asking it again at once is of no use.
        self._candidates = [each for each in self._candidates if each is not upstream]

    # -- the end

    def _close_try(self, udp: socket.socket) -> None:
        del self._tries[udp]
        self._forwarder.selector.unregister(udp)
        udp.close()

    def _finish(self, reply: UpstreamReply | None) -> None:
        self.done = True
        for udp in list(self._tries):
            self._close_try(udp)
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self._forwarder.forget(self)
        for query, answer in self.waiters:
            if reply is None:
                answer(failure(query, wire.SERVFAIL, stream=self._stream))
                continue
            most_bytes = wire.STREAM_BYTES if self._stream else query.udp_bytes
            relayed = wire.relay_reply(reply.message, query, most_bytes)
            answer(Reply(relayed, query.qtype, relayed[3] & 0xF))


def _key(query: Query, *, stream: bool) -> _Key:
    """What two questions must have in common to share a reply."""
    edns = query.edns
    size = query.udp_bytes if edns is not None else 0
    dnssec_ok = edns is not None and edns.dnssec_ok
    flags = query.flags & (wire.RD | wire.CD)
    return query.labels, query.question[-4:], flags, stream, edns is not None, size, dnssec_ok
