"""Captures the inspect documents of tests/unit/inspect from a real engine.

Run by hand when a case is added: `python -m tests.lab.capture_inspect CASE…`, without a case all of them.
Each case is a `docker create` command line, as a person would type it. A container that shares another's
network needs that in the same run.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lab.dockerd import IMAGE, DockerEngine
from tests.lab.need import need
from tests.lab.wait import until

DIRECTORY = Path(__file__).parent.parent / "unit" / "inspect"

CASES = {
    "published_random": "-p 80",
    "published_fixed": "-p 8000:80",
    "published_twice": "-p 8004:80 -p 8003:80",
    "published_on_loopback": "-p 127.0.0.1:8005:80",
    "published_on_address": "-p 172.29.42.1:8006:80",
    "published_on_ipv6": "-p [::]:8007:80",
    "two_ports": "-p 8010:80 -p 8011:443",
    "port_range": "-p 8020-8022:90-92",
    "tcp_and_udp": "-p 8030:53/tcp -p 8031:53/udp",
    "udp_only": "-p 8032:53/udp",
    "exposed_only": "--expose 80",
    "no_ports": "",
    "environment_and_labels": (
        "-p 8040:80 -e SERVICE_NAME=from-env -e SERVICE_TAGS=a,b -e SERVICE_SCHEME=tcp -e PASSWORD=hunter2"
        " --label SERVICE_NAME=from-label --label SERVICE_80_TAGS=c --label com.example=hunter3"
    ),
    "host_network": "--network host -p 8050:8050 --expose 8051 -e SERVICE_8052_NAME=named",
    "two_networks": "--network front -p 8060:80 --expose 81",
    "container_network": "--network container:two_ports -e SERVICE_443_NAME=tls",
    "health_starting": "-p 8070:80 --health-cmd=true --health-interval=1h",
    "health_good": "-p 8071:80 --health-cmd=true --health-interval=100ms",
    "health_bad": "-p 8072:80 --health-cmd=false --health-interval=100ms --health-retries=1",
    "no_healthcheck": "-p 8073:80 --no-healthcheck",
    "stop_signal": "-p 8074:80 --stop-signal SIGRTMIN+3 --stop-timeout 30",
    "paused": "-p 8075:80",
    "exited": "-p 8076:80",
    "created": "-p 8077:80",
    "registry_image": "-p 8078:80",
    "published_all": "--expose 80 --expose 53/udp -P",
    "published_on_ipv6_loopback": "-p [::1]:8079:80",
    "published_everywhere": "-p 127.0.0.1:8081:80 -p 172.29.42.1:8082:80 -p 8083:80",
    "udp_range": "-p 8084-8086:70-72/udp",
    "three_protocols": "-p 8087:53/tcp -p 8088:53/udp --expose 53/sctp",
    "host_udp": "--network host -p 8089:53/udp --expose 54/udp -e SERVICE_54_NAME=named",
    "no_network": "--network none --expose 80",
    "dual_stack": "--network six -p 8090:80",
    "published_on_user_network": "--network front --network-alias web -p 8091:80",
    "internal_network": "--network cut --expose 80",
    "macvlan": "--network mac --expose 80",
    "macvlan_published": "--network mac -p 8092:80 -p 8093:53/udp",
    "macvlan_named": "--network mac -e SERVICE_8080_NAME=web",
    "macvlan_and_bridge": "--network mac -p 8094:80 --expose 81",
    "container_of_macvlan": "--network container:macvlan",
    "container_of_host": "--network container:host_udp -e SERVICE_84_NAME=web",
    "container_of_container": "--network container:container_of_macvlan",
    "nginx_proxy": (
        "-p 8095:80 -p 8096:8080 -e VIRTUAL_HOST=Example.com,*.example.com -e VIRTUAL_PORT=8080"
        " -e DATABASE_URL=postgres://me:hunter4@db"
    ),
    "compose": (
        "-p 8097:80 --label com.docker.compose.project=shop --label com.docker.compose.service=web"
        " --label com.docker.compose.oneoff=False"
    ),
    "compose_run": (
        "-p 8098:80 --label com.docker.compose.project=shop --label com.docker.compose.service=web"
        " --label com.docker.compose.oneoff=True"
    ),
    "checks": (
        "-p 8099:80 -p 8100:81 --label SERVICE_CHECK_HTTP=/health -e SERVICE_CHECK_INTERVAL=5s"
        " -e SERVICE_CHECK_TIMEOUT=500ms -e SERVICE_81_CHECK_HTTP= -e SERVICE_81_CHECK_TCP=true"
    ),
}

REGISTRY_IMAGE = "registry.example:5000/team/web_app:1.2"
EXPOSING_IMAGE = "exposing:local"
IMAGES = {
    "registry_image": REGISTRY_IMAGE,
    # Who shares a network may not be told to expose a port, but its image may.
    "container_of_macvlan": EXPOSING_IMAGE,
    "container_of_host": EXPOSING_IMAGE,
    "container_of_container": EXPOSING_IMAGE,
}

NETWORKS = {
    "front": "",
    "back": "",
    "cut": "--internal",
    "six": "--ipv6 --subnet fd00:42::/64",
    "mac": "--driver macvlan --subnet 192.168.242.0/24 --gateway 192.168.242.1 --opt parent=dtcap0",
    "ipv": "--driver ipvlan --subnet 192.168.243.0/24 --gateway 192.168.243.1 --opt parent=dtcap1",
}
"""The parents of macvlan and ipvlan are made here, for nothing real is to be touched. A kernel without ipvlan
has its networks all the same, but starts no container on them."""


@contextlib.contextmanager
def parents() -> Iterator[None]:
    ip = need("ip")
    subprocess.run([ip, *["link", "add", "dtcap0", "type", "veth", "peer", "name", "dtcap1"]], check=True)
    try:
        for name in ("dtcap0", "dtcap1"):
            subprocess.run([ip, "link", "set", name, "up"], check=True)
        yield
    finally:
        subprocess.run([ip, "link", "del", "dtcap0"], check=False)


def main() -> None:
    cases = {name: CASES[name] for name in sys.argv[1:] or CASES}
    with parents(), DockerEngine(bip="172.29.42.1/24") as engine:

        def docker(*arguments: str, stdin: str = "") -> str:
            environment = {**os.environ, "DOCKER_HOST": engine.url, "DOCKER_BUILDKIT": "0"}
            command = [need("docker"), *arguments]
            return subprocess.run(
                command, env=environment, check=True, input=stdin, stdout=subprocess.PIPE, text=True
            ).stdout

        for name, flags in NETWORKS.items():
            docker("network", "create", *shlex.split(flags), name)
        docker("tag", IMAGE, REGISTRY_IMAGE)
        docker("build", "--tag", EXPOSING_IMAGE, "-", stdin=f"FROM {IMAGE}\nEXPOSE 82\n")
        for name, flags in cases.items():
            image = IMAGES.get(name, IMAGE)
            # Who shares a network would find the port in use.
            shares = "--network host" in flags or "--network container:" in flags
            server = ["sleep", "600"] if shares else ["httpd", "-f", "-p", "80"]
            docker("create", "--name", name, *shlex.split(flags), image, *server)
            for network in {"two_networks": ["back"], "macvlan_and_bridge": ["front"]}.get(name, []):
                docker("network", "connect", network, name)
            if name != "created":
                docker("start", name)
        if "paused" in cases:
            docker("pause", "paused")
        for name, status in (("health_good", "healthy"), ("health_bad", "unhealthy")):
            if name not in cases:
                continue
            until(
                lambda name=name, status=status: _health(docker("inspect", name)) == status,
                f"{name}: {status}",
            )
        if "exited" in cases:
            docker("kill", "exited")
            until(lambda: json.loads(docker("inspect", "exited"))[0]["State"]["Status"] == "exited", "exited")
        for name in cases:
            write(DIRECTORY / f"{name}.json", json.loads(docker("inspect", name))[0], engine)
        # As the list of the API has them, which names no containers.
        networks = sorted(engine.client.networks(), key=lambda network: str(network["Name"]))
        write(DIRECTORY / "networks" / "networks.json", networks, engine)


def write(path: Path, document: object, engine: DockerEngine) -> None:
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1, sort_keys=True)
    # Where the engine kept its files is of no use to anyone.
    path.write_text(text.replace(str(engine.directory), "/var/lib") + "\n")


def _health(document: str) -> str:
    return str(json.loads(document)[0]["State"]["Health"]["Status"])


if __name__ == "__main__":
    main()
