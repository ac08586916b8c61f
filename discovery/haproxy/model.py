"""Catalog → Model: what HAProxy is to serve, before it is any text. Pure.

Models share what did not change: the backend of a service that is the same object in two catalogs is the
same object in their models, so that what is made of it, such as its text, can be kept as well.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from discovery.catalog import Catalog, Instance, Problem, Scheme, Service
from discovery.errors import SchemaError
from discovery.haproxy.certificates import Certificate
from discovery.haproxy.directives import directives
from discovery.haproxy.routes import claim_hosts
from discovery.haproxy.settings import ProxySettings, bind_host, join_address, split_address
from discovery.options import misuses, shaping
from discovery.schema import SERVICES, parse_address, parse_id, parse_name, printable, service_prefix

CHECK_INTERVAL_MS = 2000
CHECKS_PER_SECOND = 2000
"""More health checks than this would cost more than the traffic; the interval grows instead."""


@dataclass(frozen=True, slots=True)
class Server:
    """One instance as HAProxy's server; a weight of 0 takes no new connections but those that stick to it."""

    id: str
    address: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What the text of a backend section depends on, besides its name and servers."""

    mode: Scheme
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Backend:
    """One service and its servers; without servers HAProxy answers 503 for it.

    An instance that is draining is no server: what it has begun it may finish, and nothing else reaches it.
    ``problems`` are what of the service cannot be served, wherever it runs.
    """

    service: Service
    shape: Shape
    servers: tuple[Server, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """The service's name."""
        return self.service.name

    @property
    def mode(self) -> Scheme:
        """``http`` or ``tcp``."""
        return self.service.scheme


