"""DNS answers against dnsmasq's: dnsperf asks both in turn on the same machine; medians of the pairs.

    python -m tests.bench.dns [--seconds 5] [--pairs 5]

The server under test has core 0, dnsperf core 1; with two processes all share both, and dnsperf asks from
two threads, lest it be what is measured. CPU is the server's user and system time. A ratio is ours by
dnsmasq's, of the pair; the column is the median of the pairs.
"""

import argparse
import contextlib
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import dnslib

from discovery.catalog import Catalog, Instance, Service
from discovery.dns.processes import DnsProcesses
from discovery.dns.server import DnsServer
from discovery.dns.settings import Address, DnsSettings
from discovery.haproxy.preview import render_files
from tests.bench.figures import machine, percentile, print_table
from tests.lab.dns import EDGE, eventually, free_port, query, rcode, serving
from tests.lab.haproxy import settings
from tests.lab.need import need

SETTINGS = DnsSettings((("127.0.0.1", 0),), (EDGE,), upstreams=())
CLIENTS = 8


class Run(NamedTuple):
    """What one run of dnsperf showed; times in seconds."""

    per_second: float
    lost: int
    p99_seconds: float
    cpu_seconds: float


class Side(NamedTuple):
    """One of the two servers."""

    address: Address
    pids: tuple[int, ...]

    def pin(self, cores: str) -> None:
        for pid in self.pids:
            subprocess.run(["taskset", "-apc", cores, str(pid)], check=True, stdout=subprocess.DEVNULL)

    def run(self, names: Path, seconds: float, cores: str, *options: str) -> Run:
        before = self.cpu()
        command = ["taskset", "-c", cores, need("dnsperf"), "-s", self.address[0], "-p", str(self.address[1])]
        command += ["-d", str(names), "-l", f"{seconds:g}", "-c", str(CLIENTS), *options]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        completed = int(_figure(output, r"Queries completed:\s+(\d+)"))
        latencies = [float(found) for found in re.findall(r"^> \w+ \S+ \w+ ([\d.]+)$", output, re.MULTILINE)]
        return Run(
            _figure(output, r"Queries per second:\s+([\d.]+)"),
            int(_figure(output, r"Queries lost:\s+(\d+)")),
            percentile(latencies, 99) if latencies else 0.0,
            (self.cpu() - before) / max(completed, 1),
        )

    def cpu(self) -> float:
        """CPU time of user and system of all threads, to the nanosecond; /proc/PID/stat tells it in 10 ms."""
        threads = (each for pid in self.pids for each in Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(each.read_text().split()[0]) for each in threads) / 1e9


def _figure(output: str, pattern: str) -> float:
    found = re.search(pattern, output)
    assert found, output
    return float(found[1])


@contextlib.contextmanager
def ours(services: int, processes: int = 1, upstreams: tuple[Address, ...] = ()) -> Iterator[Side]:
    server = DnsProcesses(replace(SETTINGS, upstreams=upstreams), processes=processes)
    with serving(server, _catalog(services)):
        yield Side(server.addresses[0], server.pids)


