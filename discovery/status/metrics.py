"""The metrics of one process, in a registry of its own. docs/metrics.md lists them, and a test compares.

What happened is counted when it happens. What is the case is asked of the StatusView at each scrape; a
gauge whose answer is not known has no sample, for 0 would say something else.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from discovery.follow import FollowerStatus
from discovery.status.dns_metrics import dns_metrics
from discovery.status.proxy_metrics import problem_metrics, proxy_metrics
from discovery.status.view import StatusView

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters for the parts to call, thread-safe, and their text for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._applies = Counter(
            "discovery_apply",
            "Attempts to make an applier's target run as the catalog says.",
            ["applier", "result"],
            registry=self.registry,
        )
        self._apply_seconds = Histogram(
            "discovery_apply_seconds",
            "Seconds from the start of an attempt until the target ran, or had failed to.",
            ["applier"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._applied_at = Gauge(
            "discovery_applied_timestamp_seconds",
            "When an applier's target was last seen to run as the catalog says.",
            ["applier"],
            registry=self.registry,
        )

    def observe_apply(self, status: FollowerStatus, seconds: float) -> None:
        """Count one attempt, after which the applier is so."""
        result = "postponed" if status.waits else "failed" if status.error else "ok"
        self._applies.labels(status.name, result).inc()
        self._apply_seconds.labels(status.name).observe(seconds)
        if result == "ok":
            self._applied_at.labels(status.name).set_to_current_time()

    def show(self, view: StatusView) -> None:
        """Add the gauges that ``view`` answers; once."""
        self.registry.register(_ViewCollector(view))

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _ViewCollector(Collector):
    """The gauges of a StatusView."""

    def __init__(self, view: StatusView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        catalog = self._view.catalog()
        services = None if catalog is None else len(catalog.services)
        instances = None if catalog is None else sum(len(s.instances) for s in catalog.services.values())
        revision = None if catalog is None else catalog.revision
        yield _gauge("discovery_services", "Services known.", services)
        yield _gauge("discovery_instances", "Instances known, of all services.", instances)
        yield _gauge("discovery_catalog_revision", "Store revision of the catalog in hand.", revision)
        yield from problem_metrics(catalog, self._view.problems())
        yield _gauge(
            "discovery_store_connected", "1 while the store answers, else 0.", self._view.store_connected()
        )
        yield _gauge(
            "discovery_registrations", "Instances this node keeps in the store.", self._view.registrations()
        )
        yield _applied_revisions(self._view.appliers())
        yield from proxy_metrics(self._view.proxy())
        yield _states("discovery_ready", "1 for a part that is ready, else 0.", self._view.readiness())
        yield _states("discovery_healthy", "1 for a part that is alive, else 0.", self._view.health())
        yield from dns_metrics(self._view.dns())


def _gauge(name: str, documentation: str, value: int | bool | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=None if value is None else float(value))


def _applied_revisions(appliers: Iterable[FollowerStatus]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "discovery_applied_revision", "Store revision that an applier's target runs.", labels=["applier"]
    )
    for applier in appliers:
        if applier.applied_revision is not None:
            family.add_metric([applier.name], applier.applied_revision)
    return family


def _states(name: str, documentation: str, states: Mapping[str, bool]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=["part"])
    for part, state in sorted(states.items()):
        family.add_metric([part], float(state))
    return family
