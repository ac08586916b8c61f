"""What the agent and a process that answers tell each other: pickled tuples over a socket pair.

    to the process   ("begin", settings, resolv_conf, descriptors, waits)   once, first
                     ("services", {name: Service or None})                  None: it is gone
                     ("commit", number, revision)                           all that came before is in force
    from it          ("applied", number)    ("counts", Counts)    ("log", level, fields)

Its end tells the other side that this one is gone, however it went.
"""

import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any

Message = tuple[Any, ...]

_LENGTH_BYTES = 4
_CHUNK_BYTES = 256 * 1024
_MOST_UNSENT_BYTES = 1024 * 1024


class PipeEnded(Exception):
    """The other side is gone."""


def pack(message: Message) -> bytes:
    """A message as bytes, its length first."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class Reader:
    """Takes messages from one end. Only for a peer that is ourselves: it unpickles."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._received = bytearray()

    def read(self) -> Iterator[Message]:
        """Read once, waiting as the socket does, and give what is whole. Raises PipeEnded."""
        try:
            chunk = self._pipe.recv(_CHUNK_BYTES)
        except (BlockingIOError, TimeoutError):
            return
        except OSError as error:
            raise PipeEnded from error
        if not chunk:
            raise PipeEnded
        self._received += chunk
        while len(self._received) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._received[:_LENGTH_BYTES], "big")
            if len(self._received) < end:
                return
            body = bytes(self._received[_LENGTH_BYTES:end])
            del self._received[:end]
            yield pickle.loads(body)


class Writer:
    """Writes to one end, from any thread, without waiting: an agent that is stopped must not stop answers."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._unsent = bytearray()

    def write(self, message: Message) -> None:
        """Send, now or with a later message; not at all where the peer takes nothing for long."""
        with self._lock:
            if len(self._unsent) < _MOST_UNSENT_BYTES:
                self._unsent += pack(message)
            self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._pipe.send(self._unsent, socket.MSG_DONTWAIT)]
        except OSError:
            # Full, or the peer is gone, which the reader sees.
            return
