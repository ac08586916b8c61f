"""Catalog → Model: what HAProxy is to serve, before it is any text. Pure.

Models share what did not change: the backend of a service that is the same object in two catalogs is the
same object in their models, so that what is made of it, such as its text, can be kept as well.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from discovery.catalog import Catalog, Instance, Problem, Scheme, Service
from discovery.errors import SchemaError
from discovery.haproxy.settings import ProxySettings, bind_host, join_address, split_address
from discovery.schema import SERVICES, parse_address, parse_id, parse_name, printable, service_prefix

CHECK_INTERVAL_MS = 2000
CHECKS_PER_SECOND = 2000
"""More health checks than this would cost more than the traffic; the interval grows instead."""


@dataclass(frozen=True, slots=True)
class Server:
    """One instance as HAProxy's server; a weight of 0 takes no new connections."""

    name: str
    address: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Backend:
    """One service and its servers; without servers HAProxy answers 503 for it.

    ``problems`` are what of the service cannot be served, wherever it runs.
    """

    service: Service
    servers: tuple[Server, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """The service's name; the section is named ``service:<name>``."""
        return self.service.name

    @property
    def mode(self) -> Scheme:
        """``http`` or ``tcp``."""
        return self.service.scheme

    @property
    def keep_path(self) -> bool:
        """Whether the first path segment that led here is left on."""
        return self.service.options.get("path") == "keep"


@dataclass(frozen=True, slots=True)
class Listener:
    """The port every edge listens on for one service. ``host`` is ``*`` or an address without brackets."""

    service: str
    mode: Scheme
    host: str
    port: int

    @property
    def address(self) -> str:
        """``host:port`` as HAProxy binds it."""
        return join_address(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Model:
    """All that the configuration depends on but the settings. ``backends`` by name, in their order."""

    backends: Mapping[str, Backend] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    server_count: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def check_interval_ms(self) -> int:
        """The time between two checks of one server, doubled until all of them stay within the bound."""
        interval_ms = CHECK_INTERVAL_MS
        while self.server_count * 1000 / interval_ms > CHECKS_PER_SECOND:
            interval_ms *= 2
        return interval_ms

    def without(self, ports: Mapping[int, str]) -> "Model":
        """This model without the listeners on ``ports``, each reported with its reason."""
        left_out = tuple(
            port_problem(listener.service, listener.port, ports[listener.port])
            for listener in self.listeners
            if listener.port in ports
        )
        kept = tuple(listener for listener in self.listeners if listener.port not in ports)
        return replace(self, listeners=kept, problems=self.problems + left_out) if left_out else self


def build(catalog: Catalog, settings: ProxySettings, previous: Model | None = None) -> Model:
    """The model of a catalog, sharing the backends of ``previous`` whose service is the same object.

    A tcp service without host_port cannot be reached through this proxy, and is not in it; neither is one
    of UDP alone.
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
    listeners, refused = _listeners(backends.values(), settings)
    servers = sum(len(backend.servers) for backend in backends.values())
    return Model(backends, listeners, servers, (*problems, *refused))


def port_problem(service: str, port: int, reason: str) -> Problem:
    """Why a service has no listener on its host_port."""
    return Problem(service, f"{service_prefix(service)}host_port", f"port {port} {reason}")


def _backend(service: Service) -> Backend:
    """The backend of a service, without instances that keep no contract; SchemaError for its name.

    The second line of defence, behind schema.py: no other text from the store is ever a word of the
    configuration, so that none can end a line, open a quote, name a variable or fail to resolve.
    """
    parse_name(service.name)
    servers: list[Server] = []
    problems: list[Problem] = []
    for instance in service.instances:
        try:
            servers.append(_server(instance))
        except SchemaError as error:
            subject = f"{service_prefix(service.name)}hosts/{printable(instance.id)}"
            problems.append(Problem(service.name, subject, str(error)))
    return Backend(service, tuple(servers), tuple(problems))


def _server(instance: Instance) -> Server:
    host, port = parse_address(instance.address)
    attributes = instance.attributes
    weight = 0 if attributes.draining else 1 if attributes.weight is None else attributes.weight
    return Server(parse_id(instance.id), join_address(host, port), weight)


def _listeners(
    backends: Iterable[Backend], settings: ProxySettings
) -> tuple[tuple[Listener, ...], tuple[Problem, ...]]:
    """One listener for each port; a port of our own, or one that another service has, is refused."""
    taken = {port: f"is used by {user}" for port, user in settings.reserved_ports.items()}
    for setting, addresses in (("proxy.http", settings.http), ("proxy.https", settings.https)):
        for address in addresses:
            taken[split_address(address, setting)[1]] = f"is used by {setting}"
    host = bind_host(settings.bind_address, "proxy.bind_address")
    listeners: list[Listener] = []
    problems: list[Problem] = []
    for backend in backends:
        port = backend.service.host_port
        if port is None:
            continue
        if port in taken:
            problems.append(port_problem(backend.name, port, taken[port]))
            continue
        # The same bind in two frontends would split the traffic between two services.
        taken[port] = f"is the port of service {backend.name}"
        listeners.append(Listener(backend.name, backend.mode, host, port))
    return tuple(sorted(listeners, key=lambda listener: listener.port)), tuple(problems)
