"""What is answered without parsing is what would have been answered with it."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import dnslib
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discovery.catalog import Catalog, Instance, Service
from discovery.dns import wire
from discovery.dns.records import Zone
from discovery.dns.respond import Reply, respond
from discovery.dns.server import DnsServer
from discovery.dns.settings import DnsSettings
from tests.lab.dns import serving

SETTINGS = DnsSettings(
    (("127.0.0.1", 0),),
    ("172.17.42.1", "fd00::42"),
    zones=("local", "svc.example.org"),
    upstreams=(),
    cache_entries=0,
)
SERVICES = {
    name: Service(name, instances=(Instance("a", "10.0.0.1", 8000),))
    for name in ("web", "api", "ns", "deep", "w", "svc", "wob")
}
# No edge serves it, so that it has no address.
SERVICES["udp"] = Service("udp", udp=(Instance("a", "10.0.0.1", 53),), routed=False)
CATALOG = Catalog(7, SERVICES)

labels = st.sampled_from(
    (
        *(b"web", b"Web", b"api", b"wob", b"udp", b"nos", b"w", b"ns", b"deep"),
        *(b"_web", b"_tcp", b"w\xe9b", b"10-0-0-1", b"--%a"),
    )
)
suffixes = st.sampled_from(
    ((b"local",), (b"LOCAL",), (b"svc", b"example", b"org"), (b"deep", b"local"), (b"loca",))
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    name = (*draw(st.lists(labels, max_size=3)), *draw(suffixes))
    question = b"".join(bytes((len(label),)) + label for label in name) + b"\0"
    question += draw(st.sampled_from((1, 1, 28, 28, 33, 16, 6, 255))).to_bytes(2, "big")
    question += draw(st.sampled_from((1, 1, 1, 3))).to_bytes(2, "big")
    opt = draw(st.sampled_from((b"", b"", b"\0\0\x29\x04\xd0\0\0\0\0\0\0", b"\0\0\x29\x02\0\0\1\0\0\0\0")))
    flags = draw(st.sampled_from((b"\1\0", b"\1\0", b"\0\0", b"\1\x20", b"\x80\0", b"\x28\0")))
    message = b"id" + flags + b"\0\1\0\0\0\0" + (b"\0\1" if opt else b"\0\0") + question + opt
    cut = draw(st.sampled_from((None, None, None, None, None, 12, 13, 14, 20, -1)))
    return message[:cut]


@pytest.fixture(scope="module", params=["two zones", "a zone in a zone", "a wildcard"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[DnsServer, Zone]]:
    chosen = {
        "two zones": SETTINGS,
        "a zone in a zone": replace(SETTINGS, zones=("local", "deep.local")),
        "a wildcard": replace(SETTINGS, wildcard=True),
    }[request.param]
    with serving(DnsServer(chosen), CATALOG) as server:
        yield server, Zone(chosen, CATALOG.services, CATALOG.revision)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(burst=st.lists(messages(), min_size=1, max_size=30))
def test_a_burst_is_answered_as_each_message_would_be(
    served: tuple[DnsServer, Zone], burst: list[bytes]
) -> None:
    server, zone = served
    expected: dict[bytes, bytes] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(server.addresses[0])
        for number, message in enumerate(burst):
            asked = number.to_bytes(2, "big") + message[2:]
            outcome = respond(zone, asked, stream=False)
            if isinstance(outcome, Reply):
                expected[asked[:2]] = outcome.message
            elif outcome is not None:
                reply = wire.build_reply(
                    outcome, wire.Sections(wire.SERVFAIL), authoritative=False, most_bytes=wire.UDP_BYTES
                )
                expected[asked[:2]] = reply  # there is nobody to ask
            client.send(asked)
        seen = {reply[:2]: reply for reply in (client.recv(4096) for _ in expected)}
    for id_, reply in expected.items():
        assert seen[id_] == reply


@pytest.mark.parametrize("first", ["web", "udp"])
def test_what_is_learnt_of_one_kind_of_service_is_not_said_of_another(first: str) -> None:
    """The messages wait before the server runs, so that it takes them as a batch."""
    names = [first] * 40 + [name for name in SERVICES if len(name) == 3]
    server = DnsServer(SETTINGS)
    server.start()
    server.apply(CATALOG)
    zone = Zone(SETTINGS, CATALOG.services, CATALOG.revision)
    expected: dict[bytes, bytes] = {}
    stop = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(server.addresses[0])
        for number, name in enumerate(names):
            message = number.to_bytes(2, "big") + dnslib.DNSRecord.question(f"{name}.local").pack()[2:]
            outcome = respond(zone, message, stream=False)
            assert isinstance(outcome, Reply)
            expected[message[:2]] = outcome.message
            client.send(message)
        thread = threading.Thread(target=server.run, args=(stop,))
        thread.start()
        try:
            seen = {reply[:2]: reply for reply in (client.recv(4096) for _ in expected)}
        finally:
            stop.set()
            thread.join(10)
            server.close()
    assert seen == expected
