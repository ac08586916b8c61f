"""The zone: what each name in it means, read straight from the services of a Catalog. Pure.

    <service>.<zone>              A and AAAA: the edge; TXT: what clients may know of the service
    <any>.<service>.<zone>        A and AAAA: the edge, where the settings say so
    _<service>._tcp.<zone>        SRV: the instances themselves, each under a name of its own; `_udp` for
                                  those of UDP, which no edge serves: of them alone there is no A or AAAA
    <address>.<service>.<zone>    A or AAAA: that instance, such as 10-0-0-1.web.local
    <zone>                        SOA, NS
    ns.<zone>                     A and AAAA: the edge, which is the zone's name server
    <edge's address>.arpa         PTR: ns.<zone>
    <private network>.arpa        nothing: such names are not asked of the world (reverse.py)

A known name answers every type: with its records, or with NODATA. An unknown one is NXDOMAIN. Both carry
the SOA (RFC 2308), without which resolvers would not believe them.
"""

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from struct import Struct

from discovery.catalog import Instance, Service
from discovery.dns import wire
from discovery.dns.reverse import Labels, private_zone, reverse_labels
from discovery.dns.settings import DnsSettings
from discovery.dns.wire import Query, Sections

MOST_TAGS_BYTES = 200
"""With it a service's TXT fits into any reply, even without EDNS."""

_SRV = Struct(">HHH")
_SOA = Struct(">IIIII")
_NAME_SERVER = "ns"
_PROTOCOLS = ("_tcp", "_udp")
_HINFO = b"\x07RFC8482\x00"
_DEFAULT_WEIGHT = 1


class Zone:
    """One immutable state of all zones. Making one costs nothing that grows with the services.

    ``services`` None means that they are not known yet: that is SERVFAIL, not "no such name".
    """

    def __init__(
        self, settings: DnsSettings, services: Mapping[str, Service] | None, serial: int = 0
    ) -> None:
        self.services = services or {}
        self.is_known = services is not None
        self._settings = settings
        self._static = static = _static(settings)
        self._edge = static.edge.by_type
        self._origins = [_Origin(domain, static, serial & 0xFFFFFFFF) for domain in static.domains]

    def answer(self, query: Query) -> Sections | None:
        """What to answer to a query of class IN; None when its name is in no zone of ours."""
        labels = query.labels
        for origin in self._origins:
            depth = len(labels) - origin.depth
            if depth < 0 or labels[depth:] != origin.labels:
                continue
            if not self.is_known:
                return Sections(wire.SERVFAIL)
            if depth == 1:
                return self._of_label(query, origin)
            return self._of_apex(query, origin) if depth == 0 else self._of_deep(query, origin, depth)
        if labels[-1:] == (b"arpa",):
            return self._static.reverse(query)
        return None

    # -- by name

    def _of_label(self, query: Query, origin: "_Origin") -> Sections:
        # Bytes beyond ASCII become letters that no service name holds.
        name = query.labels[0].decode("latin-1")
        service = self.services.get(name)
        if service is not None and query.qtype == wire.TXT:
            return _one_record(wire.TXT, self._settings.ttl_seconds, _texts(service))
        if service is not None and not service.routed:
            # The edge would not answer there.
            return self._of_unrouted(query, origin)
        if service is not None or name == _NAME_SERVER or self._settings.wildcard:
            return self._of_edge(query, origin)
        # Names lie below them, so that they exist (RFC 8020), with nothing to say.
        return origin.nothing(query, wire.NOERROR if name in _PROTOCOLS else wire.NXDOMAIN)

    def _of_deep(self, query: Query, origin: "_Origin", depth: int) -> Sections:
        first, last = query.labels[0], query.labels[depth - 1].decode("latin-1")
        service = self.services.get(last)
        if depth == 2 and last in _PROTOCOLS and first[:1] == b"_":
            named = self.services.get(first[1:].decode("latin-1"))
            if named is not None:
                return self._of_protocol(query, origin, named, last)
        if depth == 2 and service is not None and (host := _instance_host(service, first)) is not None:
            return self._of_address(query, origin, host)
        if self._settings.wildcard or (self._settings.subdomains and service is not None and service.routed):
            return self._of_edge(query, origin)
        return origin.nothing(query, wire.NXDOMAIN)

    def _of_apex(self, query: Query, origin: "_Origin") -> Sections:
        apex = origin.of_apex(query)
        if apex is not None:
            return apex
        return (
            self._of_edge(query, origin) if self._settings.wildcard else origin.nothing(query, wire.NOERROR)
        )

    def _of_edge(self, query: Query, origin: "_Origin") -> Sections:
        return self._edge.get(query.qtype) or origin.nothing(query, wire.NOERROR)

    def _of_unrouted(self, query: Query, origin: "_Origin") -> Sections:
        return self._edge[wire.ANY] if query.qtype == wire.ANY else origin.nothing(query, wire.NOERROR)

    def _of_address(self, query: Query, origin: "_Origin", host: str) -> Sections:
        rtype, packed = _packed(host)
        if query.qtype == wire.ANY:
            return self._edge[wire.ANY]
        if query.qtype != rtype:
            return origin.nothing(query, wire.NOERROR)
        return _one_record(rtype, self._settings.ttl_seconds, packed)

    def _of_protocol(self, query: Query, origin: "_Origin", service: Service, protocol: str) -> Sections:
        if query.qtype == wire.ANY:
            return self._edge[wire.ANY]
        serving = _serving(service, protocol)
        if query.qtype != wire.SRV or not serving:
            return origin.nothing(query, wire.NOERROR)
        ttl_seconds = self._settings.ttl_seconds
        answers, addresses = [], {}
        for instance in serving:
            # RFC 2782 forbids compression of the target.
            target = wire.encode_name(f"{_label(instance.host)}.{service.name}.{origin.name}")
            data = _SRV.pack(0, _weight(instance), instance.port) + target
            answers.append(wire.record(wire.TO_QUESTION, wire.SRV, ttl_seconds, data))
            rtype, packed = _packed(instance.host)
            addresses[target] = wire.record(target, rtype, ttl_seconds, packed)
        return Sections(
            answers=len(answers),
            answer=b"".join(answers),
            additionals=len(addresses),
            additional=b"".join(addresses.values()),
        )


