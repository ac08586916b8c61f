"""Datagrams by their slots: recvmmsg(2), sendmmsg(2) and, for one alone, recvfrom(2), sendto(2), by ctypes.

The memory is laid out once. Datagram ``i`` of a batch lies in slot ``i``, its sender beside it; a reply is
written over the question and leaves from there, so that no address is ever decoded and encoded again.
"""

import ctypes
import mmap
import socket
from array import array
from collections.abc import Callable
from functools import partial
from struct import Struct

MOST = 64
"""Datagrams of one batch."""
SLOT_BYTES = 4096
STARTS = tuple(range(0, MOST * SLOT_BYTES, SLOT_BYTES))
"""Where each slot begins."""

_MSG_WAITFORONE = 0x10000
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


_libc = ctypes.CDLL(None)


def is_available() -> bool:
    """Whether this libc has the calls, in the layout we know."""
    has_layout = ctypes.sizeof(ctypes.c_void_p) == 8 and _MMSGHDR.size == 64
    return has_layout and hasattr(_libc, "recvmmsg") and hasattr(_libc, "sendmmsg")


class Batch:
    """The datagrams received last from one bound UDP socket, and the replies to them.

    ``data`` is the slots; a slice of it is bytes, and takes bytes of its length. ``names`` are the senders,
    of which ``hosts`` are the packed addresses.

    For a message alone there are ``receive_one``, which waits for it into the first slot and returns its
    size, less than 0 if the socket's time-out passed, and ``send_one``, which sends ``reply_bytes`` of that
    slot and returns less than 0 if the kernel will not take it. They are the calls themselves: where the next
    message comes only after the caches have gone cold, every line of Python costs.
    """

    def __init__(self, udp: socket.socket) -> None:
        self._is_ipv6 = udp.family == socket.AF_INET6
        self.data = mmap.mmap(-1, MOST * SLOT_BYTES)
        self.names = mmap.mmap(-1, MOST * _SOCKADDR_BYTES)
        begin, end = (8, 24) if self._is_ipv6 else (4, 8)
        ends = range(0, MOST * _SOCKADDR_BYTES, _SOCKADDR_BYTES)
        self.hosts = [slice(base + begin, base + end) for base in ends]
        self._room = self._headers()
        self._replies = self._headers()
        self._sizes = memoryview(self._room[0]).cast("B").cast("I")[_SIZE_AT:]
        self._reply_sizes = memoryview(self._replies[1]).cast("B").cast("Q")[1:]
        self._lay_out_calls(ctypes.c_int(udp.fileno()))

    def _lay_out_calls(self, fd: ctypes.c_int) -> None:
        pointer, at_once = ctypes.c_void_p, ctypes.c_int(socket.MSG_DONTWAIT)
        self._replies_address = ctypes.addressof(self._replies[0])
        room = pointer(ctypes.addressof(self._room[0]))
        self._receive: Callable[[], int] = partial(
            _libc.recvmmsg, fd, room, ctypes.c_uint(MOST), ctypes.c_int(_MSG_WAITFORONE), None
        )
        self._run, self._run_length = pointer(), ctypes.c_uint()
        self._send: Callable[[], int] = partial(_libc.sendmmsg, fd, self._run, self._run_length, at_once)
        data, name = pointer(_address(self.data)), pointer(_address(self.names))
        name_length = ctypes.c_uint(_SOCKADDR_BYTES)
        slot = ctypes.c_size_t(SLOT_BYTES)
        self.receive_one: Callable[[], int] = partial(
            _libc.recvfrom, fd, data, slot, ctypes.c_int(0), name, ctypes.byref(name_length)
        )
        self.reply_bytes = ctypes.c_size_t()
        self.send_one: Callable[[], int] = partial(
            _libc.sendto, fd, data, self.reply_bytes, at_once, name, ctypes.c_uint(self._name_bytes)
        )

    @property
    def _name_bytes(self) -> int:
        return 28 if self._is_ipv6 else 16

    def receive(self) -> list[int]:
        """Wait for a message as the socket does, and take what else there is; the size of each.

        Empty if the socket's time-out passed.
        """
        count = self._receive()
        return self._sizes[: count * _SIZE_STEP : _SIZE_STEP].tolist() if count > 0 else []

    def clients(self, count: int) -> set[bytes]:
        """The addresses, packed, that sent the first ``count`` messages."""
        return set(map(self.names.__getitem__, self.hosts[:count]))

    def client(self, index: int) -> Client:
        """Who sent this message, as recvfrom tells it."""
        base = index * _SOCKADDR_BYTES
        port = _PORT.unpack_from(self.names, base + 2)[0]
        packed = self.names[self.hosts[index]]
        if not self._is_ipv6:
            return socket.inet_ntop(socket.AF_INET, packed), port
        scope = _SCOPE.unpack_from(self.names, base + 24)[0]
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
            self._run.value = self._replies_address + begin * _MMSGHDR.size
            self._run_length.value = end - begin
            sent = self._send()
            if sent <= 0:
                # The first of the rest: its client has port 0 or is gone, or the buffer is full.
                unsent += 1
            begin += max(sent, 1)
        return unsent

    def _headers(self) -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]:
        """The mmsghdrs over the slots, and their iovecs."""
        headers = ctypes.create_string_buffer(MOST * _MMSGHDR.size)
        vectors = ctypes.create_string_buffer(MOST * _IOVEC.size)
        for index in range(MOST):
            name = _address(self.names) + index * _SOCKADDR_BYTES
            vector = ctypes.addressof(vectors) + index * _IOVEC.size
            slot = _address(self.data) + STARTS[index]
            _IOVEC.pack_into(vectors, index * _IOVEC.size, slot, SLOT_BYTES)
            at = index * _MMSGHDR.size
            _MMSGHDR.pack_into(headers, at, name, self._name_bytes, vector, 1, 0, 0, 0, 0)
        return headers, vectors


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
