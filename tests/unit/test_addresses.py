"""Which ports of a container others reach, and where: tables over documents of a real engine."""

from dataclasses import replace

import pytest

from discovery.sources.container import Binding, Container, Port
from discovery.sources.docker import register
from discovery.sources.reach import Reached, Unreached, reach
from discovery.sources.rules import Rules, direct_networks
from discovery.sources.words import read_words
from tests.unit.inspected import ALL, INTERNAL, NAMES, NETWORKS, NODE, V6, container, only, registered

PUBLISHED = {
    "published_random": {"busybox": "192.0.2.7:32768"},
    "published_fixed": {"busybox": "192.0.2.7:8000"},
    "published_twice": {"busybox": "192.0.2.7:8003"},
    "published_all": {"busybox-53/udp": "192.0.2.7:32768", "busybox-80": "192.0.2.7:32768"},
    "published_everywhere": {"busybox": "192.0.2.7:8083"},
    "published_on_loopback": {},
    "published_on_ipv6_loopback": {},
    "published_on_address": {"busybox": "172.29.42.1:8006"},
    "published_on_ipv6": {},
    "published_on_user_network": {"busybox": "192.0.2.7:8091"},
    "two_ports": {"busybox-80": "192.0.2.7:8010", "busybox-443": "192.0.2.7:8011"},
    "port_range": {
        "busybox-90": "192.0.2.7:8020",
        "busybox-91": "192.0.2.7:8021",
        "busybox-92": "192.0.2.7:8022",
    },
    "udp_range": {
        "busybox-70/udp": "192.0.2.7:8084",
        "busybox-71/udp": "192.0.2.7:8085",
        "busybox-72/udp": "192.0.2.7:8086",
    },
    "tcp_and_udp": {"busybox-53": "192.0.2.7:8030", "busybox-53/udp": "192.0.2.7:8031"},
    "three_protocols": {"busybox-53": "192.0.2.7:8087", "busybox-53/udp": "192.0.2.7:8088"},
    "udp_only": {"busybox/udp": "192.0.2.7:8032"},
    "exposed_only": {},
    "no_ports": {},
    "no_network": {},
    "environment_and_labels": {"from-label": "192.0.2.7:8040"},
    "host_network": {"busybox-8050": "192.0.2.7:8050", "named": "192.0.2.7:8052"},
    "host_udp": {"busybox-53/udp": "192.0.2.7:53", "named/udp": "192.0.2.7:54"},
    "two_networks": {"busybox": "192.0.2.7:8060"},
    "dual_stack": {"busybox": "192.0.2.7:8090"},
    "internal_network": {},
    "container_network": {"tls": "192.0.2.7:8011"},
    "container_of_host": {"web": "192.0.2.7:84"},
    "container_of_macvlan": {"exposing": "192.168.242.2:82"},
    "container_of_container": {"exposing": "192.168.242.2:82"},
    "macvlan": {"busybox": "192.168.242.2:80"},
    "macvlan_published": {"busybox-80": "192.168.242.3:80", "busybox-53/udp": "192.168.242.3:53"},
    "macvlan_named": {"web": "192.168.242.4:8080"},
    # What is published stays so: that is what was asked for.
    "macvlan_and_bridge": {"busybox-80": "192.0.2.7:8094", "busybox-81": "192.168.242.5:81"},
    "nginx_proxy": {"busybox-80": "192.0.2.7:8095", "busybox-8080": "192.0.2.7:8096"},
    "compose": {"busybox": "192.0.2.7:8097"},
    "compose_run": {"busybox": "192.0.2.7:8098"},
    "checks": {"busybox-80": "192.0.2.7:8099", "busybox-81": "192.0.2.7:8100"},
    "health_starting": {},
    "health_good": {"busybox": "192.0.2.7:8071"},
    "health_bad": {},
    "no_healthcheck": {"busybox": "192.0.2.7:8073"},
    "stop_signal": {"busybox": "192.0.2.7:8074"},
    "paused": {},
    "exited": {},
    "created": {},
    "registry_image": {"web_app": "192.0.2.7:8078"},
}


@pytest.mark.parametrize("name", NAMES)
def test_published_ports(name: str) -> None:
    assert registered(register(container(name), ALL, NODE)) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("published_fixed", {"busybox": "172.29.42.3:80"}),
        ("published_on_loopback", {"busybox": "172.29.42.5:80"}),
        ("exposed_only", {"busybox": "172.29.42.12:80"}),
        ("no_ports", {}),
        ("no_network", {}),
        ("two_networks", {"busybox-80": "172.19.0.2:80", "busybox-81": "172.19.0.2:81"}),
        ("host_network", {"busybox-8050": "192.0.2.7:8050", "named": "192.0.2.7:8052"}),
        ("container_network", {"tls": "172.29.42.8:443"}),
        ("container_of_macvlan", {"exposing": "192.168.242.2:82"}),
        ("internal_network", {"busybox": "172.20.0.2:80"}),
        ("dual_stack", {"busybox": "172.21.0.2:80"}),
        ("macvlan", {"busybox": "192.168.242.2:80"}),
        # It exposes nothing, and there is no host to publish it on: its name is what there is.
        ("macvlan_named", {"web": "192.168.242.4:8080"}),
        ("macvlan_and_bridge", {"busybox-80": "172.18.0.3:80", "busybox-81": "172.18.0.3:81"}),
        ("paused", {}),
    ],
)
def test_internal_addresses(name: str, expected: dict[str, str]) -> None:
    assert registered(register(container(name), ALL, INTERNAL)) == expected


