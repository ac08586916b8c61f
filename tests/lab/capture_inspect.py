"""Captures the inspect documents of tests/unit/inspect from a real engine.

Run by hand when a case is added: `python -m tests.lab.capture_inspect`. Each case is a `docker create`
command line, as a person would type it.
"""

import json
import os
import shlex
import subprocess
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
}


def main() -> None:
    with DockerEngine(bip="172.29.42.1/24") as engine:

        def docker(*arguments: str) -> str:
            environment = {**os.environ, "DOCKER_HOST": engine.url}
            command = [need("docker"), *arguments]
            return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

        docker("network", "create", "front")
        docker("network", "create", "back")
        docker("tag", IMAGE, "registry.example:5000/team/web_app:1.2")
        for name, flags in CASES.items():
            image = "registry.example:5000/team/web_app:1.2" if name == "registry_image" else IMAGE
            server = ["httpd", "-f", "-p", "8081" if name == "container_network" else "80"]
            docker("create", "--name", name, *shlex.split(flags), image, *server)
            if name == "two_networks":
                docker("network", "connect", "back", name)
            if name != "created":
                docker("start", name)
        docker("pause", "paused")
        docker("kill", "exited")
        for name, status in (("health_good", "healthy"), ("health_bad", "unhealthy")):
            until(
                lambda name=name, status=status: _health(docker("inspect", name)) == status,
                f"{name}: {status}",
            )
        until(lambda: json.loads(docker("inspect", "exited"))[0]["State"]["Status"] == "exited", "exited")
        for name in CASES:
            document = json.loads(docker("inspect", name))[0]
            text = json.dumps(document, indent=1, sort_keys=True)
            # Where the engine kept its files is of no use to anyone.
            (DIRECTORY / f"{name}.json").write_text(text.replace(str(engine.directory), "/var/lib") + "\n")


def _health(document: str) -> str:
    return str(json.loads(document)[0]["State"]["Health"]["Status"])


if __name__ == "__main__":
    main()
