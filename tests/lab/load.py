"""A steady load of requests, and an exact account of what became of each."""

import http.client
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that was not answered with 200."""

    at: float
    kind: str
    detail: str


@dataclass
class Load:
    """Clients, half of them with a connection per request, that ask one after the other until stopped."""

    port: int
    host: str
    path: str = "/"
    clients: int = 4
    pause_seconds: float = 0.01
    answered: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(index % 2 == 0,), daemon=True)
            for index in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    @property
    def total(self) -> int:
        """Requests answered with 200 so far."""
        return self.answered.total()

    def _run(self, keep_alive: bool) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.wait(self.pause_seconds):
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                headers = {"Host": self.host} | ({} if keep_alive else {"Connection": "close"})
                connection.request("GET", self.path, headers=headers)
                response = connection.getresponse()
                body = response.read().decode(errors="replace").strip()
                if response.status != 200:
                    self.failures.append(Failure(time.time(), str(response.status), body))
                else:
                    self.answered[body] += 1
                if response.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(Failure(time.time(), type(error).__name__, str(error)))
                if connection is not None:
                    connection.close()
                connection = None
