"""What the DNS role counts, as metrics: read at each scrape, so that answering knows nothing of them."""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from discovery.dns.stats import LATENCY_SECONDS, Counts


def dns_metrics(counts: Counts | None) -> Iterator[Metric]:
    """The families, without samples where no DNS role runs."""
    counts = counts or Counts()
    yield _queries(counts)
    yield _latency(counts)
    unanswered = CounterMetricFamily(
        "discovery_dns_unanswered", "Messages met with silence.", labels=["reason"]
    )
    cache = CounterMetricFamily(
        "discovery_dns_cache", "Questions for other names, by what was kept of them.", labels=["result"]
    )
    kept = GaugeMetricFamily("discovery_dns_cache_entries", "Replies of upstreams that are kept.")
    if counts != Counts():
        unanswered.add_metric(["no_query"], counts.dropped)
        unanswered.add_metric(["rate_limit"], counts.limited)
        unanswered.add_metric(["unsent"], counts.unsent)
        cache.add_metric(["hit"], counts.forwarding.hits)
        cache.add_metric(["stale"], counts.forwarding.stale)
        cache.add_metric(["miss"], counts.forwarding.misses)
        kept.add_metric([], counts.forwarding.kept)
    yield from (unanswered, cache, kept)
    yield from _upstreams(counts)


def _queries(counts: Counts) -> Metric:
    family = CounterMetricFamily(
        "discovery_dns_queries", "Questions answered.", labels=["type", "rcode", "origin"]
    )
    for outcome, number in sorted(counts.outcomes.items()):
        family.add_metric([outcome.qtype, outcome.rcode, outcome.origin], number)
    return family


def _latency(counts: Counts) -> Metric:
    family = HistogramMetricFamily(
        "discovery_dns_answer_seconds", "Seconds from taking up a question to its answer.", labels=["origin"]
    )
    bounds = [*map(str, LATENCY_SECONDS), "+Inf"]
    for origin, classes in sorted(counts.latency.items()):
        buckets = list(zip(bounds, accumulate(classes), strict=True))
        family.add_metric([origin], buckets, counts.latency_seconds[origin])
    return family


def _upstreams(counts: Counts) -> Iterator[Metric]:
    labels = ["upstream"]
    up = GaugeMetricFamily(
        "discovery_dns_upstream_up", "1 while the upstream answers, else 0.", labels=labels
    )
    queries = CounterMetricFamily(
        "discovery_dns_upstream_queries", "Questions put to the upstream.", labels=labels
    )
    replies = CounterMetricFamily(
        "discovery_dns_upstream_replies", "Replies the upstream gave to them.", labels=labels
    )
    for name, upstream in sorted(counts.forwarding.upstreams.items()):
        up.add_metric([name], float(upstream.is_up))
        queries.add_metric([name], upstream.queries)
        replies.add_metric([name], upstream.replies)
    yield from (up, queries, replies)
