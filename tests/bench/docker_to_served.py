"""From `docker run` to the first 200 through HAProxy, over 100 starts.

    python -m tests.bench.docker_to_served [STARTS]

Two waits: from before the command, and from its return, when the container runs. The second is discovery's
and HAProxy's own share: Docker's is not ours to shorten.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import machine, milliseconds, print_table
from tests.e2e.containers import Containers
from tests.lab.agent import Agent
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd


def measure(agent: Agent, containers: Containers, number: int) -> tuple[float, float]:
    name = f"c{number}"
    began = time.monotonic()
    containers.http(name, name)
    running = time.monotonic()
    while agent.get("/", f"{name}.x")[0] != 200:
        if time.monotonic() - began > 60:
            raise AssertionError("not served within a minute")
        time.sleep(0.002)
    served = time.monotonic()
    containers.docker("rm", "-f", name)
    return served - began, served - running


def main() -> None:
    starts = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        with (
            DockerEngine() as engine,
            Etcd(place / "etcd") as etcd,
            Containers(engine) as containers,
            Agent(
                place / "agent",
                etcd.url(3),
                f"--docker={engine.url}",
                f"--address={engine.gateway}",
                roles="registrator,proxy,status",
            ) as agent,
        ):
            waits = [measure(agent, containers, number) for number in range(starts)]
            reloads = agent.metric_sum("discovery_haproxy_reloads_total")
    print(machine())
    rows = [
        ["docker run, begun → 200", [each[0] for each in waits]],
        ["docker run, returned → 200", [each[1] for each in waits]],
    ]
    print_table(
        f"{starts} starts, HAProxy started or reloaded {reloads:.0f} times",
        ["", "n", "p50 ms", "p99 ms"],
        [[what, str(len(v)), milliseconds(v, 50), milliseconds(v, 99)] for what, v in rows],
    )


if __name__ == "__main__":
    main()
