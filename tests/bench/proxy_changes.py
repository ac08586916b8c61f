"""The proxy role under change: how soon, at what cost, with how many reloads, and what its clients notice.

    python -m tests.bench.proxy_changes [SECTION…] [--services N] [--instances N] [--changes N] [--seconds S]

Sections, all of them unless some are named:

changes  one change of an instance after the other, from the write to the store to the confirmation that the
         running worker has it; every few changes one reload is forced, so that both are of one run
new      the same for a new service, and for a new tcp service on a held port
storm    random changes at a steady rate while hundreds of clients count every request that fails
reloads  forced reloads under the same clients
memory   the agent's resident memory at 10,000 services

Every instance really answers, with its own address, and a request to a service fails when any other answers
it. After each section the worker's servers and weights are compared with what was wanted.
"""

import argparse
import logging
import random
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import structlog

from discovery.haproxy.settings import parse_held_ports
from discovery.schema import SERVICES
from tests.bench.figures import machine, percentile, print_table
from tests.bench.fleet import Fleet, Step, answering
from tests.bench.http_load import Account
from tests.bench.proxy_parts import (
    Edge,
    Pipeline,
    cpu_now,
    helpers_of,
    rss_mb,
    running_servers,
    write,
)
from tests.bench.storm import Plan, run_reloads, run_storm
from tests.lab.etcd import Etcd
from tests.lab.haproxy import fetch, front_port
from tests.lab.need import need

FORCED = 10
SPACING_SECONDS = 0.05
NEW_SERVICES = 40

Rows = list[list[str]]


def ms(seconds: Sequence[float], percent: float) -> str:
    """A percentile in ms, to the tenth."""
    return f"{percentile(seconds, percent) * 1000:.1f}"


# ---- changes ----------------------------------------------------------------------------------------


