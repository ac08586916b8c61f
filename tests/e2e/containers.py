"""Containers of a local busybox image that serve something to tell them by."""

import subprocess
from typing import Self

from tests.lab.dockerd import DockerEngine

TTL_SECONDS = 3

PORT_TRIES = 10

HTTP = """
mkdir -p /www/a && echo {name} > /www/index.html && echo {name} > /www/a/b
exec httpd -f -p 80 -h /www
"""
"""An HTTP server that says its container's name at / and at /a/b."""


class Containers:
    """Starts containers on an engine, and removes them in the end."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self._started: list[str] = []

    def docker(self, *arguments: str, timeout_seconds: float = 60) -> str:
        """What a docker command prints; its failure is the test's."""
        done = subprocess.run(
            ["docker", "-H", self._engine.url, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert done.returncode == 0, f"docker {arguments}: {done.stderr}"
        return done.stdout.strip()

    def http(self, name: str, service: str, *options: str) -> str:
        """Start an HTTP server with a published port, as an instance of ``service``."""
        return self.run(name, f"-eSERVICE_NAME={service}", "-p80", *options, command=HTTP.format(name=name))

    def run(self, name: str, *options: str, command: str) -> str:
        """Start a container that runs a shell command."""
        self._started.append(name)
        words = ["-d", "--name", name, *options, "busybox:local", "/bin/sh", "-c", command]
        for _ in range(PORT_TRIES):
            try:
                return self.docker("run", *words)
            except AssertionError as error:
                # The port that the engine chose was taken meanwhile, by another engine of this machine.
                if "address already in use" not in str(error):
                    raise
                self.docker("rm", "-f", name)
        return self.docker("run", *words)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self.docker("rm", "-f", *self._started)
