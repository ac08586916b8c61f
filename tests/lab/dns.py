"""Real resolvers, clients and upstreams for the DNS tests, on free ports of loopback."""

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dnslib

from discovery.catalog import Catalog, Instance, Service
from discovery.dns.server import DnsServer
from discovery.dns.settings import Address
from tests.lab.need import need

EDGE = "172.17.42.1"
CATALOG = Catalog(
    1,
    {
        "web": Service("web", instances=(Instance("a", "10.0.0.1", 8000),)),
        "idle": Service("idle"),
        "many": Service("many", instances=tuple(Instance(str(i), f"10.1.0.{i}", 80) for i in range(1, 41))),
    },
)


@contextlib.contextmanager
def serving(server: DnsServer, catalog: Catalog | None = CATALOG) -> Iterator[DnsServer]:
    """Start the server, run it on a thread, and end it."""
    server.start()
    stop = threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    try:
        if catalog is not None:
            server.apply(catalog)
        yield server
    finally:
        stop.set()
        thread.join(10)
        server.close()
        assert not thread.is_alive()


@contextlib.contextmanager
def dnsmasq(*options: str, host: str = "127.0.0.1", port: int | None = None) -> Iterator[Address]:
    """A dnsmasq that knows only what ``options`` say, and is ready."""
    port = port or free_port(host)
    command = [need("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    command += [
        "--local=/ready.invalid/",
        "--pid-file=",
        "--user=root",
        f"--port={port}",
        f"--listen-address={host}",
        "--bind-interfaces",
    ]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _answers((host, port)))
        yield host, port
    finally:
        process.terminate()
        process.wait(10)


class Upstream:
    """A resolver whose every reply the test decides, and which keeps what it was asked."""

    def __init__(self, reply: Callable[[bytes], Sequence[bytes]]) -> None:
        self.asked: list[bytes] = []
        self.clients: list[Address] = []
        self._reply = reply
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def address(self) -> Address:
        host, port = self._socket.getsockname()
        return host, port

    def __enter__(self) -> "Upstream":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                message, client = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            name = str(dnslib.DNSRecord.parse(message).q.qname)
            if name.endswith(".test."):
                continue  # the probe for loops
            self.asked.append(message)
            self.clients.append(client)
            for reply in self._reply(message):
                self._socket.sendto(reply, client)


def silent(_message: bytes) -> Sequence[bytes]:
    return ()


def answer(message: bytes, address: str = "192.0.2.1", **header: int) -> bytes:
    """An answer to ``message`` with one A record."""
    reply = dnslib.DNSRecord.parse(message).reply()
    for field, value in header.items():
        setattr(reply.header, field, value)
    if not header.get("rcode"):
        reply.add_answer(dnslib.RR(reply.q.qname, dnslib.QTYPE.A, rdata=dnslib.A(address), ttl=60))
    return bytes(reply.pack())


def query(
    server: Address, name: str, qtype: str = "A", *, tcp: bool = False, timeout_seconds: float = 10
) -> dnslib.DNSRecord:
    """The server's reply to one question."""
    record = dnslib.DNSRecord.question(name, qtype)
    packed = record.send(server[0], server[1], tcp=tcp, timeout=timeout_seconds, ipv6=":" in server[0])
    reply = dnslib.DNSRecord.parse(packed)
    assert reply.header.id == record.header.id
    return reply


def rcode(reply: dnslib.DNSRecord) -> str:
    return str(dnslib.RCODE[reply.header.rcode])


def dig(server: Address, *arguments: str) -> str:
    command = [need("dig"), f"@{server[0]}", "-p", str(server[1]), "+tries=1", "+time=10", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout


def eventually(condition: Callable[[], object], timeout_seconds: float = 20) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free for UDP and TCP."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with (
            socket.socket(family, socket.SOCK_STREAM) as tcp,
            socket.socket(family, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind((host, 0))
            port = int(tcp.getsockname()[1])
            with contextlib.suppress(OSError):
                udp.bind((host, port))
                return port


def resolv_conf(directory: Path, *servers: str) -> Path:
    path = directory / "resolv.conf"
    path.write_text("".join(f"nameserver {server}\n" for server in servers))
    return path


def _answers(address: Address) -> bool:
    try:
        query(address, "ready.invalid", timeout_seconds=0.2)
    except OSError:
        return False
    return True
