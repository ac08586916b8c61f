"""The composition root: which parts a process has, how they are wired, the order of start and stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import structlog

from discovery import __version__, roles
from discovery.builder import CatalogBuilder
from discovery.catalog import Catalog, Problem
from discovery.config import Configuration
from discovery.dns.processes import DnsProcesses
from discovery.edges import EdgeReporter
from discovery.errors import ConfigError, DiscoveryError, SourceError
from discovery.feed import Feed
from discovery.follow import QUIET_SECONDS, Applier, Follower
from discovery.haproxy.apply import HAProxy
from discovery.lastgood import LastGood
from discovery.malloc import return_what_is_freed
from discovery.node import find_node
from discovery.notify import Notifier, Report, keep_told
from discovery.pathwatch import PathWatch
from discovery.registrator import Registrator
from discovery.schema import SERVICES
from discovery.settings import ROLES
from discovery.status.metrics import Metrics
from discovery.status.server import StatusServer
from discovery.status.view import StatusView
from discovery.stores.base import Store
from discovery.template_files import TemplateFile, TemplateFileApplier, poke_on_keys
from discovery.watcher import Fold, KeysFold, Watcher
from discovery.workers import Workers

log = structlog.get_logger(__name__)

T = TypeVar("T")

STOP_SECONDS = 10.0
SIGNAL_SECONDS = 0.1
"""How soon a signal is acted on."""


def run_agent(
    configuration: Configuration,
    store: Store,
    wanted: tuple[str, ...] | None,
    notifier: Notifier | None = None,
) -> None:
    """Run these roles, or those of the settings, until a signal ends it. Raises what ends it otherwise."""
    return_what_is_freed()
    with stop_on_signals() as stop:
        agent = Agent(configuration, store, wanted, stop)
        told = threading.Thread(
            target=keep_told, args=(notifier or Notifier(), agent.report, stop), name="notify", daemon=True
        )
        try:
            agent.start()
            told.start()
            stop.wait()
        finally:
            agent.stop()
        log.info("stopped")


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGINT and SIGHUP set. In the main thread only.

    SIGHUP is what a terminal that is closed sends; one that is ignored, as under nohup(1), stays so.

    The handler just takes a note, which a thread reads: an Event must not be set in a handler, for that may
    interrupt a wait for the same Event while it holds its lock.
    """
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda given, _frame: received.append(given))
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SIGNAL_SECONDS):
            if received:
                log.info("stopping", signal=signal.Signals(received[0]).name)
                stop.set()

    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield stop
    finally:
        stop.set()