class _Origin:
    """The top of one zone: what is said there, and that there is nothing elsewhere."""

    __slots__ = (
        "_name_server",
        "_negative_ttl_seconds",
        "_soa",
        "_static",
        "_wire",
        "depth",
        "labels",
        "name",
    )

    def __init__(self, domain: "_Domain", static: "_Static", serial: int) -> None:
        self.name = domain.name
        self.labels = domain.labels
        self.depth = len(domain.labels)
        self._wire = domain.wire
        self._name_server = static.name_server
        self._static = static
        self._negative_ttl_seconds = static.settings.negative_ttl_seconds
        # Refresh, retry and expire are for secondaries, of which there are none; the last number is the
        # TTL of "no such name" (RFC 2308).
        times = _SOA.pack(serial, 3600, 600, 86400, self._negative_ttl_seconds)
        self._soa = static.name_server + static.mailbox + times

    def of_apex(self, query: Query) -> Sections | None:
        """What is said at the top itself; None for other types."""
        ttl_seconds, edge = self._static.settings.ttl_seconds, self._static.edge
        if query.qtype == wire.SOA:
            return _one_record(wire.SOA, ttl_seconds, self._soa)
        if query.qtype == wire.NS:
            sections = _one_record(wire.NS, ttl_seconds, self._name_server)
            return sections._replace(additionals=edge.count, additional=edge.records(self._name_server))
        return edge.by_type[wire.ANY] if query.qtype == wire.ANY else None

    def nothing(self, query: Query, rcode: int) -> Sections:
        """No such name, or none of that type."""
        # RFC 2308, 3: the TTL of the SOA here is how long there is nothing.
        owner = wire.pointer(query, self._wire)
        record = wire.record(owner, wire.SOA, self._negative_ttl_seconds, self._soa)
        return Sections(rcode, authorities=1, authority=record)


# ---- what only the settings decide -------------------------------------------------------------------


