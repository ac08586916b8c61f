import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from discovery.dns.answers import Answers, InForce
from discovery.dns.records import Zone
from discovery.dns.respond import Handle, Send
from discovery.dns.settings import DnsSettings
from discovery.dns.stats import Stats
from discovery.dns.udp import BatchUdpEndpoint, UdpEndpoint

SETTINGS = DnsSettings((("127.0.0.1", 0),), ("10.0.0.1",))
KINDS = pytest.mark.parametrize("kind", [UdpEndpoint, BatchUdpEndpoint])


def no_answers() -> Answers:
    return Answers(SETTINGS, Zone(SETTINGS, {}))


@contextmanager
def serving(
    kind: type[UdpEndpoint], handle: Handle, in_force: InForce, lock: threading.Lock, *waiting: bytes
) -> Iterator[socket.socket]:
    """A client of an endpoint that found the messages ``waiting`` when it began."""
    stop = threading.Event()
    with ExitStack() as stack:
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        client.settimeout(10)
        client.connect(udp.getsockname())
        for message in waiting:
            client.send(message)
        endpoint = kind(udp, {"127.0.0.1", bytes((127, 0, 0, 1))}, Stats(), in_force, handle, lock)
        thread = threading.Thread(target=endpoint.serve, args=(stop,))
        thread.start()
        try:
            yield client
        finally:
            stop.set()
            thread.join(10)
            assert not thread.is_alive()


@KINDS
def test_a_cache_dropped_while_messages_wait_answers_none_of_them(kind: type[UdpEndpoint]) -> None:
    """A query sent after ``apply`` has returned may wait beside one that is just being answered."""
    in_force = InForce(no_answers())
    handled: list[bytes] = []

    def handle(data: bytes, client: str, send: Send) -> bool:
        handled.append(data)
        in_force.answers.whole[data[2:]] = b"stale", [0]
        in_force.answers = no_answers()
        send(data[:2] + b"fresh")
        return True

    waiting = [b"01question", b"02question", b"03question"]
    with serving(kind, handle, in_force, threading.Lock(), *waiting) as client:
        assert [client.recv(100) for _ in waiting] == [b"01fresh", b"02fresh", b"03fresh"]
    assert handled == waiting


@KINDS
def test_a_reply_that_comes_at_once_from_another_thread_is_sent_once(kind: type[UdpEndpoint]) -> None:
    """That thread waits for the lock while the message is being handed over."""
    lock = threading.Lock()

    def handle(data: bytes, client: str, send: Send) -> bool:
        assert lock.locked()

        def answer() -> None:
            with lock:
                send(data[:2] + b"late")

        threading.Thread(target=answer).start()
        return True

    with serving(kind, handle, InForce(no_answers()), lock) as client:
        for number in range(200):
            client.send(b"%02dquestion" % (number % 100))
            assert client.recv(100) == b"%02dlate" % (number % 100)


@KINDS
def test_it_ends_while_messages_keep_coming(kind: type[UdpEndpoint]) -> None:
    """One now and then keeps no thread from looking at its stop event, nor does a flood."""
    in_force = InForce(no_answers())
    in_force.answers.whole[b"known"] = b"known", [0]
    ended = threading.Event()

    def keep_asking(client: socket.socket, pause_seconds: float) -> None:
        while not ended.wait(pause_seconds):
            with suppress(ConnectionRefusedError):
                client.send(b"01known")

    for pause_seconds in (0.0, 0.05):
        ended.clear()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            with serving(kind, lambda *_: False, in_force, threading.Lock()) as client:
                other.connect(client.getpeername())
                asking = threading.Thread(target=keep_asking, args=(other, pause_seconds))
                asking.start()
                client.send(b"02known")
                assert client.recv(100) == b"02known"
            ended.set()
            asking.join(10)


@KINDS
def test_whoever_is_not_known_is_not_answered_from_the_cache(kind: type[UdpEndpoint]) -> None:
    """Also where strangers' messages wait among others'."""
    in_force = InForce(no_answers())
    in_force.answers.whole[b"known"] = b"answer", [0]
    handled: list[str] = []

    def handle(data: bytes, client: str, send: Send) -> bool:
        handled.append(client)
        if client == "127.0.0.1":
            send(data[:2] + b"handled")
        return True

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        serving(kind, handle, in_force, threading.Lock()) as client,
    ):
        stranger.bind(("127.0.0.2", 0))
        stranger.connect(client.getpeername())
        for round_ in range(20):
            for _ in range(20):
                stranger.send(b"02known")
                client.send(b"01known")
            assert {client.recv(100) for _ in range(20)} <= {b"01answer", b"01handled"}
            assert handled.count("127.0.0.2") == 20 * (round_ + 1)
