"""The names of addresses (``in-addr.arpa``, ``ip6.arpa``): which there are, which of them stay here. Pure.

The names of private addresses mean nothing to the world, which would only learn of them: whoever resolves
them for a site answers that there are none (RFC 6303).
"""

import ipaddress

Labels = tuple[bytes, ...]


def reverse_labels(host: str) -> Labels:
    """The name of an address: ``10.0.0.1`` → ``1.0.0.10.in-addr.arpa``."""
    return tuple(label.encode("ascii") for label in ipaddress.ip_address(host).reverse_pointer.split("."))


def private_zone(labels: Labels) -> Labels | None:
    """The private zone a name of lower-case labels is in, None for every other name."""
    if labels[-1:] != _ARPA:
        return None
    for depth in _DEPTHS:
        zone = labels[-depth:]
        if zone in _PRIVATE:
            return zone
    return None


def _zone_labels(network: str) -> Labels:
    """The zone that holds the names of a network, whose prefix ends at a label."""
    parsed = ipaddress.ip_network(network)
    bits = 8 if parsed.version == 4 else 4
    labels = reverse_labels(str(parsed.network_address))
    return labels[(parsed.max_prefixlen - parsed.prefixlen) // bits :]


_ARPA = (b"arpa",)
_PRIVATE = frozenset(
    _zone_labels(network)
    for network in (
        # RFC 1918, 7793 (shared by carriers): as many zones as there are labels.
        "10.0.0.0/8",
        *(f"172.{second}.0.0/16" for second in range(16, 32)),
        "192.168.0.0/16",
        *(f"100.{second}.0.0/16" for second in range(64, 128)),
        # This network, loopback, link-local, documentation, broadcast.
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "255.255.255.255/32",
        # The same of IPv6.
        "::/128",
        "::1/128",
        "fd00::/8",
        *(f"fe{digit}0::/12" for digit in "89ab"),
        "2001:db8::/32",
    )
)
_DEPTHS = sorted({len(zone) for zone in _PRIVATE})