# ---- several networks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "setting", "address"),
    [
        ([], None, "172.19.0.2"),
        ([], "front", "172.18.0.2"),
        ([], "elsewhere", "172.19.0.2"),
        (["SERVICE_NETWORK=front"], None, "172.18.0.2"),
        (["SERVICE_NETWORK=front"], "back", "172.18.0.2"),
        (["SERVICE_NETWORK=back", "SERVICE_80_NETWORK=front"], None, "172.18.0.2"),
    ],
)
def test_of_several_networks_the_word_wins_then_the_setting_then_the_name(
    words: list[str], setting: str | None, address: str
) -> None:
    two = container("two_networks", *words, exposed=frozenset([Port(80, "tcp")]))
    rules = replace(INTERNAL, network=setting)
    assert registered(register(two, ALL, rules)) == {"busybox": f"{address}:80"}
    turned = replace(two, networks=dict(reversed(two.networks.items())))
    assert register(turned, ALL, rules) == register(two, ALL, rules)


def test_a_word_for_a_network_that_it_is_not_on_is_reported() -> None:
    outcome = register(container("two_networks", "SERVICE_NETWORK=elsewhere"), ALL, INTERNAL)
    assert not outcome.registrations
    assert "not on a network 'elsewhere'" in outcome.problems[0].reason


def test_compose_knows_a_network_by_its_short_name() -> None:
    found = container("two_networks", "SERVICE_NETWORK=front", networks={"shop_front": ("10.9.0.2",)})
    labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
    words = read_words(["SERVICE_NETWORK=front"], labels)
    assert "10.9.0.2:80" in registered(register(replace(found, words=words), ALL, INTERNAL)).values()


def test_who_shares_a_network_chooses_of_its_owners_networks() -> None:
    owner = container("two_networks")
    guest = container("container_network", "SERVICE_NETWORK=front", network_mode=f"container:{owner.id}")
    running = {owner.id: owner, guest.id: guest}
    assert registered(register(guest, running, INTERNAL)) == {"tls": "172.18.0.2:443"}


# ---- macvlan and ipvlan -----------------------------------------------------------------------------


def test_the_networks_that_lead_out_are_told_by_the_engine() -> None:
    assert direct_networks(NETWORKS) == {"mac", "ipv"}
    made = {"Name": "x", "Driver": "macvlan", "Internal": False, "Options": {"parent": "eth0"}}
    assert direct_networks([made]) == {"x"}
    assert direct_networks([{**made, "Internal": True}]) == set()
    assert direct_networks([{**made, "Options": {}}]) == set()
    assert direct_networks([{**made, "Options": None}]) == set()
    assert direct_networks([{**made, "Driver": "overlay"}, {}]) == set()


def test_an_ipvlan_is_like_a_macvlan() -> None:
    (address,) = container("macvlan").networks["mac"]
    found = container("macvlan", networks={"ipv": (address,)}, network_mode="ipv")
    assert registered(register(found, ALL, NODE)) == {"busybox": f"{address}:80"}


def test_a_network_that_is_not_known_to_lead_out_does_not() -> None:
    unknown = replace(NODE, direct=frozenset())
    outcome = register(container("macvlan"), ALL, unknown)
    assert not outcome.registrations
    assert "not published" in outcome.decisions[0].reason


def test_of_a_bridge_and_a_macvlan_the_word_chooses() -> None:
    both = container("macvlan_and_bridge", "SERVICE_NETWORK=mac")
    assert registered(register(both, ALL, NODE)) == {
        "busybox-80": "192.168.242.5:80",
        "busybox-81": "192.168.242.5:81",
    }
    # The address on a bridge is of no use to other nodes: the word is no way to have it registered.
    front = container("macvlan_and_bridge", "SERVICE_NETWORK=front")
    assert registered(register(front, ALL, NODE))["busybox-80"] == "192.0.2.7:8094"


