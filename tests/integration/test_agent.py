"""The agent as an object, where a part of it has a bug."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.agent import Agent
from discovery.config import load
from discovery.stores.base import Changes
from discovery.stores.memory import Memory, MemoryStore
from tests.lab import agent as lab
from tests.lab.need import need
from tests.lab.wait import until


class Broken(MemoryStore):
    """A store with a bug, once it is told to have it."""

    has_bug = False

    def watch(self, prefix: str, revision: int, patience_seconds: float | None = None) -> Iterator[Changes]:
        for changes in super().watch(prefix, revision):
            if self.has_bug:
                raise ZeroDivisionError
            yield changes


def test_a_bug_ends_the_agent_but_not_the_edge(tmp_path: Path) -> None:
    need("haproxy")
    edge = lab.Agent(tmp_path, "memory:")
    flags = {
        "roles": "proxy",
        "state_dir": tmp_path,
        "node.address": "127.0.0.1",
        "proxy.http": f"127.0.0.1:{edge.http_port}",
    }
    store, stop = Broken(Memory(), "memory:"), threading.Event()
    agent = Agent(load(flags, {}, None), store, None, stop)
    try:
        agent.start()
        until(lambda: edge.get()[0] == 404, "the edge serves")
        store.has_bug = True
        assert stop.wait(20), "the bug ends the agent"
        with pytest.raises(ZeroDivisionError):
            agent.stop()
        assert edge.get()[0] == 404
    finally:
        stop.set()
        edge.__exit__()
