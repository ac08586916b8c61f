"""What a supervisor is told, and of whom it is told that they hang."""

import threading
from collections.abc import Iterator

import pytest

from discovery.notify import Notifier, Report, keep_told, take_notifier
from discovery.workers import Workers
from tests.lab.wait import until


class Told(Notifier):
    """A notifier whose words stay here."""

    def __init__(self, watchdog_seconds: float | None = None) -> None:
        super().__init__("/nowhere", watchdog_seconds)
        self.messages: list[tuple[str, ...]] = []

    def tell(self, *lines: str) -> None:
        self.messages.append(lines)


def told_of(*reports: Report, watchdog_seconds: float | None = 0.003) -> list[tuple[str, ...]]:
    notifier = Told(watchdog_seconds)
    stop = threading.Event()
    left = list(reports)

    def report() -> Report:
        found = left.pop(0)
        if not left:
            stop.set()
        return found

    keep_told(notifier, report, stop)
    return notifier.messages


def test_ready_once_and_the_start_is_prolonged_until_then() -> None:
    waits, ready = Report(False, "waits for store"), Report(True, "2 services")
    assert told_of(waits, waits, ready, waits, ready) == [
        ("STATUS=waits for store", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000"),
        ("WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000"),
        ("STATUS=2 services", "WATCHDOG=1", "READY=1"),
        ("STATUS=waits for store", "WATCHDOG=1"),
        ("STATUS=2 services", "WATCHDOG=1"),
        ("STOPPING=1",),
    ]


def test_the_watchdog_starves_while_a_thread_is_stuck() -> None:
    stuck = Report(False, "waits", ("watcher",))
    assert told_of(stuck, Report(False, "waits")) == [
        ("STATUS=waits",),
        ("WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000"),
        ("STOPPING=1",),
    ]


def test_without_a_watchdog_it_is_not_fed() -> None:
    assert told_of(Report(True, "ok"), watchdog_seconds=None) == [("STATUS=ok", "READY=1"), ("STOPPING=1",)]


@pytest.mark.parametrize(
    ("environment", "enabled", "seconds"),
    [
        ({}, False, None),
        ({"NOTIFY_SOCKET": "/run/notify"}, True, None),
        ({"NOTIFY_SOCKET": "@abstract", "WATCHDOG_USEC": "30000000"}, True, 30.0),
        ({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, True, 30.0),
        ({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, True, None),
        ({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "soon"}, True, None),
        ({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "0"}, True, None),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, False, None),
        ({"WATCHDOG_USEC": "30000000"}, False, None),
    ],
)
def test_the_environment(environment: dict[str, str], enabled: bool, seconds: float | None) -> None:
    environ = {**environment, "PATH": "/bin"}
    notifier = take_notifier(environ, pid=7)
    assert (notifier.enabled, notifier.watchdog_seconds) == (enabled, seconds)
    assert environ == {"PATH": "/bin"}


def test_a_supervisor_that_is_gone_does_no_harm() -> None:
    Notifier("/nowhere/to/be/found").tell("READY=1")
    Notifier("@nobody-listens-here").tell("READY=1")


# ---- who is stuck -----------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workers(clock: Clock) -> Iterator[Workers]:
    made = Workers(on_failure=lambda: None, stuck_seconds=10, clock=clock)
    yield made
    made.stop(10)


def test_who_does_not_look_at_the_stop_event_is_stuck(workers: Workers, clock: Clock) -> None:
    go, hang = threading.Event(), threading.Event()

    def looks_once_and_hangs(stop: threading.Event) -> None:
        hang.wait(20)
        stop.is_set()
        go.set()
        stop.wait()

    workers.start("hangs", looks_once_and_hangs)
    workers.start("idles", lambda stop: stop.wait() and None)
    until(lambda: all(workers.alive.values()), "both run")
    assert workers.stuck == ()
    clock.now = 10
    assert workers.stuck == ()
    clock.now = 10.1
    until(lambda: workers.stuck == ("hangs",), "one hangs, one waits")
    hang.set()
    go.wait(20)
    until(lambda: workers.stuck == (), "it goes on")


def test_a_dead_thread_is_stuck(workers: Workers) -> None:
    workers.start("ends", lambda stop: None)
    until(lambda: workers.stuck == ("ends",), "it has ended")