# ---- IPv6, loopback ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rules", "expected"),
    [
        ("published_on_ipv6", V6, "[2001:db8::7]:8007"),
        ("published_fixed", V6, "[2001:db8::7]:8000"),
        ("published_on_address", V6, "172.29.42.1:8006"),
        ("published_everywhere", V6, "[2001:db8::7]:8083"),
        ("dual_stack", V6, "[2001:db8::7]:8090"),
        ("dual_stack", replace(V6, internal=True), "[fd00:42::2]:80"),
        ("published_fixed", replace(V6, internal=True), "172.29.42.3:80"),
        ("published_on_loopback", replace(NODE, address="127.0.0.1"), "127.0.0.1:8005"),
        ("published_on_ipv6_loopback", replace(NODE, address="127.0.0.1"), "[::1]:8079"),
        ("published_fixed", replace(NODE, address="127.0.0.1"), "127.0.0.1:8000"),
    ],
)
def test_the_version_of_the_nodes_address_decides(name: str, rules: Rules, expected: str) -> None:
    assert only(register(container(name), ALL, rules)).instance.address == expected


@pytest.mark.parametrize(
    ("name", "address", "reason"),
    [
        ("published_on_loopback", "192.0.2.7", "127.0.0.1, where no other node can reach it"),
        ("published_on_loopback", "2001:db8::7", "127.0.0.1, where no other node can reach it"),
        ("published_on_ipv6_loopback", "192.0.2.7", "::1, where no other node can reach it"),
        ("published_on_ipv6", "192.0.2.7", "another IP version"),
    ],
)
def test_what_nobody_can_reach_is_reported(name: str, address: str, reason: str) -> None:
    outcome = register(container(name), ALL, replace(NODE, address=address))
    assert not outcome.registrations
    (problem,) = outcome.problems
    assert (problem.subject, problem.consequence) == (f"container {name} port 80", "left out")
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("bindings", "address"),
    [
        ([("0.0.0.0", 9)], "192.0.2.7:9"),
        ([("", 9)], "192.0.2.7:9"),
        ([("10.0.0.9", 8), ("10.0.0.8", 9)], "10.0.0.8:9"),
        ([("10.0.0.8", 8), ("0.0.0.0", 9)], "192.0.2.7:9"),
        ([("127.0.0.1", 8), ("10.0.0.8", 9)], "10.0.0.8:9"),
        ([("::", 8), ("127.0.0.1", 9)], None),
        ([("fe80::1%eth0", 8)], None),
        ([("fe80::1", 8), ("fd00::1", 9)], "[fd00::1]:9"),
        ([("224.0.0.1", 8)], None),
    ],
)
def test_bindings(bindings: list[tuple[str, int]], address: str | None) -> None:
    found: Container = container("published_fixed")
    for order in (bindings, bindings[::-1]):
        published = {Port(80, "tcp"): tuple(Binding(*each) for each in order)}
        outcome = register(replace(found, published=published), ALL, NODE)
        assert list(registered(outcome).values()) == ([address] if address else [])
        assert bool(outcome.problems) == (address is None)


# ---- other containers' networks ---------------------------------------------------------------------


def test_a_shared_network_whose_owner_is_gone_is_reported() -> None:
    outcome = register(container("container_network"), {}, NODE)
    assert not outcome.registrations
    assert "does not run" in outcome.problems[0].reason


def test_a_chain_that_ends_in_itself_ends() -> None:
    one = container("container_network", id="1", network_mode="container:2")
    two = container("container_network", id="2", network_mode="container:1")
    outcome = register(one, {"1": one, "2": two}, NODE)
    assert "does not run" in outcome.problems[0].reason


def test_an_owner_may_be_named_by_name() -> None:
    guest = container("container_network", network_mode="container:two_ports")
    assert registered(register(guest, ALL, NODE)) == {"tls": "192.0.2.7:8011"}


# ---- beside the address -----------------------------------------------------------------------------


def test_where_the_node_itself_gets_past_docker_proxy() -> None:
    found = reach(container("published_fixed"), ALL, NODE)[Port(80, "tcp")]
    assert isinstance(found, Reached)
    assert found.own == Binding("172.29.42.3", 80)
    (own,) = reach(container("published_fixed"), ALL, INTERNAL).values()
    assert isinstance(own, Reached)
    assert own.own is None
    both = reach(container("macvlan_and_bridge"), ALL, NODE)
    assert [it.own for it in both.values() if isinstance(it, Reached)] == [Binding("172.18.0.3", 80), None]


@pytest.mark.parametrize(
    ("name", "rules", "reason", "asked"),
    [
        ("exposed_only", NODE, "it is exposed but not published on the node", False),
        ("published_on_loopback", NODE, "where no other node", True),
        ("container_of_host", NODE, "only ports named by --publish or SERVICE_82_…", False),
        ("no_network", INTERNAL, "no address of its own", True),
    ],
)
def test_why_a_port_is_not_reached(name: str, rules: Rules, reason: str, asked: bool) -> None:
    found = min(reach(container(name), ALL, rules).items())[1]
    assert isinstance(found, Unreached)
    assert reason in found.reason
    assert found.asked is asked


def test_the_reason_names_whose_network_it_is() -> None:
    registration = only(register(container("container_network"), ALL, NODE))
    decisions = register(container("container_network"), ALL, NODE).decisions
    reason = next(each.reason for each in decisions if each.registration == registration)
    assert reason.endswith("; it shares the network of container two_ports")
