"""The zone: what each name in it means, read straight from the services of a Catalog. Pure.

    <service>.<zone>              A and AAAA: the edge
    _<service>._tcp.<zone>        SRV: the instances themselves, each under a name of its own:
    <address>.<service>.<zone>    A or AAAA: that instance, such as 10-0-0-1.web.local
    <zone>                        SOA, NS
    ns.<zone>                     A and AAAA: the edge, which is the zone's name server

A known name answers every type: with its records, or with NODATA. An unknown one is NXDOMAIN. Both carry
the SOA (RFC 2308), without which resolvers would not believe them.
"""

import ipaddress
from collections.abc import Mapping
from struct import Struct

from discovery.catalog import Instance, Service
from discovery.dns import wire
from discovery.dns.settings import DnsSettings
from discovery.dns.wire import Query, Sections

_SRV = Struct(">HHH")
_SOA = Struct(">IIIII")
_NAME_SERVER = "ns"
_HINFO = b"\x07RFC8482\x00"
_DEFAULT_WEIGHT = 1


class Zone:
    """One immutable state of the zone. Making one costs nothing that grows with the services.

    ``services`` None means that they are not known yet: that is SERVFAIL, not "no such name".
    """

    def __init__(
        self, settings: DnsSettings, services: Mapping[str, Service] | None, serial: int = 0
    ) -> None:
        self.services = services or {}
        self.is_known = services is not None
        self._zone = settings.zone
        self._labels = tuple(label.encode("ascii") for label in settings.zone.split("."))
        self._wire = wire.encode_name(settings.zone)
        self._ttl_seconds = settings.ttl_seconds
        self._wildcard = settings.wildcard
        self._edge = _EdgeAnswers(settings)
        self._name_server = wire.encode_name(f"{_NAME_SERVER}.{settings.zone}")
        # Refresh, retry and expire are for secondaries, of which there are none; the last number is the
        # TTL of "no such name" (RFC 2308).
        times = _SOA.pack(serial & 0xFFFFFFFF, 3600, 600, 86400, settings.ttl_seconds)
        self._soa = self._name_server + wire.encode_name(f"hostmaster.{settings.zone}") + times

    def answer(self, query: Query) -> Sections | None:
        """What to answer to a query of class IN; None when its name is not in this zone."""
        labels = query.labels
        depth = len(labels) - len(self._labels)
        if depth < 0 or labels[depth:] != self._labels:
            return None
        if not self.is_known:
            return Sections(wire.SERVFAIL)
        if depth == 1:
            # Bytes beyond ASCII become letters that no service name holds.
            name = labels[0].decode("latin-1")
            if name in self.services or name == _NAME_SERVER or self._wildcard:
                return self._of_edge(query)
            # Names lie below _tcp, so that it exists (RFC 8020), with nothing to say.
            return self._nothing(query, wire.NOERROR if name == "_tcp" else wire.NXDOMAIN)
        if depth == 0:
            return self._of_apex(query)
        return self._of_instances(query, depth)

    # -- by name

    def _of_edge(self, query: Query) -> Sections:
        if query.qtype == wire.ANY:
            return self._any()
        return self._edge.by_type.get(query.qtype) or self._nothing(query, wire.NOERROR)

    def _of_apex(self, query: Query) -> Sections:
        if query.qtype == wire.SOA:
            return Sections(answers=1, answer=self._soa_record(wire.TO_QUESTION))
        if query.qtype == wire.NS:
            record = wire.record(wire.TO_QUESTION, wire.NS, self._ttl_seconds, self._name_server)
            additional = self._edge.records(self._name_server)
            return Sections(answers=1, answer=record, additionals=self._edge.count, additional=additional)
        if query.qtype == wire.ANY:
            return self._any()
        return self._of_edge(query) if self._wildcard else self._nothing(query, wire.NOERROR)

    def _of_instances(self, query: Query, depth: int) -> Sections:
        first, second = query.labels[0], query.labels[1].decode("latin-1")
        if depth == 2 and second == "_tcp" and first[:1] == b"_":
            service = self.services.get(first[1:].decode("latin-1"))
            if service is not None:
                return self._srv(query, service)
        if depth == 2 and (service := self.services.get(second)) is not None:
            address = _parse_label(first)
            if any(instance.host == address for instance in service.instances):
                return self._of_address(query, str(address))
        return self._of_edge(query) if self._wildcard else self._nothing(query, wire.NXDOMAIN)

    # -- by type

    def _srv(self, query: Query, service: Service) -> Sections:
        if query.qtype == wire.ANY:
            return self._any()
        serving = [instance for instance in service.instances if not instance.attributes.draining]
        if query.qtype != wire.SRV or not serving:
            return self._nothing(query, wire.NOERROR)
        answers, addresses = [], {}
        for instance in serving:
            # RFC 2782 forbids compression of the target.
            target = wire.encode_name(f"{_label(instance.host)}.{service.name}.{self._zone}")
            data = _SRV.pack(0, _weight(instance), instance.port) + target
            answers.append(wire.record(wire.TO_QUESTION, wire.SRV, self._ttl_seconds, data))
            rtype, packed = _packed(instance.host)
            addresses[target] = wire.record(target, rtype, self._ttl_seconds, packed)
        return Sections(
            answers=len(answers),
            answer=b"".join(answers),
            additionals=len(addresses),
            additional=b"".join(addresses.values()),
        )

    def _of_address(self, query: Query, host: str) -> Sections:
        if query.qtype == wire.ANY:
            return self._any()
        rtype, packed = _packed(host)
        if query.qtype != rtype:
            return self._nothing(query, wire.NOERROR)
        return Sections(answers=1, answer=wire.record(wire.TO_QUESTION, rtype, self._ttl_seconds, packed))

    def _any(self) -> Sections:
        """RFC 8482, 4.2: one small record that is the same for every name."""
        return Sections(
            answers=1, answer=wire.record(wire.TO_QUESTION, wire.HINFO, self._ttl_seconds, _HINFO)
        )

    def _nothing(self, query: Query, rcode: int) -> Sections:
        return Sections(rcode, authorities=1, authority=self._soa_record(wire.pointer(query, self._wire)))

    def _soa_record(self, owner: bytes) -> bytes:
        return wire.record(owner, wire.SOA, self._ttl_seconds, self._soa)


class _EdgeAnswers:
    """The edge's addresses as answers, made once."""

    def __init__(self, settings: DnsSettings) -> None:
        self._ttl_seconds = settings.ttl_seconds
        self._packed = [_packed(host) for host in dict.fromkeys(settings.answer)]
        self.count = len(self._packed)
        self.by_type: dict[int, Sections] = {}
        for wanted in (wire.A, wire.AAAA):
            packed = [data for rtype, data in self._packed if rtype == wanted]
            records = (wire.record(wire.TO_QUESTION, wanted, self._ttl_seconds, data) for data in packed)
            if packed:
                self.by_type[wanted] = Sections(answers=len(packed), answer=b"".join(records))

    def records(self, owner: bytes) -> bytes:
        return b"".join(wire.record(owner, rtype, self._ttl_seconds, data) for rtype, data in self._packed)


def _packed(host: str) -> tuple[int, bytes]:
    """The type and data of the address record for ``host``."""
    address = ipaddress.ip_address(host)
    return (wire.A if address.version == 4 else wire.AAAA), address.packed


def _weight(instance: Instance) -> int:
    weight = instance.attributes.weight
    return _DEFAULT_WEIGHT if weight is None else weight


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
    return host if _label(host).encode("ascii") == label else None
