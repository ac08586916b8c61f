"""HTTP to the byte: a backend that shows what reached it, and clients that send what no library would."""

import base64
import hashlib
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import BinaryIO

from tests.lab.haproxy import PATIENCE_SECONDS

WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# ---- behind -----------------------------------------------------------------------------------------


@dataclass
class RawBackend:
    """Answers each request with the request's own head, and keeps all that it read.

    It frames requests as strictly as can be, by one Content-Length or by ``chunked``, so that bytes which
    the proxy let through as a body and another server would take for a request show up in ``requests``.
    ``extra`` are header lines for its answers. An upgrade is answered with 101, and then every byte is sent
    back in capitals.
    """

    port: int = 0
    extra: tuple[str, ...] = ()
    requests: list[bytes] = field(default_factory=list)
    trailers: list[bytes] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        """Accept until the listener is closed."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        # A health check that leaves, or a proxy that is ended, is no news.
        with connection, suppress(OSError), connection.makefile("rb") as stream:
            connection.settimeout(PATIENCE_SECONDS)
            while head := _head(stream):
                self.requests.append(head)
                fields = header_lines(head)
                values = dict(line.lower().split(": ", 1) for line in fields)
                if "upgrade" in values:
                    self._upgrade(connection, head)
                    return
                _skip_body(stream, values, self.trailers)
                lines = ("HTTP/1.1 200 OK", f"Content-Length: {len(head)}", *self.extra)
                connection.sendall("\r\n".join((*lines, "", "")).encode("latin-1") + head)

    def _upgrade(self, connection: socket.socket, head: bytes) -> None:
        lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", *self.extra]
        for line in header_lines(head):
            name, _, value = line.partition(": ")
            if name.lower() == "upgrade":
                lines.append(line)
            elif name.lower() == "sec-websocket-key":
                # RFC 6455, 4.2.2; HAProxy checks it.
                digest = hashlib.sha1(value.encode() + WEBSOCKET_GUID, usedforsecurity=False).digest()
                lines.append(f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}")
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        while data := connection.recv(65536):
            connection.sendall(data.upper())


def _head(stream: BinaryIO) -> bytes:
    """A request's head with its empty line; nothing at the end of the stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return head
        head += line
    return head


def _skip_body(stream: BinaryIO, values: Mapping[str, str], trailers: list[bytes]) -> None:
    if values.get("transfer-encoding") == "chunked":
        while size := int(stream.readline().split(b";")[0], 16):
            stream.read(size + 2)
        while line := stream.readline().strip():
            trailers.append(line)
    else:
        stream.read(int(values.get("content-length", 0)))


def header_lines(head: bytes | str) -> list[str]:
    """The header lines of a head, each ``name: value``."""
    text = head.decode("latin-1") if isinstance(head, bytes) else head
    return [line for line in text.split("\r\n")[1:] if line]


@contextmanager
def raw_backend(*extra: str) -> Iterator[RawBackend]:
    """A RawBackend on loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        backend = RawBackend(listener.getsockname()[1], extra)
        thread = threading.Thread(target=backend.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield backend
        finally:
            # A close alone does not wake a thread that waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# ---- in front ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawAnswer:
    """One response; ``status`` is 0 when the connection was closed without any."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    @property
    def request_line(self) -> str:
        """The first line that reached the backend."""
        return self.body.decode("latin-1").split("\r\n")[0]

    def seen(self, name: str) -> list[str]:
        """The values of a header as they reached the backend, one a line."""
        assert self.status == 200, (self.status, self.body)
        pairs = (line.split(":", 1) for line in header_lines(self.body))
        return [value.strip() for key, value in pairs if key.lower() == name.lower()]

    def header(self, name: str) -> list[str]:
        """The values of a header of the response."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


def connect(port: int) -> socket.socket:
    """A connection to loopback, on which nothing waits for ever."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)


def answer_on(connection: socket.socket, method: str = "GET") -> RawAnswer:
    """The next response on a connection."""
    response = HTTPResponse(connection, method=method)
    try:
        response.begin()
        return RawAnswer(response.status, response.getheaders(), response.read())
    except ConnectionError:
        return RawAnswer(0)
    finally:
        response.close()


def ask(port: int, data: bytes | str) -> RawAnswer:
    """Send these bytes on a connection of their own; the first response."""
    with connect(port) as connection:
        with suppress(ConnectionError):
            # An answer may come before all is sent; then the rest is refused.
            connection.sendall(data.encode("latin-1") if isinstance(data, str) else data)
        return answer_on(connection)


def request(*lines: str, target: str = "/", host: str | None = "web.local", version: str = "1.1") -> str:
    """A GET request with these header lines after Host."""
    first = (f"GET {target} HTTP/{version}", *((f"Host: {host}",) if host is not None else ()))
    return "\r\n".join((*first, *lines, "", ""))
