"""A proxy before a Docker engine's socket that lets through only what it is told to, as socket proxies do."""

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

GET_ONLY = (r"/_ping", r"/version", r"/events", r"/containers/.*", r"/networks/.*", r"/networks")
"""What a registrator may ask for: GET of these, below an API version."""

_FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class EngineProxy:
    """Listens at ``url`` and passes GET of ``allowed`` paths on to the engine's socket; 403 for the rest.

    ``refused`` are the request lines that were answered so. One request a connection.
    """

    def __init__(self, directory: Path, engine_socket: Path, allowed: Sequence[str] = GET_ONLY) -> None:
        self.path = directory / "proxy.sock"
        self.url = f"unix://{self.path}"
        self.refused: list[str] = []
        self.passed: list[str] = []
        self._engine = engine_socket
        self._allowed = re.compile(rf"GET (/v[\d.]+)?({'|'.join(allowed)})(\?\S*)? HTTP/1\.[01]")

    @contextmanager
    def running(self) -> Iterator["EngineProxy"]:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen(64)
            thread = threading.Thread(target=self._accept, args=(listener,))
            thread.start()
            try:
                yield self
            finally:
                # Wakes the accept that is under way.
                listener.shutdown(socket.SHUT_RDWR)
                thread.join(10)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                received = client.recv(65536)
                if not received:
                    return
                head += received
            line, _, rest = head.partition(b"\r\n")
            if not self._allowed.fullmatch(line.decode()):
                self.refused.append(line.decode())
                client.sendall(_FORBIDDEN)
                return
            self.passed.append(line.decode())
            # The engine ends the connection with its answer, so that what is asked next is looked at too.
            head = line + b"\r\nConnection: close\r\n" + re.sub(rb"(?i)connection:.*\r\n", b"", rest)
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(str(self._engine))
                engine.sendall(head)
                self._pass_on(engine, client)

    def _pass_on(self, engine: socket.socket, client: socket.socket) -> None:
        """The answer, for as long as both ends are there."""
        gone = threading.Thread(target=_end_with, args=(client, engine), daemon=True)
        gone.start()
        while received := engine.recv(65536):
            client.sendall(received)


def _end_with(client: socket.socket, engine: socket.socket) -> None:
    with suppress(OSError):
        while client.recv(65536):
            pass
        engine.shutdown(socket.SHUT_RDWR)