class _Domain:
    """The name of a zone in the forms it is used in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.labels: Labels = tuple(label.encode("ascii") for label in name.split("."))
        self.wire = wire.encode_name(name)


class _Static:
    """Everything about the zones that no service changes."""

    def __init__(self, settings: DnsSettings) -> None:
        first = settings.zones[0]
        self.settings = settings
        self.edge = _EdgeAnswers(settings)
        self.name_server = wire.encode_name(f"{_NAME_SERVER}.{first}")
        self.mailbox = wire.encode_name(f"hostmaster.{first}")
        # Of zones within each other the inner one has the name.
        self.domains = sorted(map(_Domain, settings.zones), key=lambda domain: -len(domain.labels))
        self._own = frozenset(reverse_labels(host) for host in settings.answer)
        self._elsewhere = frozenset(_Domain(name).labels for name, _ in settings.domain_upstreams)

    def reverse(self, query: Query) -> Sections | None:
        """What to answer for the name of an address; None where the upstreams are to be asked.

        Each zone is one in which there is nothing but its top (RFC 6303, 3).
        """
        labels = query.labels
        suffixes = [labels[depth:] for depth in range(len(labels))]
        zone = next((suffix for suffix in suffixes if suffix in self._own), None)
        if zone == labels and query.qtype == wire.PTR:
            return _one_record(wire.PTR, self.settings.ttl_seconds, self.name_server)
        if zone is None and not (self.settings.forward_private or self._elsewhere.intersection(suffixes)):
            zone = private_zone(labels)
        if zone is None:
            return None
        origin = _Origin(_Domain(b".".join(zone).decode("ascii")), self, serial=1)
        if zone == labels:
            return origin.of_apex(query) or origin.nothing(query, wire.NOERROR)
        return origin.nothing(query, wire.NXDOMAIN)


@lru_cache(maxsize=8)
def _static(settings: DnsSettings) -> _Static:
    """Made once, for a Zone is made with every change."""
    return _Static(settings)


class _EdgeAnswers:
    """The edge's addresses as answers, made once, with the answer to ANY."""

    def __init__(self, settings: DnsSettings) -> None:
        self._ttl_seconds = settings.ttl_seconds
        self._packed = [_packed(host) for host in dict.fromkeys(settings.answer)]
        self.count = len(self._packed)
        # RFC 8482, 4.2: one small record that is the same for every name.
        self.by_type = {wire.ANY: _one_record(wire.HINFO, self._ttl_seconds, _HINFO)}
        for wanted in (wire.A, wire.AAAA):
            packed = [data for rtype, data in self._packed if rtype == wanted]
            records = (wire.record(wire.TO_QUESTION, wanted, self._ttl_seconds, data) for data in packed)
            if packed:
                self.by_type[wanted] = Sections(answers=len(packed), answer=b"".join(records))

    def records(self, owner: bytes) -> bytes:
        return b"".join(wire.record(owner, rtype, self._ttl_seconds, data) for rtype, data in self._packed)


# ---- of one service ----------------------------------------------------------------------------------


def _serving(service: Service, protocol: str) -> list[Instance]:
    """Its instances that speak TCP or UDP, without those that are being drained."""
    instances = service.instances if protocol == "_tcp" else service.udp
    return [instance for instance in instances if not instance.attributes.draining]


def _texts(service: Service) -> bytes:
    """What clients may know, as the data of a TXT record: how to speak to it, what it calls itself.

    The form is that of RFC 6763, 6. Nodes, containers, images and options tell of the inside, and are left
    out.
    """
    texts = [f"scheme={service.scheme if service.routed else 'udp'}".encode()]
    if service.host_port is not None:
        texts.append(f"host_port={service.host_port}".encode())
    tags = b""
    instances = (*service.instances, *service.udp)
    for tag in dict.fromkeys(tag for instance in instances for tag in instance.attributes.tags):
        longer = b",".join(part for part in (tags, tag.encode("utf-8", "replace")) if part)
        if len(longer) <= MOST_TAGS_BYTES:
            tags = longer
    if tags:
        texts.append(b"tags=" + tags)
    return b"".join(bytes([len(text)]) + text for text in texts)


def _instance_host(service: Service, label: bytes) -> str | None:
    """The address of the instance that this label names, if it is one."""
    host = _parse_label(label)
    instances = (*service.instances, *service.udp)
    return host if host is not None and any(each.host == host for each in instances) else None


def _weight(instance: Instance) -> int:
    weight = instance.attributes.weight
    return _DEFAULT_WEIGHT if weight is None else weight


# ---- forms -------------------------------------------------------------------------------------------


def _one_record(rtype: int, ttl_seconds: int, data: bytes) -> Sections:
    return Sections(answers=1, answer=wire.record(wire.TO_QUESTION, rtype, ttl_seconds, data))


def _packed(host: str) -> tuple[int, bytes]:
    """The type and data of the address record for ``host``."""
    address = ipaddress.ip_address(host)
    return (wire.A if address.version == 4 else wire.AAAA), address.packed


def _label(host: str) -> str:
    """An instance's address as one label: ``10-0-0-1``, ``fd00-0000-…-0001``."""
    return ipaddress.ip_address(host).exploded.replace(":", "-").replace(".", "-")


def _parse_label(label: bytes) -> str | None:
    """The inverse of _label, None for any other label."""
    text = label.decode("latin-1").replace("-", "." if label.count(b"-") == 3 else ":")
    try:
        host = str(ipaddress.ip_address(text))
    except ValueError:
        return None
    # Of one with a zone index Python takes the text, and then cannot tell the whole of it.
    return host if "%" not in host and _label(host).encode("ascii") == label else None
