"""Why something is, or is not, registered and routed, in words. Pure.

The reasons are those of the rules themselves (sources/docker.py, builder.py); here they are only put beside
what the store holds.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from discovery.catalog import Attributes, Catalog, Instance, Problem, Registration, Service
from discovery.errors import SchemaError
from discovery.haproxy.routes import claim_hosts
from discovery.schema import (
    SERVICES,
    address_key,
    is_instance,
    printable,
    read_attributes,
    service_prefix,
    split_key,
)
from discovery.sources.checks import Check
from discovery.sources.container import Container
from discovery.sources.docker import Decision, Outcome, register_all, unready
from discovery.sources.rules import Rules


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one thing, and why: each reason is a sentence without its dot."""

    subject: str
    verdict: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """All there is to say of one container, service or request."""

    subject: str
    findings: tuple[Finding, ...]


def explanation_lines(explanation: Explanation) -> Iterator[str]:
    """An explanation for people."""
    yield explanation.subject
    for finding in explanation.findings:
        yield f"  {finding.subject}: {finding.verdict}"
        for reason in finding.reasons:
            yield f"    {reason}"


def explanation_document(explanation: Explanation) -> dict[str, object]:
    """An explanation for machines."""
    findings = [
        {"subject": each.subject, "verdict": each.verdict, "reasons": list(each.reasons)}
        for each in explanation.findings
    ]
    return {"subject": explanation.subject, "findings": findings}


# ---- a container ------------------------------------------------------------------------------------


def explain_container(
    container: Container, running: Mapping[str, Container], rules: Rules, stored: Mapping[str, str] | None
) -> Explanation:
    """For each port of a container, whether it is registered, and why.

    ``running`` are all that run, by id, for some share a network or want the same id. ``stored`` are the
    values of the store by key, None when it could not be read.
    """
    reason = unready(container)
    # What it would be if it ran well is worth knowing too.
    ready = replace(container, status="running", health=None)
    outcome = register_all({**running, container.id: ready}.values(), running, rules)
    decisions = [each for each in outcome.decisions if each.container_id == container.id]
    findings = [_port(decision, reason, stored) for decision in decisions]
    findings += _words(container, decisions, outcome)
    findings += _left_over(container, decisions, rules, stored)
    if not findings:
        why = reason or "it exposes and publishes no port"
        findings.append(Finding("no port", "not registered", (why,)))
    return Explanation(_described(container), tuple(findings))


def _described(container: Container) -> str:
    health = "" if container.health is None else f", health check {container.health}"
    return f"container {printable(container.name)}, image {printable(container.image)}: " + (
        printable(container.status) + health
    )


def _port(decision: Decision, unready_reason: str | None, stored: Mapping[str, str] | None) -> Finding:
    subject = f"port {decision.port.number}/{decision.port.protocol}"
    registration = decision.registration
    if registration is None:
        reasons = [decision.reason, *([unready_reason] if unready_reason else [])]
        return Finding(subject, "not registered", tuple(reasons))
    if unready_reason is None:
        return _wanted(subject, decision, registration, stored)
    key = address_key(registration.service, registration.instance)
    reasons = [unready_reason, f"once it is not: {decision.reason}"]
    if stored is not None and key in stored:
        reasons.append(f"the store holds it still, at {printable(stored[key])}{_draining(stored, key)}")
        return Finding(subject, "about to be withdrawn, or in a time of grace", tuple(reasons))
    return Finding(subject, "not registered", tuple(reasons))


