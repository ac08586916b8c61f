"""Active checks against servers that answer, refuse, hang, trickle and close at once."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

import pytest

from discovery.errors import SourceError
from discovery.sources.checker import Checker
from discovery.sources.checks import Check
from tests.lab.agent import free_port
from tests.lab.wait import until

FAST = Check("tcp", "", "127.0.0.1", 1, interval_seconds=0.05, timeout_seconds=0.5)
FOR_EVER = threading.Event()


@contextmanager
def serving(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server that does ``talk`` with each connection, and then closes it; its port."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.settimeout(0.05)

        def converse(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                talk(connection)

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    continue
                threading.Thread(target=converse, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def saying(text: bytes) -> Callable[[socket.socket], object]:
    def talk(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(text)

    return talk


def silent(connection: socket.socket) -> None:
    FOR_EVER.wait(20)


def trickling(connection: socket.socket) -> None:
    while not FOR_EVER.wait(0.1):
        connection.sendall(b"H")


@pytest.fixture
def checker() -> Iterator[Checker]:
    with closing(Checker(lambda: None)) as made:
        yield made


def check_once(checker: Checker, check: Check) -> str | None:
    checker.watch({"it": check})
    assert checker.wait_settled(20)
    assert checker.up("it") == (checker.reason("it") is None)
    return checker.reason("it")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.0 302 Found\r\n\r\n", None),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "GET /up says 404"),
        (b"HTTP/1.1 503 x\r\n\r\n", "GET /up says 503"),
        (b"SSH-2.0-x\r\n", "no answer of HTTP: 'SSH-2.0-x'"),
        (b"HTTP/1.1 \xff\r\n", "no answer of HTTP"),
        (b"", "no answer"),
        (b"x" * 200_000, "no end"),
    ],
)
def test_what_an_http_check_takes_for_good(checker: Checker, answer: bytes, reason: str | None) -> None:
    with serving(saying(answer)) as port:
        found = check_once(checker, replace(FAST, kind="http", path="/up", port=port))
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize("talk", [silent, trickling])
def test_a_server_that_hangs_or_trickles_has_the_time_out_and_no_more(
    checker: Checker, talk: Callable[[socket.socket], object]
) -> None:
    with serving(talk) as port:
        found = check_once(checker, replace(FAST, kind="http", path="/", port=port))
    assert found == "no answer within 0.5 s"


def test_a_tcp_check(checker: Checker) -> None:
    with serving(silent) as port:
        assert check_once(checker, replace(FAST, port=port)) is None
    assert "no connection" in str(check_once(checker, replace(FAST, port=free_port())))


def test_a_containers_own_address_is_asked_where_it_can_be_reached(checker: Checker) -> None:
    with serving(silent) as published, serving(silent) as own:
        both = replace(FAST, port=published, container_id="x", own_host="127.0.0.1", own_port=own)
        assert check_once(checker, both) is None
        # docker-proxy accepts for a server that does not run.
        assert "refused" in str(check_once(checker, replace(both, own_port=free_port())))
        # To a group there are no connections: ENETUNREACH, without a packet.
        assert check_once(checker, replace(both, own_host="224.0.0.1")) is None
    with serving(lambda _: None) as proxy:
        proxied = replace(FAST, port=proxy, container_id="x")
        assert check_once(checker, proxied) == "the connection is closed at once"


def test_hundreds_that_hang_hold_up_nobody_and_cost_no_threads() -> None:
    woken = threading.Event()
    answering = saying(b"HTTP/1.1 200 OK\r\n\r\n")
    with serving(silent) as hanging, serving(answering) as good, closing(Checker(woken.set)) as checker:
        hung = replace(FAST, kind="http", path="/", port=hanging, timeout_seconds=20.0)
        checks = {f"hung{number}": hung for number in range(200)}
        checker.watch({**checks, "good": replace(hung, port=good)})
        until(lambda: checker.up("good"), "the good one is found good though the others hang")
        assert woken.is_set()
        assert len([each for each in threading.enumerate() if each.name.startswith("check")]) == 1
        assert not any(checker.up(key) for key in checks)


def test_rise_and_fall_and_what_is_no_longer_watched(checker: Checker) -> None:
    answers = [b"HTTP/1.1 200 OK\r\n\r\n"]
    asked = threading.Semaphore(0)

    def talk(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(answers[0])
        asked.release()

    with serving(talk) as port:
        check = replace(FAST, kind="http", path="/", port=port, fall=2)
        assert check_once(checker, check) is None
        answers[0] = b"HTTP/1.1 500 x\r\n\r\n"
        until(lambda: not checker.up("it"), "down")
        assert checker.reason("it") == "GET / says 500"
        # Under the same key another check begins anew, and one that goes is unknown.
        answers[0] = b"HTTP/1.1 200 OK\r\n\r\n"
        assert check_once(checker, replace(check, path="/other")) is None
        checker.watch({})
        assert not checker.up("it")
        assert checker.reason("it") == "it is not checked"


class StubCommands:
    """What an engine would do with a command."""

    def __init__(self) -> None:
        self.status: int | None = 0
        self.fails = False
        self.started: list[tuple[str, tuple[str, ...]]] = []

    def start_command(self, container_id: str, command: tuple[str, ...]) -> str:
        self.started.append((container_id, command))
        return str(len(self.started))

    def exit_status(self, command_id: str) -> int | None:
        if self.fails:
            raise SourceError("no engine")
        return self.status


def test_commands() -> None:
    commands = StubCommands()
    command = replace(FAST, kind="command", container_id="c1", command=("test", "-f", "/x"), fall=1)
    with closing(Checker(lambda: None, commands)) as checker:
        assert check_once(checker, command) is None
        assert commands.started[0] == ("c1", ("test", "-f", "/x"))
        commands.status = 3
        until(lambda: "status 3" in str(checker.reason("it")), "bad")
        commands.status = None
        until(lambda: "still runs" in str(checker.reason("it")), "it hangs")
        began = len(commands.started)
        commands.fails = True
        until(lambda: not checker.up("it"), "nothing is known of it now")
        assert len(commands.started) == began, "one that hangs is not started again"
        commands.fails = False
        commands.status = 0
        until(lambda: checker.up("it"), "well again")
        # The engine's silence is no verdict.
        commands.fails = True
        until(lambda: len(commands.started) > began + 3 or commands.fails, "asked again")
        assert checker.up("it")


def test_commands_are_refused_unless_allowed(checker: Checker) -> None:
    command = replace(FAST, kind="command", container_id="c1", command=("true",))
    assert "registrator.allow_exec_checks" in str(check_once(checker, command))


def test_a_bug_is_not_taken_for_a_verdict() -> None:
    class Broken(StubCommands):
        def exit_status(self, command_id: str) -> int | None:
            raise ZeroDivisionError

    woken = threading.Event()
    with closing(Checker(woken.set, Broken())) as checker:
        command = replace(FAST, kind="command", container_id="c1", command=("true",))
        checker.watch({"it": command})
        assert woken.wait(20)
        with pytest.raises(ZeroDivisionError):
            checker.watch({})


def test_closed_under_a_look_it_checks_nothing_more() -> None:
    checker = Checker(lambda: None)
    checker.watch({"it": FAST})
    checker.close()
    checker.watch({"it": FAST, "other": replace(FAST, port=2)})
    checker.close()
    assert not [each for each in threading.enumerate() if each.name == "checks"]
