"""Registrators that can be killed and started again; what they know is in their directory and store."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from discovery.journal import Journal
from discovery.registrator import Registrator
from discovery.sources.docker import Rules
from discovery.sources.docker_source import DockerSource
from discovery.stores.base import Store
from tests.lab.cuttable import CuttableStore
from tests.lab.dockerd import DockerEngine

TTL_SECONDS = 4.0
NODE, ADDRESS = "n1", "192.0.2.7"


class Victim(Protocol):
    """A registrator. AssertionError when it has ended by itself."""

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def stop(self) -> None: ...


class Process:
    """A registrator as a process; kill is kill -9."""

    def __init__(self, store_url: str, engine: DockerEngine, directory: Path) -> None:
        words = [store_url, engine.url, str(TTL_SECONDS), str(directory)]
        self._arguments = [sys.executable, "-m", "tests.lab.run_registrator", *words]
        self._log = directory / "registrator.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._arguments, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            assert self._process.poll() is None, self._log_tail()
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(60) == 0, self._log_tail()
        self._process = None

    def _log_tail(self) -> str:
        return f"{self._log}:\n{self._log.read_text()[-3000:]}"


class Thread:
    """A registrator in this process, for a store that is in this process; killed, it is cut off from it."""

    def __init__(self, store: Store, engine: DockerEngine, directory: Path) -> None:
        self._whole = store
        self._engine = engine
        self._directory = directory
        self._end: Callable[[], None] | None = None
        self._cut: CuttableStore | None = None

    def start(self) -> None:
        self._cut = store = CuttableStore(self._whole)
        source = DockerSource(self._engine.url, Rules(NODE, ADDRESS))
        journal = Journal(self._directory / "journal", store.url)
        registrator = Registrator(store, source, ttl_seconds=TTL_SECONDS, journal=journal)
        stop = threading.Event()
        thread = threading.Thread(target=registrator.run, args=(stop,))
        thread.start()

        def end() -> None:
            assert thread.is_alive(), "the registrator in this process has ended by itself"
            stop.set()
            thread.join(60)
            assert not thread.is_alive(), "the registrator in this process does not end"

        self._end = end

    def kill(self) -> None:
        if self._cut is not None:
            self._cut.cut = True
            self.stop()

    def stop(self) -> None:
        if self._end is not None:
            self._end()
        self._end = self._cut = None