def _wanted(
    subject: str, decision: Decision, registration: Registration, stored: Mapping[str, str] | None
) -> Finding:
    """A port that the rules want registered, beside what the store holds."""
    key, address = address_key(registration.service, registration.instance), registration.instance.address
    check = [f"as long as {_checked(decision.check)} is good"] if decision.check else []
    if stored is None:
        reasons = (decision.reason, *check, "whether the store holds it is not known")
        return Finding(subject, "to be registered", reasons)
    found = stored.get(key)
    if found == address:
        draining = _draining(stored, key)
        return Finding(subject, "registered" + draining, (decision.reason, *check))
    if found is not None:
        reason = f"the store holds {printable(found)} at {key}: another writer's, or an older address of it"
        return Finding(subject, "registered otherwise", (decision.reason, *check, reason))
    why = (
        f"its check is not good, as the log of the registrator says: {_checked(decision.check)}"
        if decision.check
        else "no registrator of this node writes to this store now, or it has yet to, or its log says why not"
    )
    return Finding(subject, "not registered, but to be", (decision.reason, why))


def _checked(check: Check | None) -> str:
    if check is None:
        return "nothing"
    what = {
        "http": f"GET {printable(check.path)}",
        "tcp": "a connection",
        "command": f"the command {printable(' '.join(check.command))}",
    }
    return f"its check ({what[check.kind]}, every {check.interval_seconds:g} s)"


def _words(container: Container, decisions: Iterable[Decision], outcome: Outcome) -> Iterator[Finding]:
    """What it says that does not count, but where that is a port's own reason."""
    told = {decision.reason for decision in decisions}
    name = printable(f"container {container.name}")
    for problem in outcome.problems:
        its_own = problem.subject == name or problem.subject.startswith((f"{name},", f"{name} port "))
        if its_own and problem.reason not in told:
            subject = problem.subject.removeprefix(f"{name} ")
            yield Finding(subject, problem.consequence, (problem.reason,))


def _left_over(
    container: Container, decisions: Iterable[Decision], rules: Rules, stored: Mapping[str, str] | None
) -> Iterator[Finding]:
    """Instances that the store has as this container's, and that nothing of it asks for."""
    wanted = {
        address_key(each.service, each.instance)
        for each in (decision.registration for decision in decisions)
        if each is not None
    }
    for key in sorted(stored or ()):
        if is_instance(split_key(key)[1]) and key not in wanted:
            attributes = _attributes(stored or {}, key)
            if (attributes.container, attributes.node) == (container.name, rules.node):
                reason = "nothing of it asks for this any more: its registrator removes it, or it expires"
                yield Finding(printable(key), "left over in the store", (reason,))


def _attributes(stored: Mapping[str, str], key: str) -> Attributes:
    service, rest = split_key(key)
    text = stored.get(f"{service_prefix(service)}attributes/{rest.partition('/')[2]}")
    return read_attributes(text) if text is not None else Attributes()


def _draining(stored: Mapping[str, str], key: str) -> str:
    return ", draining: it is about to stop" if _attributes(stored, key).draining else ""


# ---- a service --------------------------------------------------------------------------------------


def explain_service(catalog: Catalog, name: str) -> Explanation:
    """How a service is reached, its instances, and what of it is not in force. It may have problems only."""
    service = catalog.services.get(name)
    findings = [] if service is None else [_reached(service), *map(_instance, _all_instances(service))]
    problems = [problem for problem in catalog.problems if _concerns(problem, name)]
    findings += [Finding(each.subject, each.consequence, (each.reason,)) for each in problems]
    subject = f"service {name}" + (
        "" if service is None else f", {service.scheme}" if service.routed else ", udp"
    )
    return Explanation(subject, tuple(findings))


def is_known(catalog: Catalog, name: str) -> bool:
    """Whether there is anything to say of a service."""
    return name in catalog.services or any(_concerns(problem, name) for problem in catalog.problems)


def _concerns(problem: Problem, name: str) -> bool:
    return problem.service == name or (problem.subject + "/").startswith(f"{SERVICES}{name}/")


def _all_instances(service: Service) -> tuple[Instance, ...]:
    return (*service.instances, *service.udp)


