"""One question over TCP to an upstream whose reply did not fit into UDP (RFC 7766), without blocking."""

import secrets
import selectors
import socket
from collections.abc import Callable

from discovery.dns import wire
from discovery.dns.settings import Address
from discovery.dns.upstreams import family_of
from discovery.dns.wire import Query, UpstreamReply

_CHUNK_BYTES = 16384


class StreamExchange:
    """Connects, sends, reads one reply and calls ``done`` with it, or with None when it came to nothing.

    Calls nobody after ``close``, which is also the owner's time-out.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        upstream: Address,
        query: Query,
        done: Callable[[UpstreamReply | None], None],
        *,
        edns: bool,
    ) -> None:
        self._selector = selector
        self._query = query
        self._done = done
        self._id = secrets.randbits(16)
        message = wire.build_query(query, self._id, edns=edns)
        self._unsent = len(message).to_bytes(2, "big") + message
        self._received = bytearray()
        self._open = True
        self._socket = socket.socket(family_of(upstream[0]), socket.SOCK_STREAM)
        self._socket.setblocking(False)
        # A failure shows as an event, so that nothing is called back from here.
        self._socket.connect_ex(upstream)
        selector.register(self._socket, selectors.EVENT_WRITE, self._on_event)

    def close(self) -> None:
        """Give up."""
        if self._open:
            self._open = False
            self._selector.unregister(self._socket)
            self._socket.close()

    def _on_event(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send()
            else:
                self._receive()
        except BlockingIOError:
            return
        except OSError:
            self._end(None)

    def _send(self) -> None:
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "cannot connect")
        self._unsent = self._unsent[self._socket.send(self._unsent) :]
        if not self._unsent:
            self._selector.modify(self._socket, selectors.EVENT_READ, self._on_event)

    def _receive(self) -> None:
        chunk = self._socket.recv(_CHUNK_BYTES)
        self._received += chunk
        length = int.from_bytes(self._received[:2], "big")
        if len(self._received) >= 2 + length and len(self._received) > 2:
            reply = wire.parse_reply(bytes(self._received[2 : 2 + length]), self._id, self._query)
            self._end(reply if reply is not None and reply.complete else None)
        elif not chunk:
            self._end(None)

    def _end(self, reply: UpstreamReply | None) -> None:
        self.close()
        self._done(reply)
