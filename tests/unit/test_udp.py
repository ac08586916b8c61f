"""Instances of UDP: kept apart in the store, offered by DNS, never seen by an edge."""

from pathlib import Path

import dnslib
import pytest

from discovery.builder import CatalogBuilder
from discovery.catalog import Attributes, Catalog, Instance, Registration, Service
from discovery.dns.records import Zone
from discovery.dns.respond import Reply, respond
from discovery.dns.settings import DnsSettings
from discovery.errors import UsageError
from discovery.haproxy.model import build
from discovery.haproxy.settings import ProxySettings
from discovery.reconcile import Plan, plan
from discovery.schema import instance_keys, is_instance, shared_keys
from discovery.static import entry, key_of
from discovery.stores.base import Entry, Snapshot
from discovery.views import services_document

ATTRIBUTES = Attributes(node="n1", weight=3, tags=("udp",))
UDP = Instance("n1:dns:53:udp", "192.0.2.7", 5353, ATTRIBUTES, "udp")
TCP = Instance("n1:dns:53", "192.0.2.7", 5353)


def catalog(values: dict[str, str]) -> Catalog:
    keys = {f"/services/dns/{rest}": value for rest, value in values.items()}
    return CatalogBuilder().reset(Snapshot(1, {key: Entry(key, value, 1, 1) for key, value in keys.items()}))


def stored(*instances: Instance) -> Catalog:
    keys: dict[str, str] = {}
    for each in instances:
        keys |= instance_keys("dns", each) | shared_keys("dns", each)
    return CatalogBuilder().reset(Snapshot(1, {key: Entry(key, value, 1, 1) for key, value in keys.items()}))


def test_it_has_a_key_of_its_own_and_no_shared_ones() -> None:
    assert instance_keys("dns", UDP) == {
        "/services/dns/udp/n1:dns:53:udp": "192.0.2.7:5353",
        "/services/dns/attributes/n1:dns:53:udp": '{"weight": 3, "node": "n1", "tags": ["udp"]}',
    }
    assert shared_keys("dns", UDP) == {}
    assert is_instance("udp/0")
    assert is_instance("hosts/0")
    assert not is_instance("attributes/0")


def test_it_is_read_as_it_was_written_beside_tcp() -> None:
    service = stored(UDP, TCP).services["dns"]
    assert service == Service("dns", "http", instances=(TCP,), udp=(UDP,))
    assert stored(UDP).services["dns"] == Service("dns", udp=(UDP,), routed=False)


def test_a_shell_loop_can_write_it() -> None:
    service = catalog({"udp/0": "10.0.0.5:53\n"}).services["dns"]
    assert [(each.address, each.protocol) for each in service.udp] == [("10.0.0.5:53", "udp")]
    assert not service.instances


def test_a_bad_one_is_left_out_alone() -> None:
    found = catalog({"udp/0": "10.0.0.5:53", "udp/1": "nowhere", "udp/..": "10.0.0.5:54"})
    assert [each.id for each in found.services["dns"].udp] == ["0"]
    assert [each.subject for each in found.problems] == ["/services/dns/udp/..", "/services/dns/udp/1"]


def test_bad_attributes_keep_their_last_good_value() -> None:
    builder = CatalogBuilder()
    keys = {key: Entry(key, value, 1, 1) for key, value in instance_keys("dns", UDP).items()}
    builder.reset(Snapshot(1, keys))
    broken = {**keys, (key := f"/services/dns/attributes/{UDP.id}"): Entry(key, "{", 1, 2)}
    assert builder.reset(Snapshot(2, broken)).services["dns"].udp == (UDP,)


@pytest.mark.parametrize("key", ["scheme", "host_port", "hosts/0", "options/path"])
def test_whatever_else_is_known_of_a_service_makes_it_routed(key: str) -> None:
    value = {"scheme": "tcp", "host_port": "8080", "hosts/0": "10.0.0.5:80", "options/path": "keep"}[key]
    assert catalog({"udp/0": "10.0.0.5:53", key: value}).services["dns"].routed


