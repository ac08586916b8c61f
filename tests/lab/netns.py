"""Nodes of a network, each in a network namespace of its own, joined by one switch."""

import contextlib
import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from tests.lab.need import need

HUB = "10.99.0.254"


class Network:
    """A switch with an address of its own, ``HUB``, and nodes ``10.99.0.1``, ``10.99.0.2``, … on it.

    All of it lives in namespaces made here, and goes with them: nothing of the machine's own is touched.
    A context manager; skips where namespaces cannot be made.
    """

    def __init__(self, nodes: int) -> None:
        self._ip = need("ip")
        mark = secrets.token_hex(3)
        self.hub = f"hub-{mark}"
        self.nodes = [f"node{number}-{mark}" for number in range(1, nodes + 1)]
        self.addresses = [f"10.99.0.{number}" for number in range(1, nodes + 1)]

    def cut(self, node: int) -> None:
        """Take the node's cable out."""
        self._run("-n", self.hub, "link", "set", f"port{node}", "down")

    def mend(self, node: int) -> None:
        """Put the node's cable back in."""
        self._run("-n", self.hub, "link", "set", f"port{node}", "up")

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self.nodes, self.hub):
            subprocess.run([self._ip, "netns", "del", name], capture_output=True, check=False)

    def _make(self) -> None:
        for name in (self.hub, *self.nodes):
            self._run("netns", "add", name)
            self._run("-n", name, "link", "set", "lo", "up")
        self._run("-n", self.hub, "link", "add", "switch", "type", "bridge")
        self._run("-n", self.hub, "address", "add", f"{HUB}/24", "dev", "switch")
        self._run("-n", self.hub, "link", "set", "switch", "up")
        for number, (name, address) in enumerate(zip(self.nodes, self.addresses, strict=True)):
            port = f"port{number}"
            self._run("-n", name, "link", "add", "eth0", "type", "veth", "peer", port, "netns", self.hub)
            self._run("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            self._run("-n", name, "link", "set", "eth0", "up")
            self._run("-n", name, "route", "add", "default", "via", HUB)
            self._run("-n", self.hub, "link", "set", port, "master", "switch", "up")

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._ip, *arguments], check=True, capture_output=True)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread, and every process it starts meanwhile, in this network namespace.

    Not `ip netns exec`, which hides the cgroup mounts from dockerd. Sockets stay where they were made.
    """
    with contextlib.ExitStack() as stack:
        home, there = (
            os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", f"/run/netns/{namespace}")
        )
        stack.callback(os.close, home)
        stack.callback(os.close, there)
        _enter(there)
        try:
            yield
        finally:
            _enter(home)


def _enter(descriptor: int) -> None:
    # os.setns() is there from Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")
