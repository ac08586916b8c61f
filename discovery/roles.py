"""From settings to the parts of each role: every default that depends on the machine is decided here."""

import os
import pwd
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from discovery.announced import Announcement
from discovery.dns.processes import DnsProcesses
from discovery.dns.settings import Address, DnsSettings, DomainUpstreams
from discovery.drains import Drains
from discovery.errors import ConfigError, SchemaError
from discovery.haproxy.settings import ProxySettings, parse_held_ports, split_address
from discovery.journal import Journal
from discovery.node import Node, find_node, node_name
from discovery.registrator import Registrator
from discovery.schema import parse_port, parse_scheme
from discovery.settings import Settings
from discovery.sources.announce import AnnounceSource
from discovery.sources.bridge import bridge_addresses
from discovery.sources.docker import Rules
from discovery.sources.docker_engine import Engine, ping
from discovery.sources.docker_source import DockerSource
from discovery.sources.engine_client import EngineAddress, engine_address
from discovery.sources.readiness import Readying
from discovery.stop import Stop
from discovery.stores.base import Store

HAPROXY_USER = "haproxy"
DNS_PORT = 53
STATUS_PORT = 8405


def docker_address(settings: Settings) -> EngineAddress:
    """The engine whose containers are registered. Raises ConfigError."""
    docker = settings.docker
    url = docker.url or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    return engine_address(url, docker.ca_file, docker.cert_file, docker.key_file, os.environ)


def packaged_templates() -> Path:
    """Where HAProxy's templates are installed."""
    return Path(str(files("discovery.templates").joinpath("haproxy")))


def proxy_settings(settings: Settings) -> ProxySettings:
    """What the proxy role is told. Raises ConfigError."""
    proxy = settings.proxy
    # One that is misspelt would else be found only when what is in it is missed.
    for setting, directory in (("proxy.templates", proxy.templates), ("proxy.certs", proxy.certs)):
        if directory is not None and not directory.exists():
            raise ConfigError(setting, f"there is no directory {directory}", "make it, or name another")
    overrides = () if proxy.templates is None else (proxy.templates.absolute(),)
    return ProxySettings(
        state_dir=settings.private_dir.absolute(),
        templates=(*overrides, packaged_templates()),
        http=proxy.http,
        https=proxy.https if proxy.certs is not None else (),
        certs=proxy.certs.absolute() if proxy.certs is not None else None,
        bind_address=proxy.bind_address,
        haproxy=proxy.haproxy,
        reserved_ports=_reserved_ports(settings),
        user=_haproxy_user(proxy.user),
        mode=proxy.mode,
        check_cmd=proxy.check_cmd,
        reload_cmd=proxy.reload_cmd,
        command_timeout_seconds=proxy.command_timeout_seconds,
        reload_interval_seconds=proxy.reload_interval_seconds,
        reload_spread_seconds=proxy.reload_spread_seconds,
        spare_backends=proxy.spare_backends,
        held_ports=parse_held_ports(proxy.held_ports or ()),
        mass_loss_share=proxy.mass_loss_share,
        mass_loss_seconds=proxy.mass_loss_seconds,
        mass_loss_window_seconds=settings.registrator.ttl_seconds,
        hard_stop_after_seconds=proxy.old_worker_seconds,
        max_reloads=proxy.old_workers,
    )


def _haproxy_user(name: str | None) -> str:
    """Whom HAProxy becomes. One that was named must be there, for else HAProxy would stay root."""
    if name is None:
        return HAPROXY_USER
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        raise ConfigError("proxy.user", f"there is no user {name!r}", "make it, or name another") from None


def _reserved_ports(settings: Settings) -> dict[int, str]:
    """Ports of this agent that no service can have, though nobody may listen on them yet."""
    reserved = {}
    if "status" in settings.roles:
        reserved[status_address(settings)[1]] = "status.listen"
    if "dns" in settings.roles:
        for text in settings.dns.listen or (str(DNS_PORT),):
            reserved[_endpoint("dns.listen", text)[1] if ":" in text else DNS_PORT] = "dns.listen"
    return reserved


def docker_rules(settings: Settings, node: Node) -> Rules:
    """How this node's containers are registered."""
    docker = settings.docker
    return Rules(
        node.name,
        node.address,
        internal=docker.internal,
        explicit=docker.explicit,
        network=docker.network,
        conventions=frozenset(docker.conventions),
        tags=docker.tags,
        check_commands=docker.check_commands,
    )