@dataclass(frozen=True, slots=True)
class Listener:
    """The port every edge listens on for one service. ``host`` is ``*`` or an address without brackets."""

    service: str
    mode: Scheme
    host: str
    port: int

    @property
    def name(self) -> str:
        """The name of its frontend."""
        return f"port:{self.port}"

    @property
    def address(self) -> str:
        """``host:port`` as HAProxy binds it."""
        return join_address(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Model:
    """All that the configuration depends on but the settings. ``backends`` by name, in their order.

    ``hosts`` tells which service a host name was given to, ``ports`` which one each port of the held ranges;
    ``certificates`` are those for HTTPS by name.
    """

    backends: Mapping[str, Backend] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[int, str] = field(default_factory=dict)
    server_count: int = 0
    problems: tuple[Problem, ...] = ()
    certificates: Mapping[str, Certificate] = field(default_factory=dict)

    @property
    def check_stretch(self) -> int:
        """How much longer than usual the time between two checks of one server is, to keep them bounded."""
        stretch = 1
        while self.server_count * 1000 / (CHECK_INTERVAL_MS * stretch) > CHECKS_PER_SECOND:
            stretch *= 2
        return stretch

    def without_services(self, names: Container[str]) -> "Model":
        """This model without these services."""
        return replace(
            self,
            backends={name: backend for name, backend in self.backends.items() if name not in names},
            listeners=tuple(each for each in self.listeners if each.service not in names),
            hosts={host: service for host, service in self.hosts.items() if service not in names},
            ports={port: service for port, service in self.ports.items() if service not in names},
        )

    def without(self, ports: Mapping[int, str]) -> "Model":
        """This model without what is served on ``ports``, each reported with its reason.

        Nor is a tcp service in it whose port that was, for nobody could reach it.
        """
        owners = {each.port: each.service for each in self.listeners} | dict(self.ports)
        refused = {port: service for port, service in owners.items() if port in ports}
        if not refused:
            return self
        problems = (port_problem(service, port, ports[port]) for port, service in refused.items())
        gone = {service for service in refused.values() if self.backends[service].mode == "tcp"}
        rest = replace(
            self,
            listeners=tuple(each for each in self.listeners if each.port not in refused),
            ports={port: service for port, service in self.ports.items() if port not in refused},
            problems=(*self.problems, *problems),
        )
        return rest.without_services(gone) if gone else rest


def build(catalog: Catalog, settings: ProxySettings, previous: Model | None = None) -> Model:
    """The model of a catalog, sharing the backends of ``previous`` whose service is the same object.

    A tcp service without host_port, or with one that is refused, cannot be reached through this proxy, and is
    not in it; neither is one of UDP alone.
    """
    known = previous.backends if previous else {}
    backends: dict[str, Backend] = {}
    problems: list[Problem] = []
    for name in sorted(catalog.services):
        service = catalog.services[name]
        if not service.routed or (service.scheme == "tcp" and service.host_port is None):
            continue
        backend = known.get(name)
        if backend is None or backend.service is not service:
            try:
                backend = _backend(service)
            except SchemaError as error:
                problems.append(Problem(None, f"{SERVICES}{printable(service.name)}", str(error)))
                continue
        backends[name] = backend
        problems += backend.problems
    listeners, ports, refused = _listeners(backends.values(), settings)
    if not settings.https:
        problems += _unredirected(backends.values())
    for problem in refused:
        if problem.service is not None and backends[problem.service].mode == "tcp":
            del backends[problem.service]
    hosts, unclaimed = claim_hosts(
        backend.service for backend in backends.values() if "hosts" in backend.service.options
    )
    servers = sum(len(backend.servers) for backend in backends.values())
    return Model(backends, listeners, hosts, ports, servers, (*problems, *unclaimed, *refused))


def _unredirected(backends: Iterable[Backend]) -> Iterator[Problem]:
    """The services that are to be asked by https only, on an edge that has none."""
    for backend in backends:
        if backend.service.options.get("redirect") == "https":
            subject = f"{service_prefix(backend.name)}options/redirect"
            reason = "this edge serves no https to redirect to; name certificates in proxy.certs"
            yield Problem(backend.name, subject, reason)


def port_problem(service: str, port: int, reason: str) -> Problem:
    """Why a service has no listener on its host_port."""
    return Problem(service, f"{service_prefix(service)}host_port", f"port {port} {reason}")


def _backend(service: Service) -> Backend:
    """The backend of a service, without instances that keep no contract; SchemaError for name and options.

    The second line of defence, behind schema.py: no other text from the store is ever a word of the
    configuration, so that none can end a line, open a quote, name a variable or fail to resolve.
    """
    parse_name(service.name)
    servers: list[Server] = []
    if service.options:
        directives(service, None)
    prefix = f"{service_prefix(service.name)}options/"
    problems = [
        Problem(service.name, prefix + name, reason, "reported")
        for name, reason in misuses(service.scheme, service.options).items()
    ]
    for instance in service.instances:
        try:
            if not instance.attributes.draining:
                servers.append(_server(instance, service.options))
        except SchemaError as error:
            subject = f"{service_prefix(service.name)}hosts/{printable(instance.id)}"
            problems.append(Problem(service.name, subject, str(error)))
    shape = Shape(service.scheme, tuple(sorted(shaping(service.options).items())))
    return Backend(service, shape, tuple(servers), tuple(problems))


def _server(instance: Instance, options: Mapping[str, str]) -> Server:
    host, port = parse_address(instance.address)
    weight = instance.attributes.weight
    if weight is None:
        weight = int(options.get("weight", "1"))
    return Server(parse_id(instance.id), join_address(host, port), weight)


def _listeners(
    backends: Iterable[Backend], settings: ProxySettings
) -> tuple[tuple[Listener, ...], Mapping[int, str], tuple[Problem, ...]]:
    """Who listens on which port: listeners of their own, and services by held port.

    A port of our own, one that another service has, and one that is held for the other scheme is refused.
    """
    taken = {port: f"is used by {user}" for port, user in settings.reserved_ports.items()}
    for setting, addresses in (("proxy.http", settings.http), ("proxy.https", settings.https)):
        for address in addresses:
            taken[split_address(address, setting)[1]] = f"is used by {setting}"
    host = bind_host(settings.bind_address, "proxy.bind_address")
    listeners: list[Listener] = []
    held: dict[int, str] = {}
    problems: list[Problem] = []
    for backend in backends:
        port = backend.service.host_port
        if port is None:
            continue
        scheme = next((each.scheme for each in settings.held_ports if each.first <= port <= each.last), None)
        if port not in taken and scheme not in (None, backend.mode):
            taken[port] = f"is held for {scheme} services by proxy.held_ports"
        if port in taken:
            problems.append(port_problem(backend.name, port, taken[port]))
            continue
        # The same bind in two frontends would split the traffic between two services.
        taken[port] = f"is the port of service {backend.name}"
        if scheme is None:
            listeners.append(Listener(backend.name, backend.mode, host, port))
        else:
            held[port] = backend.name
    return tuple(sorted(listeners, key=lambda listener: listener.port)), held, tuple(problems)
