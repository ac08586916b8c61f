"""External against somebody who answers at the admin socket as workers do that begin and end."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from discovery.haproxy.external import SETTLED_ANSWERS, External, WorkerReplaced
from discovery.haproxy.program import Program
from discovery.haproxy.settings import ProxySettings


class Is(NamedTuple):
    """What a worker says of itself."""

    pid: int
    started: int = 1000
    stopping: int = 0


class Answers:
    """Each connection is one worker's: the next of the list, the last one for ever."""

    def __init__(self, *workers: Is) -> None:
        self.left = list(workers)
        self.asked: list[str] = []

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(65536).decode())
                worker = self.left.pop(0) if len(self.left) > 1 else self.left[0]
                info = f"Name: HAProxy\nVersion: 2.6.12\nPid: {worker.pid}\nStopping: {worker.stopping}\n"
                rest = "\nanswer\n" if ";quit" in self.asked[-1].partition(";")[2] else ""
                connection.sendall(f"{info}Start_time_sec: {worker.started}\n\n{rest}".encode())


@contextmanager
def answering(of: ProxySettings, *workers: Is) -> Iterator[Answers]:
    of.directory.mkdir(parents=True, exist_ok=True)
    answers = Answers(*workers)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(of.admin_socket))
        listener.listen()
        thread = threading.Thread(target=answers.serve, args=(listener,))
        thread.start()
        try:
            yield answers
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)


@pytest.fixture
def of(tmp_path: Path) -> ProxySettings:
    return ProxySettings(tmp_path, (tmp_path,), mode="external", reload_cmd="true", start_timeout_seconds=5)


def external(of: ProxySettings) -> External:
    return External(of, Program(Path("/nowhere/haproxy"), "2.6.12"))


def test_worker_that_is_stopping_is_not_taken_over(of: ProxySettings) -> None:
    with answering(of, Is(7, stopping=1)):
        engine = external(of)
        assert not engine.adopt()
        assert engine.pid is None


def test_command_that_a_stopping_worker_took_is_lost(of: ProxySettings) -> None:
    with answering(of, Is(7), Is(7, stopping=1)) as answers:
        engine = external(of)
        assert engine.adopt()
        with pytest.raises(WorkerReplaced):
            engine.ask("show version")
        assert answers.asked[-1] == "show info;show version\n"


def test_worker_of_the_same_id_is_another_one(of: ProxySettings) -> None:
    """In a container HAProxy is always number 8."""
    with answering(of, Is(8), Is(8), Is(8, started=1001), Is(8, started=1001), Is(8, started=1002)):
        engine = external(of)
        assert engine.adopt()
        assert engine.pid == 8
        assert engine.wait_for_end(0)
        engine.start()
        assert engine.pid == 8


def test_reload_is_over_when_the_former_worker_takes_no_more_connections(of: ProxySettings) -> None:
    """While both listen, either may have the next connection."""
    old, new = Is(7), Is(9)
    gone = [Is(7, stopping=1)] * SETTLED_ANSWERS
    both = [old, old, *[old] * SETTLED_ANSWERS, *gone, new, old, new, new, *gone, new, new, Is(8), new]
    with answering(of, *both) as answers:
        engine = external(of)
        assert engine.adopt()
        engine.reload()
        # One look to adopt, one before the command; the last of the list is the first of those in a row.
        assert len(answers.asked) == len(both) - 1 + SETTLED_ANSWERS
        assert engine.pid == 9