def test_no_edge_sees_it() -> None:
    settings = ProxySettings(Path("/run/discovery"), templates=())
    assert build(stored(UDP), settings).backends == {}
    (server,) = build(stored(UDP, TCP), settings).backends["dns"].servers
    assert server.id == TCP.id


def test_its_shared_keys_are_not_the_registrators_business() -> None:
    wanted = [Registration("dns", UDP)]
    found = plan(wanted, {}, lambda _service: {}, lambda _key: True)
    assert found == Plan(puts=instance_keys("dns", UDP))


def test_it_does_not_hold_shared_keys_of_tcp_that_left() -> None:
    """A scheme whose last instance of TCP goes is deleted, although one of UDP is left."""
    held = instance_keys("dns", UDP) | instance_keys("dns", TCP) | shared_keys("dns", TCP)
    seen = {key.removeprefix("/services/dns/"): value for key, value in held.items()}
    found = plan([Registration("dns", UDP)], held, lambda _service: seen, lambda _key: True)
    assert sorted(found.deletes) == sorted((instance_keys("dns", TCP) | shared_keys("dns", TCP)).keys())
    assert not found.puts


# ---- DNS --------------------------------------------------------------------------------------------


def ask(services: Catalog, name: str, qtype: str, *, subdomains: bool = False) -> dnslib.DNSRecord:
    settings = DnsSettings((("127.0.0.1", 53),), ("172.17.42.1",), subdomains=subdomains)
    question = bytes(dnslib.DNSRecord.question(name, qtype).pack())
    reply = respond(Zone(settings, services.services), question, stream=False)
    assert isinstance(reply, Reply)
    return dnslib.DNSRecord.parse(reply.message)


def test_srv_offers_it_under_its_own_protocol() -> None:
    reply = ask(stored(UDP, TCP), "_dns._udp.local", "SRV")
    assert [str(each.rdata) for each in reply.rr] == ["0 3 5353 192-0-2-7.dns.local."]
    assert [str(each.rdata) for each in reply.ar] == ["192.0.2.7"]
    other = ask(stored(UDP, TCP), "_dns._tcp.local", "SRV")
    assert [str(each.rdata) for each in other.rr] == ["0 1 5353 192-0-2-7.dns.local."]
    assert not ask(stored(UDP), "_dns._tcp.local", "SRV").rr
    assert not ask(stored(TCP), "_dns._udp.local", "SRV").rr


def test_a_draining_one_is_not_offered() -> None:
    draining = Instance(UDP.id, UDP.host, UDP.port, Attributes(draining=True), "udp")
    assert not ask(stored(draining), "_dns._udp.local", "SRV").rr


def test_the_target_of_srv_resolves() -> None:
    assert [str(each.rdata) for each in ask(stored(UDP), "192-0-2-7.dns.local", "A").rr] == ["192.0.2.7"]


@pytest.mark.parametrize("subdomains", [False, True])
def test_a_service_of_udp_alone_is_known_but_not_at_the_edge(subdomains: bool) -> None:
    for qtype in ("A", "AAAA"):
        reply = ask(stored(UDP), "dns.local", qtype, subdomains=subdomains)
        assert (reply.header.rcode, reply.rr, len(reply.auth)) == (dnslib.RCODE.NOERROR, [], 1)
    below = ask(stored(UDP), "x.dns.local", "A", subdomains=subdomains)
    assert below.header.rcode == dnslib.RCODE.NXDOMAIN
    assert ask(stored(UDP, TCP), "dns.local", "A").rr
    (text,) = ask(stored(UDP), "dns.local", "TXT").rr
    assert "scheme=udp" in str(text.rdata)


# ---- people -----------------------------------------------------------------------------------------


def test_it_is_listed_and_can_be_set() -> None:
    (service,) = services_document(stored(UDP, TCP), ())["services"]  # type: ignore[misc,attr-defined]
    assert [each["id"] for each in service["udp"]] == [UDP.id]
    assert entry("dns", "udp/0", "10.0.0.5:53") == ("/services/dns/udp/0", "10.0.0.5:53")
    with pytest.raises(UsageError):
        entry("dns", "udp/0", "host:53")
    with pytest.raises(UsageError):
        key_of("dns", "sctp/0")
