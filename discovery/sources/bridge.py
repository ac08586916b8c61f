"""The Docker engine's default bridge: where the containers of this node look for DNS."""

import socket
from contextlib import closing

import psutil
import structlog

from discovery.errors import SourceError
from discovery.sources.engine_client import FAILURES, EngineAddress, open_client, unreachable

log = structlog.get_logger(__name__)

DEFAULT_BRIDGE = "docker0"
_TIMEOUT_SECONDS = 5
_NAME = "com.docker.network.bridge.name"


def bridge_addresses(address: EngineAddress) -> tuple[str, ...]:
    """The addresses of the bridge's interface, IPv4 first; none when there is no such interface (yet).

    An engine that does not answer is taken to have the interface every engine has by default.
    """
    found = psutil.net_if_addrs().get(_interface(address), [])
    by_family = {family: [a.address for a in found if a.family == family] for family in _FAMILIES}
    addresses = [address for family in _FAMILIES for address in by_family[family]]
    # Link-local addresses mean nothing without their interface.
    return tuple(address for address in addresses if "%" not in address)


_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _interface(address: EngineAddress) -> str:
    try:
        with closing(open_client(address, _TIMEOUT_SECONDS)) as client:
            try:
                network = client.inspect_network("bridge")
            except FAILURES as error:
                raise unreachable(address, error) from error
    except SourceError as error:
        log.warning("bridge_assumed", interface=DEFAULT_BRIDGE, engine=address.url, error=str(error))
        return DEFAULT_BRIDGE
    return str((network.get("Options") or {}).get(_NAME, DEFAULT_BRIDGE))