def registrator(settings: Settings, store: Store, node: Node) -> Registrator:
    """The registrator of this node's containers. Raises SourceError when there is no engine.

    One whose socket is there is waited for, as it may be starting itself: it is not the end of this node's
    edge, nor are its containers to be forgotten because the agent was quicker.
    """
    engine = docker_address(settings)
    if not _has_socket(engine.url):
        ping(engine)
    times = settings.registrator
    if times.refresh_seconds is not None and times.refresh_seconds >= times.ttl_seconds:
        reason = f"keys that live for {times.ttl_seconds:g} s are renewed too late"
        raise ConfigError("registrator.refresh_seconds", reason, "less than --ttl; a third of it is good")
    source = DockerSource(
        engine,
        docker_rules(settings, node),
        readying=Readying(times.grace_seconds, times.stop_seconds),
        drains=drains(settings),
        relist_seconds=times.relist_seconds,
    )
    return Registrator(
        store,
        source,
        ttl_seconds=times.ttl_seconds,
        refresh_seconds=times.refresh_seconds,
        journal=Journal(settings.private_dir / "registrator.journal", store.url),
        node=node.name,
    )


def drains(settings: Settings) -> Drains:
    """Where `discovery stop` asks the registrator of this node to drain a container."""
    return Drains(settings.private_dir / "drains")


def stopper(settings: Settings, store: Store, say: Callable[[str], None]) -> Stop:
    """What stops containers of this node's engine. Raises SourceError when there is none."""
    engine = Engine(docker_address(settings), settings.store.timeout_seconds)
    return Stop(engine, store, drains(settings), node_name(settings.node.name), say)


def _has_socket(url: str) -> bool:
    """Whether ``url`` is of a socket on this machine that we may use; somebody may yet listen on it."""
    path = Path(url.removeprefix("unix://"))
    return url.startswith("unix://") and path.is_socket() and os.access(path, os.R_OK | os.W_OK)


def announcer(
    settings: Settings,
    store: Store,
    name: str,
    address: str,
    *,
    scheme: str | None,
    host_port: str | None,
    check: str | None,
) -> Announcement:
    """One address, announced; ``:port`` is on this node. Raises ConfigError for what cannot be announced."""
    if address.startswith(":"):
        own = find_node(settings.node.name, settings.node.address).address
        address = f"[{own}]{address}" if ":" in own else own + address
    try:
        source = AnnounceSource(
            name,
            address,
            node=node_name(settings.node.name),
            scheme=parse_scheme(scheme) if scheme is not None else None,
            host_port=parse_port(host_port) if host_port is not None else None,
            check=check,
        )
    except SchemaError as error:
        raise ConfigError(f"announce {name} {address}", str(error)) from error
    registrator = Registrator(store, source, ttl_seconds=settings.registrator.ttl_seconds)
    return Announcement(registrator, source.drain)


def dns_server(settings: Settings) -> DnsProcesses:
    """The DNS role's server, not yet bound. Raises ConfigError."""
    dns = settings.dns
    if dns.listen is not None:
        listen = tuple(_endpoint("dns.listen", text) for text in dns.listen)
    else:
        listen = tuple((address, DNS_PORT) for address in bridge_addresses(docker_address(settings)))
        if not listen:
            mend = "start Docker first, or name an address with --dns"
            raise ConfigError("dns.listen", "there is no Docker bridge on this node", mend)
    upstreams, domain_upstreams = dns_upstreams(dns.upstream)
    return DnsProcesses(
        DnsSettings(
            listen=listen,
            answer=dns.answer or tuple(dict.fromkeys(host for host, _ in listen)),
            zones=dns.zone,
            upstreams=upstreams,
            domain_upstreams=domain_upstreams,
            wildcard=dns.wildcard,
            subdomains=dns.subdomains,
            ttl_seconds=dns.ttl_seconds,
            negative_ttl_seconds=dns.negative_ttl_seconds,
            networks=dns.networks,
            queries_per_second=dns.queries_per_second,
            forward_private=dns.forward_private,
            cache_entries=dns.cache_entries,
            stale_seconds=dns.stale_seconds,
        ),
        processes=dns.processes,
    )


def dns_upstreams(
    entries: tuple[str, ...] | None,
) -> tuple[tuple[Address, ...] | None, tuple[DomainUpstreams, ...]]:
    """``ADDRESS`` and ``DOMAIN=ADDRESS`` → resolvers for all names, None if there are none, and by domain."""
    plain: list[Address] = []
    by_domain: list[DomainUpstreams] = []
    for entry in entries or ():
        domain, separator, address = entry.rpartition("=")
        if separator:
            by_domain.append((domain, (_endpoint("dns.upstream", address),)))
        else:
            plain.append(_endpoint("dns.upstream", address))
    # To name one domain's resolver says nothing of all others.
    is_default = entries is None or (by_domain and not plain)
    return None if is_default else tuple(plain), tuple(by_domain)


def status_address(settings: Settings) -> Address:
    """Where the status role is served. Raises ConfigError."""
    return _endpoint("status.listen", settings.status.listen, STATUS_PORT)


def _endpoint(setting: str, text: str, default_port: int = DNS_PORT) -> Address:
    """``ip``, ``ip:port`` or ``[ipv6]:port`` → address and port."""
    bare = text.count(":") > 1 and not text.startswith("[")
    if bare or ":" not in text or text.endswith("]"):
        text = f"[{text}]:{default_port}" if bare else f"{text}:{default_port}"
    host, port = split_address(text, setting)
    if host == "*":
        return "0.0.0.0", port
    return host, port
