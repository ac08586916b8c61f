"""The Docker engine's default bridge: where the containers of this node look for DNS."""

import socket

import docker
import psutil
import requests
import structlog

log = structlog.get_logger(__name__)

DEFAULT_BRIDGE = "docker0"
_TIMEOUT_SECONDS = 5
_NAME = "com.docker.network.bridge.name"


def bridge_addresses(url: str | None) -> tuple[str, ...]:
    """The addresses of the bridge's interface, IPv4 first; none when there is no such interface (yet).

    An engine that does not answer is taken to have the interface every engine has by default.
    """
    found = psutil.net_if_addrs().get(_interface(url), [])
    by_family = {family: [a.address for a in found if a.family == family] for family in _FAMILIES}
    addresses = [address for family in _FAMILIES for address in by_family[family]]
    # Link-local addresses mean nothing without their interface.
    return tuple(address for address in addresses if "%" not in address)


_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _interface(url: str | None) -> str:
    try:
        client = docker.APIClient(base_url=url, version="auto", timeout=_TIMEOUT_SECONDS)
        try:
            network = client.inspect_network("bridge")
        finally:
            client.close()
    except (docker.errors.DockerException, requests.RequestException) as error:
        log.warning("bridge_assumed", interface=DEFAULT_BRIDGE, engine=url, error=str(error))
        return DEFAULT_BRIDGE
    return str((network.get("Options") or {}).get(_NAME, DEFAULT_BRIDGE))
