"""Many datagrams in one call to the kernel: recvmmsg(2) and sendmmsg(2), called by ctypes.

The memory is laid out once. Datagram ``i`` of a batch lies in slot ``i``, its sender beside it; a reply is
written over the question and leaves from there, so that no address is ever decoded and encoded again.
"""

import ctypes
import mmap
import socket
from array import array
from collections.abc import Callable
from struct import Struct

MOST = 64
"""Datagrams of one batch."""
SLOT_BYTES = 4096
STARTS = tuple(range(0, MOST * SLOT_BYTES, SLOT_BYTES))
"""Where each slot begins."""

_SOCKADDR_BYTES = 32
"""Room for a sockaddr_in (16) or a sockaddr_in6 (28)."""
_IOVEC = Struct("@PN")
_MMSGHDR = Struct("@PIxxxxPNPNixxxxIxxxx")
"""struct mmsghdr where a pointer has 64 bits: name and length, iovecs, control, flags; the size."""
_SIZE_AT = 14
_SIZE_STEP = 16
"""In units of four bytes: where the sizes of received datagrams stand."""
_PORT = Struct(">H")
_SCOPE = Struct("@I")

Client = tuple[str, int] | tuple[str, int, int, int]
_Call = Callable[..., int]


def _calls() -> tuple[_Call, _Call] | None:
    if ctypes.sizeof(ctypes.c_void_p) != 8 or _MMSGHDR.size != 64:
        return None
    try:
        libc = ctypes.CDLL(None)
        receive, send = libc.recvmmsg, libc.sendmmsg
    except (OSError, AttributeError):
        return None
    pointer = ctypes.c_void_p
    receive.argtypes = (ctypes.c_int, pointer, ctypes.c_uint, ctypes.c_int, pointer)
    send.argtypes = (ctypes.c_int, pointer, ctypes.c_uint, ctypes.c_int)
    return receive, send


_CALLS = _calls()


def is_available() -> bool:
    """Whether this libc has the calls, in the layout we know."""
    return _CALLS is not None


class Batch:
    """The datagrams received last from one bound UDP socket, and the replies to them.

    ``data`` is the slots; a slice of it is bytes, and takes bytes of its length.
    """

    def __init__(self, udp: socket.socket) -> None:
        assert _CALLS is not None
        self._receive, self._send = _CALLS
        self._fd = udp.fileno()
        self._is_ipv6 = udp.family == socket.AF_INET6
        self.data = mmap.mmap(-1, MOST * SLOT_BYTES)
        self._names = mmap.mmap(-1, MOST * _SOCKADDR_BYTES)
        begin, end = (8, 24) if self._is_ipv6 else (4, 8)
        ends = range(0, MOST * _SOCKADDR_BYTES, _SOCKADDR_BYTES)
        self._hosts = [slice(base + begin, base + end) for base in ends]
        self._room = self._headers()
        self._replies = self._headers()
        self._room_address = ctypes.addressof(self._room[0])
        self._replies_address = ctypes.addressof(self._replies[0])
        self._sizes = memoryview(self._room[0]).cast("B").cast("I")[_SIZE_AT:]
        self._reply_sizes = memoryview(self._replies[1]).cast("B").cast("Q")[1:]

    def receive(self) -> list[int]:
        """Take what waits, without waiting; the size of each message, none if nothing waits."""
        count = self._receive(self._fd, self._room_address, MOST, socket.MSG_DONTWAIT, None)
        return self._sizes[: count * _SIZE_STEP : _SIZE_STEP].tolist() if count > 0 else []

    def hosts(self, count: int) -> set[bytes]:
        """The addresses, packed, that sent the first ``count`` messages."""
        return set(map(self._names.__getitem__, self._hosts[:count]))

    def client(self, index: int) -> Client:
        """Who sent this message, as recvfrom tells it."""
        base = index * _SOCKADDR_BYTES
        port = _PORT.unpack_from(self._names, base + 2)[0]
        packed = self._names[self._hosts[index]]
        if not self._is_ipv6:
            return socket.inet_ntop(socket.AF_INET, packed), port
        scope = _SCOPE.unpack_from(self._names, base + 24)[0]
        return socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope

    def reply(self, sizes: list[int]) -> int:
        """Send the replies in the slots, of these sizes, 0 for none; how many the kernel would not take."""
        count = len(sizes)
        self._reply_sizes[: 2 * count : 2] = memoryview(array("Q", sizes))
        if 0 not in sizes:
            return self._send_run(0, count)
        unsent = begin = 0
        for index, size in enumerate((*sizes, 0)):
            if not size:
                unsent += self._send_run(begin, index)
                begin = index + 1
        return unsent

    def _send_run(self, begin: int, end: int) -> int:
        unsent = 0
        while begin < end:
            header = self._replies_address + begin * _MMSGHDR.size
            sent = self._send(self._fd, header, end - begin, socket.MSG_DONTWAIT)
            if sent <= 0:
                # The first of the rest: its client has port 0 or is gone, or the buffer is full.
                unsent += 1
            begin += max(sent, 1)
        return unsent

    def _headers(self) -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]:
        """The mmsghdrs over the slots, and their iovecs."""
        headers = ctypes.create_string_buffer(MOST * _MMSGHDR.size)
        vectors = ctypes.create_string_buffer(MOST * _IOVEC.size)
        name_bytes = 28 if self._is_ipv6 else 16
        for index in range(MOST):
            name = _address(self._names) + index * _SOCKADDR_BYTES
            vector = ctypes.addressof(vectors) + index * _IOVEC.size
            slot = _address(self.data) + STARTS[index]
            _IOVEC.pack_into(vectors, index * _IOVEC.size, slot, SLOT_BYTES)
            at = index * _MMSGHDR.size
            _MMSGHDR.pack_into(headers, at, name, name_bytes, vector, 1, 0, 0, 0, 0)
        return headers, vectors


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