def _reached(service: Service) -> Finding:
    ways = []
    if service.routed and service.scheme == "http":
        kept = "kept" if service.options.get("path") == "keep" else "taken off"
        ways += [f"by host: {service.name}, {service.name}.…", f"by path: /{service.name}, which is {kept}"]
    if service.routed and service.host_port is not None:
        ways.append(f"by port: {service.host_port} on every edge")
    if _all_instances(service):
        ways.append("by DNS: SRV names the instances")
    live = [each for each in service.instances if not each.attributes.draining]
    if service.routed and service.scheme == "tcp" and service.host_port is None:
        return Finding("edges", "not routed", ("a tcp service needs a host_port", *ways))
    if not service.routed:
        return Finding("edges", "not routed", ("it speaks UDP only", *ways))
    if not live:
        return Finding("edges", "answered by 503", ("there is no instance that takes requests", *ways))
    return Finding("edges", "routed", tuple(ways))


def _instance(instance: Instance) -> Finding:
    attributes = instance.attributes
    told = [
        f"container {attributes.container}" if attributes.container else "",
        f"node {attributes.node}" if attributes.node else "",
        f"weight {attributes.weight}" if attributes.weight is not None else "",
    ]
    verdict = "draining: no new requests" if attributes.draining else "takes requests"
    if attributes.weight == 0 and not attributes.draining:
        verdict = "weight 0: no new requests"
    at = instance.address + ("/udp" if instance.protocol == "udp" else "")
    return Finding(f"instance {instance.id} at {at}", verdict, tuple(filter(None, told)))


# ---- a request --------------------------------------------------------------------------------------


def explain_request(catalog: Catalog, url: str, http_ports: frozenset[int]) -> Explanation:
    """Which service answers a URL at an edge, and why. ``http_ports`` are where HTTP and HTTPS are served.

    Raises SchemaError for what is no URL.
    """
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise SchemaError(f"{printable(url)!r} is no URL: {error}") from error
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    finding, name = _routed(catalog, host, port, parts.path, http_ports)
    findings = (finding, *(explain_service(catalog, name).findings if name is not None else ()))
    return Explanation(f"a request for {printable(url)}", findings)


def _routed(
    catalog: Catalog, host: str, port: int, path: str, http_ports: frozenset[int]
) -> tuple[Finding, str | None]:
    """What an edge does with it (design 1.2), and the service it reaches."""
    for service in catalog.services.values():
        if service.routed and service.host_port == port:
            reason = f"port {port} is the host_port of service {service.name}, whatever host and path say"
            return Finding("route", f"service {service.name}", (reason,)), service.name
    if port not in http_ports and http_ports:
        reason = f"no service has host_port {port}, and HTTP is served on {_listed(http_ports)}"
        return Finding("route", "nobody listens there", (reason,)), None
    segment = path.partition("?")[0].split("/")[1] if path.startswith("/") else ""
    reasons = []
    for name, how in (*_named_by_host(catalog, host), (segment, "the first segment of the path")):
        found = catalog.services.get(name)
        if not name:
            reasons.append(f"{how}: there is none, or it is an address")
        elif found is None:
            reasons.append(f"{how}: no service is named {printable(name)!r}")
        elif not found.routed or found.scheme != "http":
            reasons.append(f"{how}: service {name} is no http service, it is reached by its host_port only")
        else:
            return Finding("route", f"service {name}", (*reasons, f"{how} names it")), name
    return Finding("route", "answered by 404", tuple(reasons)), None


def _named_by_host(catalog: Catalog, host: str) -> Iterator[tuple[str, str]]:
    """The names of services that Host may mean, in the order in which the edge looks: name, and how."""
    host = "" if _is_address(host) else host.lower()
    label, _, parent = host.partition(".")
    claims, _ = claim_hosts(catalog.services[name] for name in sorted(catalog.services))
    if host in claims:
        yield claims[host], f"option hosts, which has {host},"
    yield label, "the first label of the host"
    if f"*.{parent}" in claims:
        yield claims[f"*.{parent}"], f"option hosts, which has *.{parent},"


def _is_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host) is not None
    except ValueError:
        return False


def _listed(ports: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ports)))
