"""HTTP/2 to the byte (RFC 9113): one request in frames of our own making, so that it may be a wrong one.

Header fields go out as literals, which no library would let through unchecked; of what comes back only the
status, the data and a reset are read.
"""

import struct
from collections.abc import Sequence
from typing import Self

from tests.lab.raw import RawAnswer, connect

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_STATIC_STATUS = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}
_ENABLE_CONNECT_PROTOCOL = struct.pack(">HI", 8, 1)

Fields = Sequence[tuple[str, str]]


class H2:
    """One connection with one stream."""

    def __init__(self, port: int) -> None:
        self._socket = connect(port)
        self._stream = self._socket.makefile("rb")
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, _ENABLE_CONNECT_PROTOCOL))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stream.close()
        self._socket.close()

    def send(self, fields: Fields, data: bytes | None = None, *, ends: bool = True) -> None:
        """A request with these header fields, pseudo-header fields first; ``ends`` closes our side."""
        last = _END_STREAM if ends and data is None else 0
        self._socket.sendall(frame(HEADERS, _END_HEADERS | last, 1, fields_block(fields)))
        if data is not None:
            self.send_data(data, ends=ends)

    def send_data(self, data: bytes, *, ends: bool = False) -> None:
        """More of the request's body, or of a tunnel."""
        self._socket.sendall(frame(DATA, _END_STREAM if ends else 0, 1, data))

    def answer(self) -> RawAnswer:
        """The response up to its end; status 0 for a reset."""
        status, body = 0, b""
        while (part := self._next()) is not None:
            kind, flags, payload = part
            if kind == HEADERS:
                status = status or _status(payload)
            elif kind == DATA:
                body += payload
            else:
                break
            if flags & _END_STREAM:
                return RawAnswer(status, [], body)
        return RawAnswer(0)

    def next_status(self) -> int:
        """The status of a response whose body is still to come, as a tunnel's is; 0 for a reset."""
        part = self._next()
        return _status(part[2]) if part is not None and part[0] == HEADERS else 0

    def next_data(self) -> bytes:
        """The next bytes of a body; none at its end or after a reset."""
        part = self._next()
        return part[2] if part is not None and part[0] == DATA else b""

    def _next(self) -> tuple[int, int, bytes] | None:
        """Type, flags and payload of the next frame that is one of a stream's, or ends it."""
        while len(head := self._stream.read(9)) == 9:
            kind, flags = head[3], head[4]
            payload = self._stream.read(int.from_bytes(head[:3], "big"))
            if kind == SETTINGS and not flags & _ACK:
                self._socket.sendall(frame(SETTINGS, _ACK, 0, b""))
            elif kind in (DATA, HEADERS, RST_STREAM, GOAWAY):
                return kind, flags, payload
        return None


def h2_ask(port: int, fields: Fields, data: bytes | None = None) -> RawAnswer:
    """The answer to one request; status 0 when it was refused by a reset."""
    with H2(port) as connection:
        try:
            connection.send(fields, data)
            return connection.answer()
        except ConnectionError:
            return RawAnswer(0)


def h2_get(
    *fields: tuple[str, str], path: str = "/", authority: str | None = "web.local", method: str = "GET"
) -> Fields:
    """The fields of a request, with these after the pseudo-header fields."""
    own = [(":method", method), (":scheme", "http"), (":path", path)]
    if authority is not None:
        own.append((":authority", authority))
    return [*own, *fields]


def fields_block(fields: Fields) -> bytes:
    """Header fields as literals that nobody is to remember (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame, of whatever sense (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _text(text: str) -> bytes:
    """A string without Huffman coding (RFC 7541, 5.1 and 5.2)."""
    data = text.encode("latin-1")
    if len(data) < 127:
        return bytes((len(data),)) + data
    size, rest = b"\x7f", len(data) - 127
    while rest >= 128:
        size += bytes((rest % 128 + 128,))
        rest //= 128
    return size + bytes((rest,)) + data


def _status(block: bytes) -> int:
    """The status, which is the first field of a response's header block."""
    if block[0] & 0x80:
        return _STATIC_STATUS[block[0] & 0x7F]
    assert block[0] & 0x0F == 8, block
    return int(block[2 : 2 + block[1]])
