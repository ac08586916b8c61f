"""The metrics of one process, in a registry of its own. docs/metrics.md lists them, and a test compares.

What happened is counted when it happens. What is the case is asked of the StatusView at each scrape; a
gauge whose answer is not known has no sample, for 0 would say something else.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from discovery.status.dns_metrics import dns_metrics
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

    def observe_apply(self, applier: str, succeeded: bool, seconds: float) -> None:
        """Count one attempt of ``applier``."""
        self._applies.labels(applier, "ok" if succeeded else "failed").inc()
        self._apply_seconds.labels(applier).observe(seconds)

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
        yield _gauge("discovery_problems", "Entries left out, or not as written.", len(self._view.problems()))
        yield _gauge(
            "discovery_store_connected", "1 while the store answers, else 0.", self._view.store_connected()
        )
        yield _gauge(
            "discovery_registrations", "Instances this node keeps in the store.", self._view.registrations()
        )
        reloads = CounterMetricFamily(
            "discovery_haproxy_reloads",
            "Starts and reloads of HAProxy that reached the new configuration.",
            labels=["reason"],
        )
        for reason, count in sorted(self._view.haproxy_reloads().items()):
            reloads.add_metric([reason], count)
        yield reloads
        yield _states("discovery_ready", "1 for a part that is ready, else 0.", self._view.readiness())
        yield _states("discovery_healthy", "1 for a part that is alive, else 0.", self._view.health())
        yield from dns_metrics(self._view.dns())


def _gauge(name: str, documentation: str, value: int | bool | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=None if value is None else float(value))


def _states(name: str, documentation: str, states: Mapping[str, bool]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=["part"])
    for part, state in sorted(states.items()):
        family.add_metric([part], float(state))
    return family
