"""What a running worker of HAProxy has, in plain words, against what a Catalog asks of it.

Written from the contract alone: nothing of the proxy role's own planning or reading is used here, so that a
mistake there does not repeat itself.
"""

import re
from collections.abc import Iterator, Mapping

from discovery.catalog import Catalog, Instance, Service
from discovery.haproxy.runtime import ask
from discovery.haproxy.settings import ProxySettings

_PATIENCE_SECONDS = 20


def tell(of: ProxySettings, command: str) -> str:
    """The worker's answer to one runtime command."""
    return ask(of.admin_socket, command, _PATIENCE_SECONDS)


def map_of(of: ProxySettings, name: str) -> dict[str, str]:
    """A map as the worker has it; a key that is there twice fails."""
    entries: dict[str, str] = {}
    for line in tell(of, f"show map {name}").splitlines():
        words = line.split()
        if len(words) == 3 and words[0].startswith("0x"):
            assert words[1] not in entries, f"{words[1]} is in {name} twice"
            entries[words[1]] = words[2]
    return entries


def worker_pid(of: ProxySettings) -> int:
    """The process that answers."""
    match = re.search(r"^Pid: (\d+)$", tell(of, "show info"), re.MULTILINE)
    assert match
    return int(match[1])


def serving(of: ProxySettings) -> dict[str, list[tuple[str, int]]]:
    """Address and weight of every server that is not in maintenance, in order, by backend section."""
    header, *lines = tell(of, "show servers state").splitlines()[1:]
    names = header.removeprefix("# ").split()
    found: dict[str, list[tuple[str, int]]] = {}
    for line in filter(None, lines):
        row = dict(zip(names, line.split(), strict=True))
        ready = found.setdefault(row["be_name"], [])
        if not int(row["srv_admin_state"]) & 0x01:
            host = f"[{row['srv_addr']}]" if ":" in row["srv_addr"] else row["srv_addr"]
            ready.append((f"{host}:{row['srv_port']}", int(row["srv_uweight"])))
    return {name: sorted(each) for name, each in found.items()}


def up(of: ProxySettings, service: str) -> dict[str, bool]:
    """Whether HAProxy thinks each server of a service up, by address; those in maintenance are left out."""
    section = map_of(of, "backends.map")[service]
    header, *lines = tell(of, f"show servers state {section}").splitlines()[1:]
    names = header.removeprefix("# ").split()
    rows = [dict(zip(names, line.split(), strict=True)) for line in filter(None, lines)]
    return {
        f"{row['srv_addr']}:{row['srv_port']}": row["srv_op_state"] != "0"
        for row in rows
        if not int(row["srv_admin_state"]) & 0x01
    }


def open_frontends(of: ProxySettings) -> set[str]:
    """The names of the frontends that take connections."""
    lines = tell(of, "show stat -1 1 -1").removeprefix("# ").splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line]
    return {row["pxname"] for row in rows if row["status"] == "OPEN"}


def wanted_servers(service: Service) -> list[tuple[str, int]]:
    """Address and weight of the servers that a service asks for, in order."""
    return sorted(
        (each.address, _weight(service, each)) for each in service.instances if not each.attributes.draining
    )


def _weight(service: Service, instance: Instance) -> int:
    own = instance.attributes.weight
    return int(service.options.get("weight", "1")) if own is None else own


def _served(catalog: Catalog) -> Iterator[Service]:
    for _, service in sorted(catalog.services.items()):
        if service.scheme == "http" or service.host_port is not None:
            yield service


def assert_worker_is_as(of: ProxySettings, catalog: Catalog) -> None:
    """Fail unless the worker routes and serves exactly as the catalog says."""
    services = {each.name: each for each in _served(catalog)}
    http = [each for each in services.values() if each.scheme == "http"]
    hosts = {each.name: each.name for each in http}
    for each in http:
        for host in filter(None, each.options.get("hosts", "").split(",")):
            hosts.setdefault(host, each.name)
    assert map_of(of, "hosts.map") == hosts
    assert map_of(of, "paths.map") == {each.name: each.name for each in http}
    assert map_of(of, "keep.map") == {
        each.name: "keep" for each in http if each.options.get("path") == "keep"
    }
    _assert_ports(of, services)
    places = map_of(of, "backends.map")
    assert places.keys() == services.keys()
    assert len(set(places.values())) == len(places), f"two services in one section: {places}"
    servers = serving(of)
    for name, place in places.items():
        assert servers.get(place, []) == wanted_servers(services[name]), name
    unused = {name: each for name, each in servers.items() if each and name not in places.values()}
    assert unused == {}, "servers that nobody is led to"


def _assert_ports(of: ProxySettings, services: Mapping[str, Service]) -> None:
    held = {port for each in of.held_ports for port in range(each.first, each.last + 1)}
    ports = {each.host_port: each.name for each in services.values() if each.host_port}
    if held:
        wanted = {str(port): name for port, name in ports.items() if port in held}
        assert map_of(of, "ports.map") == wanted
    listeners = {name for name in open_frontends(of) if name.startswith("port:")}
    assert listeners == {f"port:{port}" for port in ports if port not in held}
