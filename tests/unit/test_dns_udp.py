import socket
import time
from contextlib import closing

import pytest

from discovery.dns.answers import Answers
from discovery.dns.loop import Loop
from discovery.dns.records import Zone
from discovery.dns.respond import Send
from discovery.dns.settings import DnsSettings
from discovery.dns.stats import Stats
from discovery.dns.udp import BatchUdpEndpoint, UdpEndpoint


@pytest.mark.parametrize("kind", [UdpEndpoint, BatchUdpEndpoint])
def test_a_cache_dropped_while_messages_wait_answers_none_of_them(kind: type[UdpEndpoint]) -> None:
    """A query sent after ``apply`` has returned may wait beside one that is just being answered."""
    settings = DnsSettings((("127.0.0.1", 0),), ("10.0.0.1",))
    caches = [Answers(settings, Zone(settings, {}))]
    handled: list[bytes] = []

    def handle(data: bytes, client: str, send: Send) -> bool:
        handled.append(data)
        caches[-1].whole[data[2:]] = b"stale", [0]
        caches.append(Answers(settings, Zone(settings, {})))
        send(data[:2] + b"fresh")
        return True

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        closing(Loop()) as loop,
    ):
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        client.settimeout(10)
        kind(udp, {"127.0.0.1"}, Stats(), lambda: caches[-1], handle).register(loop)
        for id_ in (b"01", b"02"):
            client.sendto(id_ + b"question", udp.getsockname())
        while len(handled) < 2:
            loop.run(time.monotonic() + 0.1, time.monotonic)
        assert [client.recv(100), client.recv(100)] == [b"01fresh", b"02fresh"]
    assert handled == [b"01question", b"02question"]
