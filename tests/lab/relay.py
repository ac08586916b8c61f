"""A TCP relay before a server, which a test can cut, and make slow."""

import random
import socket
import threading
from contextlib import suppress


class Relay:
    """Cut, its connections end and new ones are refused. Slow, each answer is held for some time.

    ``answers`` is how many answers, or parts of long ones, were passed on; ``most_open`` how many connections
    there were at once at most.
    """

    def __init__(self, port: int) -> None:
        self.delay_seconds = (0.0, 0.0)
        self.answers = 0
        self.most_open = 0
        self._target = port
        self._connections: list[socket.socket] = []
        self._open = 0
        self._lock = threading.Lock()
        self._is_cut = False
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._connections.clear()

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self._closed.set()
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    if self._is_cut:
                        client.close()
                        continue
                    server = socket.create_connection(("127.0.0.1", self._target))
                    self._connections += [client, server]
                    self._open += 1
                    self.most_open = max(self.most_open, self._open)
                for work, here, there in ((self._ask, client, server), (self._answer, server, client)):
                    threading.Thread(target=work, args=(here, there), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        self._end(client, server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self._closed.wait(random.uniform(*self.delay_seconds))
                self.answers += 1
                client.sendall(data)
        self._end(client, server)
        with self._lock:
            self._open -= 1

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
