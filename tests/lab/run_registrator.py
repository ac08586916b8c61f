"""A registrator as a process of its own: `python -m tests.lab.run_registrator STORE DOCKER TTL [STATE]`."""

import signal
import sys
import threading
from contextlib import closing
from pathlib import Path
from types import FrameType

from discovery.journal import Journal
from discovery.registrator import Registrator
from discovery.sources.docker import Rules
from discovery.sources.docker_source import DockerSource
from discovery.stores import open_store


def main(store_url: str, docker_url: str, ttl_seconds: str, state: str | None = None) -> None:
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    source = DockerSource(docker_url, Rules("n1", "192.0.2.7"))
    with closing(open_store(store_url)) as store:
        journal = Journal(Path(state, "journal"), store.url) if state else None
        Registrator(store, source, ttl_seconds=float(ttl_seconds), journal=journal).run(stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
