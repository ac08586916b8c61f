"""How containers of a node are registered: what the settings say, as one value. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Convention = Literal["registrator", "nginx-proxy", "compose", "compose-service"]

PREDEFINED_NETWORKS = frozenset({"bridge", "host", "none"})
"""Networks that every engine has, under these names, and that nobody can make."""

_DIRECT_DRIVERS = frozenset({"macvlan", "ipvlan"})


@dataclass(frozen=True, slots=True)
class Rules:
    """How containers of a node are registered.

    ``node`` is the node's name, ``address`` its own for published ports that are bound to all addresses.
    With ``internal`` containers are registered by their own addresses, on ``network`` where they have
    several, else on the first by name. With ``explicit`` only ports with a SERVICE_NAME are registered.
    ``direct`` are names of networks whose containers other nodes reach at their own addresses, published or
    not. ``conventions`` are whose words count, ``tags`` are given to all instances. Without
    ``check_commands`` no SERVICE_CHECK_CMD is run.
    """

    node: str
    address: str
    internal: bool = False
    explicit: bool = False
    network: str | None = None
    direct: frozenset[str] = frozenset()
    conventions: frozenset[Convention] = frozenset({"registrator"})
    tags: tuple[str, ...] = ()
    check_commands: bool = False


def direct_networks(networks: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of networks whose containers have addresses of the node's own network.

    ``networks`` are as ``GET /networks`` gives them. Those of macvlan and ipvlan without a parent interface,
    or made as internal, lead nowhere.
    """
    return frozenset(
        str(network.get("Name"))
        for network in networks
        if network.get("Driver") in _DIRECT_DRIVERS
        and not network.get("Internal")
        and (network.get("Options") or {}).get("parent")
    )