def changes(options: argparse.Namespace, directory: Path, services: int, instances: int) -> Rows:
    """Random changes of instances, and forced reloads in between."""
    waits: dict[str, list[float]] = {}
    reloads: list[float] = []
    worker_cpu = 0.0
    with (
        answering(directory) as ports,
        Pipeline(directory, options.haproxy, max_reloads=options.changes) as pipeline,
    ):
        fleet = Fleet(services, instances, ports)
        pipeline.fill(fleet.entries())
        chosen = random.Random(2)
        cpu, began_with = _own_cpu(), pipeline.reload_count
        for number in range(options.changes):
            if number % max(1, options.changes // FORCED) == 0:
                cpu_before = _own_cpu()
                reloads.append(pipeline.force_reload())
                cpu += _own_cpu() - cpu_before
            worker = pipeline.worker()
            cpu_before = cpu_now(worker)
            step = fleet.step(f"s{chosen.randrange(services)}")
            waits.setdefault(step.kind, []).append(pipeline.change(step))
            worker_cpu += max(0.0, cpu_now(worker) - cpu_before)
            # What is put off, such as the files, is to be done, and counted, before the next change.
            threading.Event().wait(SPACING_SECONDS)
        cpu = _own_cpu() - cpu
        reloaded = pipeline.reload_count - began_with - len(reloads)
        assert running_servers(pipeline.settings.master_socket) == fleet.wanted(), "it runs something else"
    size = f"{services:,} of {instances}"
    every = [wait for each in waits.values() for wait in each]
    rows = [[size, kind, str(len(each)), *_spread(each), "", "", ""] for kind, each in sorted(waits.items())]
    per_change = [f"{spent / len(every) * 1000:.1f}" for spent in (cpu, worker_cpu)]
    rows.append([size, "all changes", str(len(every)), *_spread(every), *per_change, str(reloaded)])
    rows.append([size, "a forced reload", str(len(reloads)), *_spread(reloads), "", "", str(len(reloads))])
    ratio = percentile(every, 50) / percentile(reloads, 50)
    rows.append([size, "a change to a reload", "", f"{ratio:.3f} times", *[""] * 5])
    return rows


def _spread(waits: Sequence[float]) -> list[str]:
    return [ms(waits, 50), ms(waits, 99), ms(waits, 100)]


def _own_cpu() -> float:
    """CPU seconds of the role's threads and of what they ran, without this one's, which measures."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() - time.thread_time() + children.ru_utime + children.ru_stime


# ---- new services -----------------------------------------------------------------------------------


def new(options: argparse.Namespace, directory: Path) -> Rows:
    """New http services, and new tcp services on held ports, one after the other, then their removal.

    Reloads are paced as in an agent: the one that makes spare backends anew waits until nobody waits for it.
    """
    first = _free_ports(NEW_SERVICES)
    held = tuple(parse_held_ports((f"tcp:{first}-{first + NEW_SERVICES - 1}",)))
    rows: Rows = []
    paced = {"reload_interval_seconds": 2.0, "reload_spread_seconds": 0.5, "held_ports": held}
    with answering(directory) as ports, Pipeline(directory, options.haproxy, **paced) as pipeline:
        fleet = Fleet(options.services, options.instances, ports)
        pipeline.fill(fleet.entries())
        makers: dict[str, Callable[[int], Step]] = {
            "new http service": lambda number: fleet.new_service(f"h{number}", 2),
            "new tcp service, held port": lambda number: fleet.new_service(f"t{number}", 2, first + number),
            "removed http service": lambda number: fleet.remove_service(f"h{number}"),
        }
        for kind, make in makers.items():
            before, waits = pipeline.reload_count, []
            for number in range(NEW_SERVICES):
                step = make(number)
                waits.append(pipeline.change(step))
                _check_answers(pipeline, step, fleet, first + number)
                threading.Event().wait(SPACING_SECONDS)
            reloaded = pipeline.reload_count - before
            rows.append([kind, str(len(waits)), *_spread(waits), str(reloaded)])
        assert running_servers(pipeline.settings.master_socket) == fleet.wanted(), "it runs something else"
    return rows


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that are free, none of those that clients are given."""
    for first in range(20_000, 32_000, count):
        with ExitStack() as held, suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError(f"no {count} ports in a row are free")


def _check_answers(pipeline: Pipeline, step: Step, fleet: Fleet, host_port: int) -> None:
    """Applied means served: the very next request has to find it so."""
    tcp = step.puts.get(f"{SERVICES}{step.service}/scheme") == "tcp"
    answer = fetch(host_port if tcp else front_port(pipeline.settings), host=f"{step.service}.example")
    if step.kind == "remove service":
        assert answer.status == 404, (step.service, answer)
    else:
        assert answer.text in fleet.hosts(step.service), (step.service, answer)


# ---- under load -------------------------------------------------------------------------------------


def storm(options: argparse.Namespace, directory: Path) -> Rows:
    """Random changes at a steady rate under load, with the memory of the agent over time."""
    told = run_storm(directory, _plan(options), options.seconds, options.rate)
    rss = told.rss_mb
    return [
        [
            "changes",
            f"{told.changes:,} in {told.seconds:.1f} s, one begun {told.late_seconds * 1000:.0f} ms late",
        ],
        ["reloads", str(told.reloads)],
        ["all changes applied after the last one", f"{told.caught_up_seconds * 1000:.0f} ms"],
        *_account(told.account),
        ["instances that are gone or drain, and were asked afterwards", str(len(told.asked_in_vain))],
        ["instances that were not asked afterwards", f"{len(told.not_asked)} of {told.taking}"],
        [
            "agent's RSS MB: first, at half, last, most",
            _figures(rss[0], rss[len(rss) // 2], rss[-1], max(rss)),
        ],
    ]


def reloads(options: argparse.Namespace, directory: Path) -> Rows:
    """Forced reloads, one after the other, under load."""
    told = run_reloads(directory, _plan(options), options.reloads)
    return [
        ["reloads", str(told.reloads)],
        ["a reload, p50 and p99 ms", f"{ms(told.seconds, 50)}, {ms(told.seconds, 99)}"],
        ["old workers, at most", str(told.old_workers)],
        *_account(told.account),
    ]


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        options.haproxy, options.services, options.instances, options.clients, options.pause_ms / 1000
    )


def _account(account: Account) -> Rows:
    kinds = ", ".join(f"{count} {kind}" for kind, count in account.failures.items())
    for line in account.first_failures:
        print("  failed:", line)
    return [
        ["requests, keep-alive", f"{account.keep_alive:,}"],
        ["requests, each on a connection of its own", f"{account.closing:,}"],
        ["requests/s", f"{account.answered / account.seconds:,.0f}"],
        ["…of them to services that were not there, as they come and go", f"{account.absent:,}"],
        ["**failed requests**", f"{account.failed}" + (f" ({kinds})" if kinds else "")],
        ["connections closed while nothing was asked", f"{account.idle_closes}"],
        ["answer p50, p99, longest ms", _figures(account.p50_ms, account.p99_ms, account.longest_ms)],
    ]


def _figures(*values: float) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


# ---- memory -----------------------------------------------------------------------------------------


def memory(options: argparse.Namespace, directory: Path) -> Rows:
    """An agent that serves 10,000 services of 2, then 500 changes; with etcd v3 and with files."""
    rows: Rows = []
    with Etcd(directory / "etcd") as etcd:
        for name, url in (("etcd v3", etcd.url(3)), ("files", None)):
            place = directory / name.partition(" ")[0]
            place.mkdir(exist_ok=True)
            fleet = Fleet(options.big_services, options.big_instances, [9])
            arguments = (f"--haproxy={options.haproxy}",)
            with Edge(place, fleet, *arguments, roles="proxy,dns,status", store_url=url) as edge:
                rows.append([f"{name}, started", *_memory_of(edge)])
                for number in range(500):
                    write(edge.store, fleet.step(f"s{number * 7 % options.big_services}"))
                edge.wait_until_applied()
                rows.append([f"{name}, after 500 changes", *_memory_of(edge)])
    return rows


def _memory_of(edge: Edge) -> list[str]:
    helpers = sum(rss_mb(pid) for pid in helpers_of(edge.pid))
    return [f"{each:.0f}" for each in (rss_mb(edge.pid), helpers, rss_mb(edge.worker()))]


# ---- all --------------------------------------------------------------------------------------------

CHANGES_COLUMNS = [
    "services of instances",
    "change",
    "n",
    "p50 ms",
    "p99 ms",
    "longest ms",
    "CPU ms each",
    "worker's CPU ms each",
    "reloads",
]
NEW_COLUMNS = ["change", "n", "p50 ms", "p99 ms", "longest ms", "reloads"]


def all_changes(options: argparse.Namespace, directory: Path) -> Rows:
    """At both sizes."""
    sizes = ((options.services, options.instances), (options.big_services, options.big_instances))
    rows: Rows = []
    for number, (services, instances) in enumerate(sizes):
        place = directory / str(number)
        place.mkdir()
        rows += changes(options, place, services, instances)
    return rows


SECTIONS: dict[str, tuple[str, list[str], Callable[[argparse.Namespace, Path], Rows]]] = {
    "changes": ("store written to running in the worker", CHANGES_COLUMNS, all_changes),
    "new": ("new services", NEW_COLUMNS, new),
    "storm": ("a storm of changes under load", ["", ""], storm),
    "reloads": ("forced reloads under load", ["", ""], reloads),
    "memory": (
        "RSS in MB at 10,000 services of 2",
        ["", "agent", "its DNS process", "HAProxy's worker"],
        memory,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", choices=[*SECTIONS, []])
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--big-services", type=int, default=10_000)
    parser.add_argument("--big-instances", type=int, default=2)
    parser.add_argument("--changes", type=int, default=300, help="how many in the section of that name")
    parser.add_argument("--seconds", type=float, default=60, help="how long the storm lasts")
    parser.add_argument("--rate", type=float, default=100, help="changes a second in the storm")
    parser.add_argument("--reloads", type=int, default=50, help="how many are forced under load")
    parser.add_argument("--clients", type=int, default=200, help="so many keep-alive, as many that are not")
    parser.add_argument("--pause-ms", type=float, default=50, help="of a client, between two requests")
    parser.add_argument("--haproxy", default=None, help="the program; default haproxy on the PATH")
    options = parser.parse_args()
    # Its log lines would drown the tables; what fails is still told.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    options.haproxy = options.haproxy or need("haproxy")
    for section in options.sections or SECTIONS:
        title, columns, run = SECTIONS[section]
        with tempfile.TemporaryDirectory() as directory:
            rows = run(options, Path(directory))
        print_table(title, columns, rows)
    print(machine())


if __name__ == "__main__":
    main()
