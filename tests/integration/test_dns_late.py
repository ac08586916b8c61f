"""A bridge that comes up after us: its address and its network, in a network namespace of their own."""

import subprocess

from discovery.dns.server import DnsServer
from discovery.dns.settings import DnsSettings
from tests.lab.dns import EDGE, eventually, query, rcode, serving
from tests.lab.need import need
from tests.lab.netns import Network, inside

BRIDGE, CLIENT = "10.97.0.1", "10.97.0.2"


def test_an_address_and_a_network_that_appear_later_are_served_without_restart() -> None:
    with Network(1) as network:
        (node,) = network.nodes

        def has_answer() -> bool:
            with inside(network.hub):
                try:
                    return rcode(query((BRIDGE, 53), "web.local", timeout_seconds=1)) == "NOERROR"
                except OSError:
                    return False

        def give(namespace: str, address: str, device: str) -> None:
            subprocess.run(
                [need("ip"), "-n", namespace, "address", "add", f"{address}/24", "dev", device], check=True
            )

        # Threads begin where the one that starts them is.
        with inside(node), serving(DnsServer(DnsSettings(((BRIDGE, 53),), (EDGE,), upstreams=()))):
            give(network.hub, CLIENT, "switch")
            assert not has_answer()
            give(node, BRIDGE, "eth0")
            eventually(has_answer)
