"""From `etcdctl put` of one changed host to the first answer from it, at 10, 1,000 and 10,000 services.

    python -m tests.bench.put_to_served [SERVICES…]

Each change moves the one instance of one service between two backends; all other services have two. The
wait counts from before etcdctl is started. CPU is the agent's, without the HAProxy that serves.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from discovery.stores import StoreOptions, open_store
from tests.bench.figures import cpu_seconds, machine, milliseconds, percentile, print_table
from tests.lab.agent import Agent, free_port
from tests.lab.etcd import Etcd
from tests.lab.need import need

CHANGES = 20


@contextmanager
def backends() -> Iterator[tuple[int, int]]:
    """Two ports whose answers name them: a HAProxy, for all the health checks would drown a Python server."""
    ports = free_port(), free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "haproxy.cfg"
        binds = "".join(f"    bind 127.0.0.1:{port}\n" for port in ports)
        config.write_text(
            "global\n    maxconn 5000\n"
            "defaults\n    mode http\n    timeout client 30s\n    timeout server 30s\n"
            f"frontend named\n{binds}"
            "    http-request return status 200 content-type text/plain lf-string %[dst_port]\n"
        )
        with subprocess.Popen([need("haproxy"), "-f", str(config), "-db"]) as process:
            try:
                yield ports
            finally:
                process.terminate()


def fill(etcd: Etcd, services: int, port: int) -> None:
    values = {}
    for number in range(services):
        values[f"/services/s{number}/scheme"] = "http"
        for instance in ("a", "b") if number else ("a",):
            values[f"/services/s{number}/hosts/{instance}"] = f"127.0.0.1:{port}"
    with closing(open_store(etcd.url(3), StoreOptions(timeout_seconds=60))) as store:
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
    with backends() as ports:
        rows = [measure(size, ports) for size in sizes]
    print(machine())
    columns = [
        "services",
        "p50 ms",
        "p99 ms",
        "CPU ms a change",
        "p50 µs a service",
        "reloads",
    ]
    print_table("etcdctl put to served", columns, rows)


if __name__ == "__main__":
    main()