@contextlib.contextmanager
def theirs() -> Iterator[Side]:
    port = free_port()
    command = [need("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    command += ["--pid-file=", "--user=root", f"--port={port}", "--listen-address=127.0.0.1"]
    command += ["--bind-interfaces", "--local-ttl=5", f"--address=/local/{EDGE}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _answers(("127.0.0.1", port)))
            yield Side(("127.0.0.1", port), (process.pid,))
        finally:
            process.terminate()


def compare(
    arguments: argparse.Namespace,
    names: Path,
    services: int,
    processes: int = 1,
    options: Sequence[str] = (),
) -> tuple[Run, Run, Run]:
    """The medians of ours, of dnsmasq's and of the pairs' ratios."""
    ours_cores, load_cores = ("0", "1") if processes == 1 else ("0,1", "0,1")
    pairs = []
    with ours(services, processes) as mine, theirs() as other:
        mine.pin(ours_cores)
        other.pin(ours_cores)
        for _ in range(arguments.pairs):
            pairs.append(
                tuple(side.run(names, arguments.seconds, load_cores, *options) for side in (mine, other))
            )
    return (
        _median([one for one, _ in pairs]),
        _median([two for _, two in pairs]),
        _median([_ratios(one, two) for one, two in pairs]),
    )


def _ratios(one: Run, other: Run) -> Run:
    p99 = one.p99_seconds / other.p99_seconds if other.p99_seconds else 0.0
    cpu = one.cpu_seconds / other.cpu_seconds if other.cpu_seconds else 0.0
    return Run(one.per_second / other.per_second, one.lost, p99, cpu)


def _median(runs: Sequence[Run]) -> Run:
    columns = list(zip(*runs, strict=True))
    median = [statistics.median(column) for column in columns]
    return Run(median[0], int(max(columns[1])), median[2], median[3])


def _catalog(services: int, revision: int = 1) -> Catalog:
    instance = Instance("a", "10.0.0.1", 80)
    return Catalog(revision, {f"s{i}": Service(f"s{i}", instances=(instance,)) for i in range(services)})


def _answers(address: Address) -> bool:
    try:
        return rcode(query(address, "s0.local", timeout_seconds=0.2)) == "NOERROR"
    except OSError:
        return False


# ---- against dnsmasq


def saturated(arguments: argparse.Namespace, names: Path) -> list[list[str]]:
    one, other, ratio = compare(arguments, names, 1000)
    return [
        _row(
            "queries/s, 1,000 names, one process",
            "≥ 1.1 times",
            one.per_second,
            other.per_second,
            ratio.per_second,
        ),
        _row(
            "CPU µs a query, saturated",
            "≤ 0.9 times",
            one.cpu_seconds * 1e6,
            other.cpu_seconds * 1e6,
            ratio.cpu_seconds,
        ),
    ]


def two_processes(arguments: argparse.Namespace, names: Path) -> list[list[str]]:
    one, other, ratio = compare(arguments, names, 1000, processes=2, options=("-T", "2"))
    return [
        _row("queries/s, two processes", "≥ 1.3 times", one.per_second, other.per_second, ratio.per_second)
    ]


def paced(arguments: argparse.Namespace, names: Path) -> list[list[str]]:
    one, other, ratio = compare(arguments, names, 1000, options=("-Q", "10000", "-v"))
    cpu, p99 = 1e6 * one.cpu_seconds, 1e6 * one.p99_seconds
    return [
        _row("CPU µs a query at 10,000 qps", "≤ 1.15 times", cpu, other.cpu_seconds * 1e6, ratio.cpu_seconds),
        _row("p99 µs at 10,000 qps", "≤ 1.1 times", p99, other.p99_seconds * 1e6, ratio.p99_seconds),
    ]


def uncached(arguments: argparse.Namespace, names: Path) -> list[list[str]]:
    one, other, ratio = compare(arguments, names, 300_000)
    return [
        _row("queries/s, 300,000 names", "≥ 1.0 times", one.per_second, other.per_second, ratio.per_second)
    ]


def _row(what: str, wanted: str, one: float, other: float, ratio: float) -> list[str]:
    return [what, wanted, f"{one:,.1f}", f"{other:,.1f}", f"{ratio:.2f} times"]


# ---- in themselves


def dead_upstream(arguments: argparse.Namespace, names: Path) -> list[list[str]]:
    """Local names while 100 questions a second go to an upstream that says nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with ours(1000, upstreams=(silent.getsockname(),)) as side:
            side.pin("0")
            paces = ("-Q", "1000", "-v")
            idle = side.run(names, arguments.seconds, "1", *paces)
            waits: list[float] = []
            stop = threading.Event()
            asker = threading.Thread(target=_ask_outside, args=(side.address, stop, waits))
            asker.start()
            busy = side.run(names, arguments.seconds, "1", *paces)
            stop.set()
            asker.join()
    ratio = busy.p99_seconds / idle.p99_seconds
    p99 = f"{busy.p99_seconds * 1e6:.0f}", f"{idle.p99_seconds * 1e6:.0f} idle", f"{ratio:.2f} times"
    return [
        ["local names, upstream dead: lost", "0", str(busy.lost), "", ""],
        ["local names, upstream dead: p99 µs", "≤ 2 times idle", *p99],
        ["forwarded, upstream dead: longest s", "< 2", f"{max(waits):.2f}", f"{len(waits)} asked", ""],
    ]


def _ask_outside(address: Address, stop: threading.Event, waits: list[float]) -> None:
    """Ask for names outside the zone, 100 a second; how long each answer took, 60 s where none came."""
    asked: dict[int, float] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(address)
        client.settimeout(0.01)
        end = None
        while end is None or (asked and time.monotonic() < end):
            if end is None:
                number = len(asked) + len(waits)
                asked[number] = time.monotonic()
                record = dnslib.DNSRecord.question(f"n{number}.example.org")
                record.header.id = number
                client.send(record.pack())
                end = time.monotonic() + 5 if stop.is_set() else None
            with contextlib.suppress(TimeoutError):
                number = int.from_bytes(client.recv(4096)[:2], "big")
                waits.append(time.monotonic() - asked.pop(number))
    waits += [60.0] * len(asked)


def one_changes(arguments: argparse.Namespace, names: Path) -> list[list[str]]:
    """10,000 services, one comes or goes; and what a client sees that asks for another without a pause."""
    server = DnsProcesses(SETTINGS)
    catalog = _catalog(10_000)
    with serving(server, catalog):
        address = server.addresses[0]
        stop = threading.Event()
        applied, stalls = [], []
        command = [
            "taskset",
            "-c",
            "1",
            need("dnsperf"),
            "-s",
            address[0],
            "-p",
            str(address[1]),
            "-d",
            str(names),
        ]
        command += ["-l", "4", "-c", "1", "-q", "20", "-Q", "2000", "-v"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
            assert load.stdout
            for line in load.stdout:
                if line.startswith(">"):
                    break
            lines: list[str] = []
            reader = threading.Thread(target=lambda: lines.extend(load.stdout or ()))
            reader.start()
            for number in range(20):
                name = f"new{number}"
                began = time.monotonic()
                catalog = Catalog(2 + number, {**catalog.services, name: Service(name)})
                server.apply(catalog)
                assert rcode(query(address, f"{name}.local")) == "NOERROR"
                applied.append(time.monotonic() - began)
                stop.wait(0.1)
            reader.join()
        stalls = [float(found[1]) for line in lines if (found := re.match(r"> \w+ \S+ \w+ ([\d.]+)$", line))]
    took = f"{statistics.median(applied) * 1e3:.1f}", f"{max(applied) * 1e3:.1f} longest", ""
    slowest = sorted(stalls)[-3:]
    return [
        ["10,000 services, one changes: ms until answered", "≤ 20", *took],
        [
            "…longest answer meanwhile, ms",
            "≤ 5",
            f"{slowest[-1] * 1e3:.1f}",
            f"of {len(stalls):,}",
            "",
        ],
    ]


def isolated(arguments: argparse.Namespace, names: Path) -> list[list[str]]:
    """What a renderer that never pauses, in the agent, does to answers; beside it, what it would do in one
    process with them.
    """
    rows = []
    for server, where, wanted in (
        (DnsProcesses(SETTINGS), "in a process of its own", "as idle"),
        (DnsServer(SETTINGS), "in the agent itself, to compare", ""),
    ):
        with serving(server, _catalog(1000)):
            pids = server.pids if isinstance(server, DnsProcesses) else ()
            side = Side(server.addresses[0], pids)
            pairs = []
            for _ in range(arguments.pairs):
                paces = ("-Q", "1000", "-v")
                idle = side.run(names, arguments.seconds, "0,1", *paces)
                with rendering():
                    busy = side.run(names, arguments.seconds, "0,1", *paces)
                pairs.append((busy, idle))
        busy, idle = _median([busy for busy, _ in pairs]), _median([idle for _, idle in pairs])
        ratio = _median([_ratios(busy, idle) for busy, idle in pairs]).p99_seconds
        figures = f"{busy.p99_seconds * 1e6:.0f}", f"{idle.p99_seconds * 1e6:.0f} idle", f"{ratio:.2f} times"
        rows.append([f"p99 µs while the agent renders, {where}", wanted, *figures])
    return rows


@contextlib.contextmanager
def rendering() -> Iterator[None]:
    """HAProxy's files for 10,000 services, rendered again and again on a thread of this process."""
    catalog, stop = _catalog(10_000), threading.Event()
    with tempfile.TemporaryDirectory() as directory:
        wanted = settings(Path(directory), need("haproxy"))

        def render() -> None:
            while not stop.is_set():
                render_files(wanted, catalog)

        thread = threading.Thread(target=render)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


PARTS: dict[str, tuple[Callable[[argparse.Namespace, Path], list[list[str]]], int]] = {
    "saturated": (saturated, 1000),
    "two": (two_processes, 1000),
    "paced": (paced, 1000),
    "uncached": (uncached, 300_000),
    "dead": (dead_upstream, 1000),
    "change": (one_changes, 1000),
    "isolated": (isolated, 1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as directory:
        for part in arguments.parts or PARTS:
            measure, count = PARTS[part]
            names = Path(directory) / "names"
            names.write_text("".join(f"s{number}.local A\n" for number in range(count)))
            rows += measure(arguments, names)
    version = subprocess.run(
        [need("dnsmasq"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    print(machine(), "·", " ".join(version.split()[:3]))
    print_table("DNS", ["figure", "wanted", "ours", "dnsmasq", "ratio"], rows)


if __name__ == "__main__":
    main()