class Agent:
    """The parts of one process. ``start`` raises ConfigError when a role that was asked for cannot run."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        wanted: tuple[str, ...] | None,
        stop: threading.Event,
    ) -> None:
        self._configuration = configuration
        self._settings = configuration.settings
        self._store = store
        self._roles = wanted if wanted is not None else self._settings.roles
        self._asked_for = wanted is not None or configuration.origins["roles"] != "default"
        self._node = find_node(self._settings.node.name, self._settings.node.address)
        self._metrics = Metrics()
        self._feed: Feed[Catalog] = Feed()
        # What tells others of this node ends first: keys go before what they promise does.
        self._outward = Workers(on_failure=stop.set)
        self._inward = Workers(on_failure=stop.set)
        self._watcher: Watcher[Catalog] | None = None
        self._followers: list[Follower] = []
        self._haproxy: HAProxy | None = None
        self._edges: EdgeReporter | None = None
        self._dns: DnsProcesses | None = None
        self._registrator: Registrator | None = None
        self._watches: list[PathWatch] = []

    # -- life

    def start(self) -> None:
        """Start every role; the status first, so that waiting for the store can be seen.

        The proxy last: a role that cannot run must not take down the HAProxy that a former agent left.
        """
        builders = {
            "status": self._start_status,
            "registrator": self._make_registrator,
            "dns": self._start_dns,
            "proxy": self._start_proxy,
        }
        started = [role for role, build in builders.items() if role in self._roles and self._try(role, build)]
        for template in self._configuration.templates:
            self._start_template(template)
        if not self._roles:
            raise ConfigError("roles", "names no role", f"choose of {', '.join(ROLES)}")
        if started in ([], ["status"]) and set(self._roles) != {"status"} and not self._followers:
            raise ConfigError(
                "roles", "no role can run on this node", "the warnings above say what each needs"
            )
        if self._registrator is not None:
            self._outward.start("registrator", self._registrator.run)
        self._start_watcher()
        log.info(
            "started",
            version=__version__,
            node=self._node.name,
            address=self._node.address,
            roles=",".join(started),
            store=self._store.url,
        )

    def stop(self) -> None:
        """Withdraw this node's keys, then end what serves. Raises what made a thread fail.

        HAProxy is then left to the next agent: our bug must not become the edge's outage.
        """
        self._outward.stop(STOP_SECONDS)
        for watch in self._watches:
            watch.stop()
        self._inward.stop(STOP_SECONDS)
        if self._dns is not None:
            self._dns.close()
        failure = self._outward.failure or self._inward.failure
        if self._haproxy is not None:
            self._haproxy.stop(leave_running=failure is not None)
        if failure is not None:
            raise failure

    def report(self) -> Report:
        """What a supervisor is told: ready when `/readyz` says so."""
        readiness = self._readiness()
        waiting = [part for part, ready in readiness.items() if not ready]
        latest = self._feed.latest
        services = len(latest.value.services) if latest else 0
        registrator = self._registrator
        state = f"{services} services"
        if registrator is not None:
            state += f", {registrator.status.registered} instances registered"
        if self._watcher is not None and not self._watcher.connected:
            state += ", the store is out of reach"
        return Report(
            ready=not waiting,
            status=f"waits for {', '.join(waiting)}; {state}" if waiting else state,
            stuck=(
                *self._inward.stuck,
                *self._outward.stuck,
                *(registrator.stuck if registrator is not None else ()),
            ),
        )

    def _try(self, role: str, build: Callable[[], None]) -> bool:
        """Start a role; whether it runs. One that nobody asked for by name may lack its ground."""
        try:
            build()
        except (ConfigError, SourceError) as error:
            if self._asked_for or self._is_configured(role, error):
                raise
            log.warning("role_skipped", role=role, reason=str(error))
            return False
        return True

    def _is_configured(self, role: str, error: DiscoveryError) -> bool:
        """Whether somebody said something of this role, or of what is wrong: then silence would mislead."""
        keys = [{"registrator": "docker.url", "proxy": "proxy.haproxy"}.get(role, f"{role}.listen")]
        if isinstance(error, ConfigError):
            keys.append(error.setting)
        return any(self._configuration.origins.get(key, "default") != "default" for key in keys)

    # -- roles

    def _start_watcher(self) -> None:
        last_good = LastGood(self._settings.private_dir / "last-good.json")
        self._watcher = self._watch(SERVICES, CatalogBuilder(), self._feed, last_good)
        self._inward.start("watcher", self._watcher.run)

    def _start_status(self) -> None:
        server = StatusServer(roles.status_address(self._settings), self._view(), self._metrics)
        self._inward.start("status", server.run)

    def _start_proxy(self) -> None:
        follower: Follower | None = None
        haproxy = HAProxy(roles.proxy_settings(self._settings), lambda: follower.poke() if follower else None)
        haproxy.start()
        self._haproxy = haproxy
        follower = self._follow(haproxy, quiet_seconds=0.0)
        self._inward.start("haproxy", haproxy.supervise)
        self._edges = EdgeReporter(
            self._store,
            self._node.name,
            self._node.address,
            lambda: self._edge(haproxy, follower),
            self._settings.registrator.ttl_seconds,
        )
        self._outward.start("edge-reporter", self._edges.run)

    def _start_dns(self) -> None:
        dns = roles.dns_server(self._settings)
        dns.start()
        self._dns = dns
        self._follow(dns, quiet_seconds=0.0)
        self._inward.start("dns", dns.run)

    def _make_registrator(self) -> None:
        # Started when every role is: what is registered must not be withdrawn because another cannot run.
        self._registrator = roles.registrator(self._settings, self._store, self._node)

    def _start_template(self, template: TemplateFile) -> None:
        keys: Feed[dict[str, str]] = Feed()
        watcher = self._watch(template.prefix, KeysFold(), keys, None)
        follower = self._follow(TemplateFileApplier(template, keys))
        self._inward.start(f"keys {template.dest}", watcher.run)
        self._inward.start(f"poke {template.dest}", partial(poke_on_keys, keys, follower.poke))
        watch = PathWatch([template.src], follower.poke)
        watch.start()
        self._watches.append(watch)

    def _watch(self, prefix: str, fold: Fold[T], feed: Feed[T], last_good: LastGood | None) -> Watcher[T]:
        hold_seconds = self._settings.registrator.ttl_seconds
        return Watcher(self._store, prefix, fold, feed, hold_seconds=hold_seconds, last_good=last_good)

    def _follow(self, applier: Applier, quiet_seconds: float = QUIET_SECONDS) -> Follower:
        follower = Follower(
            self._feed,
            applier,
            quiet_seconds=quiet_seconds,
            on_attempt=self._metrics.observe_apply,
        )
        self._followers.append(follower)
        self._inward.start(f"apply {applier.name}", follower.run)
        return follower

    # -- what is told of them

    def _edge(self, haproxy: HAProxy, follower: Follower) -> dict[str, object] | None:
        """What `/edges/<node>` says: nothing while no HAProxy is known to run what a revision asks for."""
        revision = follower.status.applied_revision
        if revision is None or not haproxy.status.running:
            return None
        return {"revision": revision, "address": self._node.address, "version": __version__}

    def _view(self) -> StatusView:
        return StatusView(
            catalog=lambda: self._feed.latest.value if self._feed.latest else None,
            problems=self._problems,
            readiness=self._readiness,
            health=lambda: {**self._inward.alive, **self._outward.alive},
            store_connected=lambda: self._watcher.connected if self._watcher else None,
            registrations=lambda: self._registrator.status.registered if self._registrator else None,
            appliers=lambda: tuple(follower.status for follower in self._followers),
            proxy=lambda: self._haproxy.status if self._haproxy else None,
            dns=lambda: self._dns.counts() if self._dns else None,
            node=self._node.name,
            store=self._store.url,
        )

    def _problems(self) -> tuple[Problem, ...]:
        """What of the catalog could not be on this node."""
        found: list[Problem] = []
        for follower in self._followers:
            found += follower.status.problems
            if follower.status.error is not None:
                found.append(
                    Problem(None, follower.status.name, follower.status.error, "kept at its last good value")
                )
        if self._registrator is not None:
            found += self._registrator.status.problems
        if self._edges is not None:
            found += self._edges.problems
        return tuple(found)

    def _readiness(self) -> dict[str, bool]:
        """The store read once, and every applier running what it should."""
        ready = {"store": self._watcher is not None and self._watcher.read_once}
        for follower in self._followers:
            status = follower.status
            ready[status.name] = status.applied_revision is not None and status.error is None
        if self._haproxy is not None:
            ready["haproxy"] = ready["haproxy"] and self._haproxy.status.running
        return ready
