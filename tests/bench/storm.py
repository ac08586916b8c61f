"""A real agent whose services change while hundreds of clients count every request that fails."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.fleet import Fleet, Step, answering
from tests.bench.http_load import Account, HttpLoad, build
from tests.bench.proxy_parts import Edge, rss_mb, write
from tests.lab.haproxy import fetch

LOADED_SERVICES = 100
FLEETING = tuple(f"n{number}" for number in range(40))
"""Services that come and go, about half of them at once. No other may ever answer for them."""
OF_SERVICES = 0.1
"""The share of a storm's changes that add or remove a whole service."""
WARM_SECONDS = 1.0
GRACE_SECONDS = 0.5
"""A worker that is being replaced may answer one more request on each connection, as it was told before."""
SETTLE_SECONDS = 1.0
ROUNDS = 5
LOOKS_AT_MEMORY = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How many services of how many instances, and how many clients of each of the two kinds."""

    haproxy: str
    services: int
    instances: int
    clients: int
    pause_seconds: float

    @property
    def loaded(self) -> list[str]:
        """The services that clients ask for; they are changed too, and always have an instance."""
        return [f"s{number}" for number in range(min(LOADED_SERVICES, self.services))]


@dataclass(frozen=True, slots=True)
class Storm:
    """What became of a storm of changes.

    ``caught_up_seconds`` is from the last change until HAProxy ran all of them. Of the instances of the
    services that are asked for, ``taking`` are then to take requests; ``not_asked`` are those of them that
    got none afterwards, and ``asked_in_vain`` others that did.
    """

    changes: int
    seconds: float
    late_seconds: float
    reloads: int
    caught_up_seconds: float
    account: Account
    taking: int
    not_asked: frozenset[str]
    asked_in_vain: frozenset[str]
    rss_mb: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reloads:
    """What became of forced reloads."""

    reloads: int
    seconds: tuple[float, ...]
    old_workers: int
    account: Account


def run_storm(directory: Path, plan: Plan, seconds: float, rate: float) -> Storm:
    """Change at random for so many seconds, ``rate`` times a second."""
    with _under_load(directory, plan) as (edge, fleet, load):
        before, rss = edge.reload_count, [rss_mb(edge.pid)]
        began, late_seconds, count = time.monotonic(), 0.0, round(seconds * rate)
        chosen = random.Random(3)
        for number in range(count):
            late_seconds = max(late_seconds, _wait_until(began + number / rate))
            write(edge.store, _step(fleet, chosen, plan))
            if number % max(1, count // LOOKS_AT_MEMORY) == 0:
                rss.append(rss_mb(edge.pid))
        over = time.monotonic()
        edge.wait_until_applied()
        applied = time.monotonic()
        _wait_until(applied + SETTLE_SECONDS)
        rss.append(rss_mb(edge.pid))
        reloads = edge.reload_count - before
        account = load.end()
        names = [name for name in (*plan.loaded, *FLEETING) if name in fleet.services]
        reached = set[str]().union(*(_reached(edge, fleet, name) for name in names))
    weights = {host: weight for name in names for host, weight in fleet.hosts(name).items()}
    taking = {host for host, weight in weights.items() if weight}
    asked = {host for host, sent in account.last.items() if sent > applied + GRACE_SECONDS}
    return Storm(
        changes=count,
        seconds=over - began,
        late_seconds=late_seconds,
        reloads=reloads,
        caught_up_seconds=applied - over,
        account=account,
        taking=len(taking),
        not_asked=frozenset(taking - reached),
        asked_in_vain=frozenset((asked | reached) - taking),
        rss_mb=tuple(rss),
    )


def _reached(edge: Edge, fleet: Fleet, name: str) -> set[str]:
    """Who answers for a service, in several rounds over all its instances, or in fewer when all have."""
    weights = fleet.hosts(name)
    taking = {host for host, weight in weights.items() if weight}
    answered: set[str] = set()
    for _ in range(ROUNDS * sum(weights.values())):
        answered.add(fetch(edge.port, host=f"{name}.example").text)
        if answered >= taking:
            break
    return answered


def run_reloads(directory: Path, plan: Plan, count: int) -> Reloads:
    """Force so many reloads, each once the former is over."""
    at_once = ("--proxy-reload-interval-seconds=0", "--proxy-reload-spread-seconds=0")
    old_workers = 0
    with _under_load(directory, plan, *at_once) as (edge, _fleet, load):
        before = edge.reload_count
        for _ in range(count):
            edge.force_reload()
            old_workers = max(old_workers, edge.old_workers())
        reloads = edge.reload_count - before
        seconds = edge.reload_seconds()[-reloads:]
        account = load.end()
    return Reloads(reloads, tuple(seconds), old_workers, account)


@contextmanager
def _under_load(directory: Path, plan: Plan, *arguments: str) -> Iterator[tuple[Edge, Fleet, HttpLoad]]:
    program = build(directory)
    with answering(directory) as ports:
        fleet = Fleet(plan.services, plan.instances, ports)
        with Edge(directory, fleet, f"--haproxy={plan.haproxy}", *arguments) as edge:
            load = HttpLoad(
                program,
                edge.port,
                fleet.targets(plan.loaded) + fleet.targets(FLEETING, optional=True),
                keep_alive=plan.clients,
                closing=plan.clients,
                pause_seconds=plan.pause_seconds,
                most_seconds=3600,
            )
            with load:
                _wait_until(time.monotonic() + WARM_SECONDS)
                yield edge, fleet, load


def _step(fleet: Fleet, chosen: random.Random, plan: Plan) -> Step:
    """A change of instances, half of them of services under load, or of a whole service."""
    if chosen.random() < OF_SERVICES:
        name = chosen.choice(FLEETING)
        return fleet.remove_service(name) if name in fleet.services else fleet.new_service(name, 2)
    if chosen.random() < 0.5:
        return fleet.step(chosen.choice(plan.loaded))
    return fleet.step(f"s{chosen.randrange(plan.services)}")


def _wait_until(due: float) -> float:
    """Wait for a moment of time.monotonic(); how late it was already."""
    late = time.monotonic() - due
    if late < 0:
        threading.Event().wait(-late)
    return max(0.0, late)
