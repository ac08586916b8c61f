"""What the proxy role tells, as metrics: read at each scrape."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from discovery.catalog import Catalog, Consequence, Problem
from discovery.haproxy.report import ProxyStatus


def problem_metrics(catalog: Catalog | None, on_this_node: Sequence[Problem]) -> Iterator[Metric]:
    """What is not as written; every consequence has a sample, so that an alert sees it change."""
    problems = [*(catalog.problems if catalog else ()), *on_this_node]
    found = Counter(problem.consequence for problem in problems)
    family = GaugeMetricFamily(
        "discovery_problems", "Entries that are not as written, by consequence.", labels=["consequence"]
    )
    for consequence in get_args(Consequence):
        family.add_metric([consequence], found[consequence])
    yield family
    quarantined = {each.service for each in problems if each.service and each.consequence != "reported"}
    yield GaugeMetricFamily(
        "discovery_quarantined_services",
        "Services of which something is left out or kept as it was.",
        value=len(quarantined),
    )


def proxy_metrics(proxy: ProxyStatus | None) -> Iterator[Metric]:
    """The families, without samples where no proxy role runs."""
    reloads = CounterMetricFamily(
        "discovery_haproxy_reloads",
        "Starts and reloads of HAProxy that reached the new configuration.",
        labels=["reason"],
    )
    took = SummaryMetricFamily("discovery_haproxy_reload_seconds", "Seconds that these took.")
    changes = CounterMetricFamily(
        "discovery_haproxy_changes", "Changes that HAProxy took while it ran, without a reload."
    )
    waiting = GaugeMetricFamily(
        "discovery_haproxy_waiting", "1 for a reason for which a reload waits now.", labels=["reason"]
    )
    workers = GaugeMetricFamily("discovery_haproxy_old_workers", "Workers that finish their connections.")
    connections = GaugeMetricFamily("discovery_haproxy_old_connections", "Connections that these have.")
    held = GaugeMetricFamily(
        "discovery_haproxy_held_instances", "Instances of a mass loss that are still served."
    )
    if proxy is not None:
        for reason, count in sorted(proxy.reloads.items()):
            reloads.add_metric([reason], count)
        took.add_metric([], sum(proxy.reloads.values()), proxy.reload_seconds)
        changes.add_metric([], proxy.changes)
        for reason in proxy.waiting.reasons if proxy.waiting else ():
            waiting.add_metric([reason], 1)
        workers.add_metric([], len(proxy.old_workers))
        connections.add_metric([], sum(each.connections or 0 for each in proxy.old_workers))
        held.add_metric([], proxy.held)
    yield from (reloads, took, changes, waiting, workers, connections, held, _certificates(proxy))


def _certificates(proxy: ProxyStatus | None) -> Metric:
    family = GaugeMetricFamily(
        "discovery_certificate_not_after_timestamp_seconds",
        "Until when a certificate that is served is valid.",
        labels=["certificate"],
    )
    for name, not_after in sorted(proxy.certificates.items()) if proxy else ():
        family.add_metric([name], not_after)
    return family
