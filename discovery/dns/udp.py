"""Questions over UDP: the hot path.

Most questions have been asked before, in the very same bytes but for the id, and so need no parsing. They
are taken and answered many at a time where libc lets us (batch), else one by one.
"""

import socket
import time
from collections.abc import Callable, Container
from struct import Struct

from discovery.dns.answers import LABEL_AT, MOST_ANSWERS, Answers
from discovery.dns.batch import STARTS, Batch, Client
from discovery.dns.loop import Loop
from discovery.dns.respond import Handle
from discovery.dns.stats import Stats

RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
"""A burst waits here while something else runs; below 1 MiB bursts are lost."""
_FEW = 1
_SINGLY = 16
"""After a batch of a few, so many messages are taken one by one."""
_BATCH = 64
_DATAGRAM_BYTES = 4096
_IP_PKTINFO = 8
_ANCILLARY_BYTES = socket.CMSG_SPACE(Struct("20s").size)


class UdpEndpoint:
    """One bound UDP socket. ``answers`` gives those in force; what they lack goes to ``handle``.

    ``clients`` are addresses that may ask, known without asking ``handle``.
    """

    def __init__(
        self,
        udp: socket.socket,
        clients: Container[str],
        stats: Stats,
        answers: Callable[[], Answers],
        handle: Handle,
    ) -> None:
        self._socket = udp
        self._clients = clients
        self._stats = stats
        self._answers = answers
        self._handle = handle

    def register(self, loop: Loop) -> None:
        """Have the loop call us."""
        loop.read_at_once(self._socket, self._drain)

    def _drain(self) -> None:
        """Answer one message; the loop calls again if there is another."""
        try:
            data, client = self._socket.recvfrom(_DATAGRAM_BYTES)
        except OSError:
            return
        began = time.monotonic()
        # Looked up anew for every message: it may have been sent because a new catalog is in force.
        hit = self._answers().whole.get(data[2:])
        if hit is None or client[0] not in self._clients:
            prompt = _Prompt(self._send, client)
            self._handle(data, client[0], prompt.send)
            reply = prompt.end()
            if reply is None:
                return
        else:
            answer, count = hit
            count[0] += 1
            reply = data[:2] + answer
        self._send(reply, client)
        self._stats.took("local", time.monotonic() - began)

    def _send(self, reply: bytes, client: Client) -> None:
        try:
            self._socket.sendto(reply, client)
        except OSError:
            # The client is gone, has port 0, or the buffer is full; it will ask again.
            self._stats.unsent += 1


class BatchUdpEndpoint(UdpEndpoint):
    """A socket read and written many datagrams at a time."""

    def register(self, loop: Loop) -> None:
        """Have the loop call us."""
        self._batch = Batch(self._socket)
        self._singly = 0
        super().register(loop)

    def _drain(self) -> None:
        # For a message that waits alone a batch costs more; now and then look whether it still does.
        if self._singly:
            self._singly -= 1
            super()._drain()
            return
        batch = self._batch
        sizes = batch.receive()
        if len(sizes) <= _FEW:
            self._singly = _SINGLY
            if not sizes:
                return
        began = time.monotonic()
        # Looked up only now: a message may have been sent because a new catalog is in force.
        answers = self._answers()
        data, whole = batch.data, answers.whole
        hits = [whole.get(data[begin + 2 : begin + size]) for begin, size in zip(STARTS, sizes, strict=False)]
        if not all(self._may_ask(packed) for packed in batch.hosts(len(sizes))):
            self._reply([self._miss(index, size) for index, size in enumerate(sizes)], began)
            return
        replies: list[int] = []
        for begin, size, hit in zip(STARTS, sizes, hits, strict=False):
            if hit is None:
                known = self._by_shape(answers, begin, begin + size)
                replies.append(known or self._miss(len(replies), size))
                continue
            answer, count = hit
            end = begin + 2 + len(answer)
            data[begin + 2 : end] = answer
            replies.append(end - begin)
            count[0] += 1
        self._reply(replies, began)

    def _by_shape(self, answers: Answers, begin: int, end: int) -> int:
        """Answer as others of its shape were; the size of the reply, 0 if there was none."""
        data = self._batch.data
        label = begin + LABEL_AT + 1
        after = label + data[label - 1]
        # A message that ends before its label is over has no rest, and so no shape.
        shape = answers.shapes.get(data[begin + 2 : label] + data[after:end])
        if shape is None or data[label:after].decode("latin-1") not in answers.services:
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

    def _reply(self, sizes: list[int], began: float) -> None:
        self._stats.unsent += self._batch.reply(sizes)
        self._stats.took("local", time.monotonic() - began, len(sizes) - sizes.count(0))

    def _may_ask(self, packed: bytes) -> bool:
        return socket.inet_ntop(self._socket.family, packed) in self._clients

    def _miss(self, index: int, size: int) -> int:
        """Have a message handled; the size of the reply, in its place, or 0 if there is none yet."""
        batch, begin = self._batch, STARTS[index]
        client = batch.client(index)
        prompt = _Prompt(self._send, client)
        self._handle(batch.data[begin : begin + size], client[0], prompt.send)
        reply = prompt.end()
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

    def register(self, loop: Loop) -> None:
        """Have the loop call us."""
        if self._socket.family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        super().register(loop)

    def _drain(self) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _flags, client = self._socket.recvmsg(_DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except OSError:
                return
            reply_from = [each for each in ancillary if each[1] in (_IP_PKTINFO, socket.IPV6_PKTINFO)]

            def send(reply: bytes, client=client, reply_from=reply_from) -> None:  # type: ignore[no-untyped-def]
                try:
                    # As received it names the interface and our address there, which is what sending wants.
                    self._socket.sendmsg([reply], reply_from, 0, client)
                except OSError:
                    self._stats.unsent += 1

            self._handle(data, client[0], send)
