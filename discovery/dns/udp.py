"""Questions over UDP: the hot path.

Most questions have been asked before, in the very same bytes but for the id, and so need no parsing. They
are taken and answered many at a time where libc lets us (batch), else one by one. Each socket has a thread
of its own that waits in the receiving call itself: to ask first whether there is something to receive costs
as much again.
"""

import socket
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from struct import Struct

from discovery.dns.answers import LABEL_AT, MOST_ANSWERS, Answers, InForce
from discovery.dns.batch import STARTS, Batch, Client
from discovery.dns.respond import Handle
from discovery.dns.stats import PER_SECOND, Stats

RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
"""A burst waits here while something else runs; below 1 MiB bursts are lost."""
_AT_ONCE_SECONDS = 10e-6
"""A message that is there so soon after the last was answered has waited for that, and others with it."""
_BURST = 4
"""After so many in turn that have waited they are taken by batches; a few are answered sooner singly."""
_WAIT_SECONDS = 0.2
"""How long one receiving call waits at most; no later than after twice this the stop event is looked at."""
_TIMEVAL = Struct("@ll")
_DATAGRAM_BYTES = 4096
IP_PKTINFO = 8
_ANCILLARY_BYTES = socket.CMSG_SPACE(Struct("20s").size)


class UdpEndpoint:
    """One bound UDP socket, and the thread that serves it.

    What the answers in force lack goes to ``handle``, with ``lock`` held, as whoever sends a reply later must
    hold it. ``clients`` are addresses that may ask, as text and packed, known without asking ``handle``.
    Counted is here how long the other answers took.
    """

    def __init__(
        self,
        udp: socket.socket,
        clients: AbstractSet[str | bytes],
        stats: Stats,
        in_force: InForce,
        handle: Handle,
        lock: threading.Lock,
    ) -> None:
        self._socket = udp
        self._clients = clients
        self._stats = stats
        self._in_force = in_force
        self._handle = handle
        self._lock = lock

    def serve(self, stop: threading.Event) -> None:
        """Answer until ``stop``."""
        self._socket.setblocking(True)
        wait = _TIMEVAL.pack(0, int(_WAIT_SECONDS * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        while not stop.is_set():
            self._take()

    def _take(self) -> None:
        """Answer some messages, for no longer than a moment; wait as long if there is none."""
        try:
            data, client = self._socket.recvfrom(_DATAGRAM_BYTES)
        except OSError:
            return
        began = time.monotonic()
        # Looked up anew for every message: it may have been sent because a new catalog is in force.
        hit = self._in_force.answers.whole.get(data[2:])
        if hit is None or client[0] not in self._clients:
            reply = self._ask(data, client)
            if reply is not None:
                self._send(reply, client)
            return
        answer, count = hit
        count[0] += 1
        self._send(data[:2] + answer, client)
        self._stats.local.add(time.monotonic() - began)

    def _ask(self, data: bytes, client: Client) -> bytes | None:
        """Have a message handled; the reply, None if there is none yet."""
        prompt = _Prompt(self._send, client)
        with self._lock:
            self._handle(data, client[0], prompt.send)
            return prompt.end()

    def _send(self, reply: bytes, client: Client) -> None:
        try:
            self._socket.sendto(reply, socket.MSG_DONTWAIT, client)
        except OSError:
            # The client is gone, has port 0, or the buffer is full; it will ask again.
            self._stats.unsent += 1


class BatchUdpEndpoint(UdpEndpoint):
    """A socket read and written many datagrams at a time."""

    def serve(self, stop: threading.Event) -> None:
        """Answer until ``stop``."""
        self._batch = Batch(self._socket)
        self._is_busy = False
        super().serve(stop)

    def _take(self) -> None:
        # For a message that comes alone a batch costs more.
        if self._is_busy:
            sizes = self._batch.receive()
            self._is_busy = len(sizes) > 1
            if sizes:
                self._answer(sizes)
        else:
            self._is_busy = self._take_singly()

    def _take_singly(self) -> bool:
        """Answer some messages one by one; return at once, and true, when a few in turn have had to wait.

        Where the next message comes only after the caches have gone cold, every line and every call costs,
        which is why this calls none of its own that it need not.
        """
        batch, in_force, clients, clock = self._batch, self._in_force, self._clients, time.monotonic
        data, names, host = batch.data, batch.names, batch.hosts[0]
        receive, send, reply_bytes = batch.receive_one, batch.send_one, batch.reply_bytes
        classes = self._stats.local.classes
        ended, all_seconds, waited = 0.0, 0.0, 0
        leave_at = clock() + _WAIT_SECONDS
        while ended < leave_at and waited < _BURST:
            size = receive()
            if size < 0:
                break
            began = clock()
            hit = in_force.answers.whole.get(data[2:size])
            if hit is None or names[host] not in clients:
                hit, end = None, self._miss(0, size)
            else:
                answer, count = hit
                count[0] += 1
                end = 2 + len(answer)
                data[2:end] = answer
            if end:
                reply_bytes.value = end
                if send() < 0:
                    self._stats.unsent += 1
            waited = waited + 1 if began - ended < _AT_ONCE_SECONDS else 0
            ended = clock()
            if hit is not None:
                seconds = ended - began
                classes[int(seconds * PER_SECOND).bit_length()] += 1
                all_seconds += seconds
        self._stats.local.seconds += all_seconds
        return waited == _BURST

    def _answer(self, sizes: list[int]) -> None:
        """Answer the batch of messages of these sizes."""
        batch = self._batch
        began = time.monotonic()
        # Looked up only now: a message may have been sent because a new catalog is in force.
        answers = self._in_force.answers
        data, whole = batch.data, answers.whole
        if not batch.clients(len(sizes)) <= self._clients:
            self._reply([self._miss(index, size) for index, size in enumerate(sizes)])
            return
        misses, replies = 0, list[int]()
        for begin, size in zip(STARTS, sizes, strict=False):
            hit = whole.get(data[begin + 2 : begin + size])
            if hit is None:
                reply_size = self._by_shape(answers, begin, begin + size)
                if not reply_size:
                    misses += 1
                    reply_size = self._miss(len(replies), size)
                replies.append(reply_size)
                continue
            answer, count = hit
            end = begin + 2 + len(answer)
            data[begin + 2 : end] = answer
            replies.append(end - begin)
            count[0] += 1
        self._reply(replies)
        self._stats.local.add(time.monotonic() - began, len(sizes) - misses)

    def _by_shape(self, answers: Answers, begin: int, end: int) -> int:
        """Answer as others of its shape were; the size of the reply, 0 if there was none."""
        data = self._batch.data
        label = begin + LABEL_AT + 1
        after = label + data[label - 1]
        # A message that ends before its label is over has no rest, and so no shape.
        shape = answers.shapes.get(data[begin + 2 : label] + data[after:end])
        if shape is None or not answers.is_routed(data[label:after]):
            return 0
        head, rest, tail, count = shape
        count[0] += 1
        asked = data[begin + 2 : end] if len(answers.whole) < MOST_ANSWERS else None
        data[begin + 2 : begin + LABEL_AT] = head
        after += rest
        end = after + len(tail)
        data[after:end] = tail
        if asked is not None:
            answers.whole[asked] = data[begin + 2 : end], count
        return end - begin

    def _reply(self, sizes: list[int]) -> None:
        unsent = self._batch.reply(sizes)
        self._stats.unsent += unsent

    def _miss(self, index: int, size: int) -> int:
        """Have a message handled; the size of the reply, in its place, or 0 if there is none yet."""
        batch, begin = self._batch, STARTS[index]
        reply = self._ask(batch.data[begin : begin + size], batch.client(index))
        if reply is None:
            return 0
        batch.data[begin : begin + len(reply)] = reply
        return len(reply)


class _Prompt:
    """Keeps a reply that comes at once, to leave with its batch; sends one that comes later."""

    __slots__ = ("_client", "_ended", "_reply", "_send")

    def __init__(self, send: Callable[[bytes, Client], None], client: Client) -> None:
        self._send = send
        self._client = client
        self._reply: bytes | None = None
        self._ended = False

    def send(self, reply: bytes) -> None:
        if self._ended:
            self._send(reply, self._client)
        else:
            self._reply = reply

    def end(self) -> bytes | None:
        """What has come so far."""
        self._ended = True
        return self._reply


class WildcardUdpEndpoint(UdpEndpoint):
    """A socket bound to every address: a reply leaves from the address that was asked, or nobody takes it."""

    def _take(self) -> None:
        try:
            data, ancillary, _flags, client = self._socket.recvmsg(_DATAGRAM_BYTES, _ANCILLARY_BYTES)
        except OSError:
            return
        reply_from = [each for each in ancillary if each[1] in (IP_PKTINFO, socket.IPV6_PKTINFO)]

        def send(reply: bytes) -> None:
            try:
                # As received it names the interface and our address there, which is what sending wants.
                self._socket.sendmsg([reply], reply_from, socket.MSG_DONTWAIT, client)
            except OSError:
                self._stats.unsent += 1

        with self._lock:
            self._handle(data, client[0], send)
