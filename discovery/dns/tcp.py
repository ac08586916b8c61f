"""Questions over TCP (RFC 7766): several on a connection, answered as their answers come."""

import selectors
import socket
from collections.abc import Callable

from discovery.dns.respond import Handle

IDLE_SECONDS = 10.0
MOST_CONNECTIONS = 100
MOST_PENDING = 32
"""Questions of one connection that wait for an upstream; then it is not read on."""
_MOST_UNSENT_BYTES = 128 * 1024
_CHUNK_BYTES = 4096
_ACCEPTS = 16


class TcpEndpoint:
    """One listening socket and its connections.

    ``allows`` decides by a client's address whether it may connect.
    """

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        handle: Handle,
        allows: Callable[[str], bool],
        *,
        clock: Callable[[], float],
        idle_seconds: float = IDLE_SECONDS,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        self.selector = selector
        self.handle = handle
        self.clock = clock
        self.connections: dict[_Connection, None] = {}
        self._listener = listener
        self._allows = allows
        self._idle_seconds = idle_seconds
        self._most_connections = most_connections
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def expire(self) -> None:
        """Close what has been idle for too long."""
        earliest = self.clock() - self._idle_seconds
        for connection in list(self.connections):
            if connection.active_at < earliest:
                connection.close()

    def close(self) -> None:
        """Close every connection; the listener is its maker's."""
        for connection in list(self.connections):
            connection.close()

    def _accept(self, _events: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                accepted, client = self._listener.accept()
            except OSError:
                return
            if not self._allows(client[0]):
                accepted.close()
                continue
            if len(self.connections) >= self._most_connections:
                # Whoever asks now matters more than whoever asked least lately.
                min(self.connections, key=lambda each: each.active_at).close()
            accepted.setblocking(False)
            self.connections[_Connection(self, accepted, client[0])] = None


class _Connection:
    def __init__(self, endpoint: TcpEndpoint, tcp: socket.socket, client: str) -> None:
        self.active_at = endpoint.clock()
        self._endpoint = endpoint
        self._socket = tcp
        self._client = client
        self._received = bytearray()
        self._unsent = bytearray()
        self._pending = 0
        self._ended = False
        self._open = True
        self._processing = False
        self._events = 0
        self._watch()

    def close(self) -> None:
        """Drop the connection and whatever was still to be said on it."""
        if self._open:
            self._open = False
            if self._events:
                self._endpoint.selector.unregister(self._socket)
            self._socket.close()
            del self._endpoint.connections[self]

    def _on_event(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush()
            if events & selectors.EVENT_READ:
                chunk = self._socket.recv(_CHUNK_BYTES)
                self._received += chunk
                self._ended = not chunk
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._process()

    def _process(self) -> None:
        """Take up what has been received whole, as far as the bounds allow."""
        # A reply may come while we are at it, and lead here again.
        if self._processing or not self._open:
            return
        self._processing = True
        while self._open and not self._is_full():
            length = int.from_bytes(self._received[:2], "big")
            if len(self._received) < 2 + length or len(self._received) < 2:
                break
            message = bytes(self._received[2 : 2 + length])
            del self._received[: 2 + length]
            self.active_at = self._endpoint.clock()
            self._pending += 1
            if not self._endpoint.handle(message, self._client, self._reply):
                # No DNS client says such a thing.
                self.close()
        self._processing = False
        self._watch()

    def _reply(self, message: bytes) -> None:
        if not self._open:
            return
        self._pending -= 1
        self._unsent += len(message).to_bytes(2, "big") + message
        try:
            self._flush()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._process()

    def _flush(self) -> None:
        if self._unsent:
            del self._unsent[: self._socket.send(self._unsent)]
            self.active_at = self._endpoint.clock()

    def _is_full(self) -> bool:
        return self._pending >= MOST_PENDING or len(self._unsent) > _MOST_UNSENT_BYTES

    def _watch(self) -> None:
        """Have the loop call us for what we can use now."""
        if not self._open:
            return
        if self._ended and not self._pending and not self._unsent:
            self.close()
            return
        events = selectors.EVENT_WRITE if self._unsent else 0
        if not self._ended and not self._is_full():
            events |= selectors.EVENT_READ
        if events == self._events:
            return
        if not self._events:
            self._endpoint.selector.register(self._socket, events, self._on_event)
        elif not events:
            self._endpoint.selector.unregister(self._socket)
        else:
            self._endpoint.selector.modify(self._socket, events, self._on_event)
        self._events = events
