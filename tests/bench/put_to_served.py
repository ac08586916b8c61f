"""From `etcdctl put` of one changed host to the first answer from it, at 10, 1,000 and 10,000 services.

    python -m tests.bench.put_to_served [SERVICES…]

Each change moves the one instance of one service between two backends; all other services have two. The
wait counts from before etcdctl is started.
"""

import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from discovery.stores import StoreOptions, open_store
from tests.bench.figures import cpu_seconds, machine, milliseconds, percentile, print_table
from tests.lab.agent import Agent
from tests.lab.etcd import Etcd

CHANGES = 20


class Named(BaseHTTPRequestHandler):
    """Answers with its server's port."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def backend() -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Named)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def fill(etcd: Etcd, services: int, port: int) -> None:
    values = {}
    for number in range(services):
        values[f"/services/s{number}/scheme"] = "http"
        for instance in ("a", "b") if number else ("a",):
            values[f"/services/s{number}/hosts/{instance}"] = f"127.0.0.1:{port}"
    with open_store(etcd.url(3), StoreOptions(timeout_seconds=60)) as store:
        store.put(values)


def measure(services: int, backends: tuple[int, int]) -> list[str]:
    with tempfile.TemporaryDirectory() as directory, Etcd(Path(directory) / "etcd") as etcd:
        fill(etcd, services, backends[0])
        with Agent(Path(directory) / "agent", etcd.url(3), roles="proxy,status") as agent:
            agent.wait(lambda: agent.get("/", "s0.x")[0] == 200, "serves", 120)
            assert agent.process
            waits = []
            cpu = cpu_seconds(agent.process.pid)
            for change in range(CHANGES):
                port = backends[(change + 1) % 2]
                waits.append(change_and_wait(agent, etcd, port))
            spent = (cpu_seconds(agent.process.pid) - cpu) / CHANGES
            reloads = agent.metric_sum("discovery_haproxy_reloads_total")
    return [
        f"{services:,}",
        milliseconds(waits, 50),
        milliseconds(waits, 99),
        f"{spent * 1000:.0f}",
        f"{percentile(waits, 50) / services * 1e6:.0f}",
        f"{reloads:.0f}",
    ]


def change_and_wait(agent: Agent, etcd: Etcd, port: int) -> float:
    began = time.monotonic()
    etcd.ctl(3, "put", "/services/s0/hosts/a", f"127.0.0.1:{port}")
    while agent.get("/", "s0.x")[1] != str(port):
        if time.monotonic() - began > 60:
            raise AssertionError("not served within a minute")
        time.sleep(0.002)
    return time.monotonic() - began


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [10, 1000, 10000]
    backends = (backend(), backend())
    print(machine())
    print_table(
        "etcdctl put to served",
        ["services", "p50 ms", "p99 ms", "agent CPU ms a change", "p50 µs a service", "reloads"],
        [measure(size, backends) for size in sizes],
    )


if __name__ == "__main__":
    main()
