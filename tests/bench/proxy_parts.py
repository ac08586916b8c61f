"""The proxy role to be measured: in this process behind a memory store, or as a real agent of its own."""

import re
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from discovery.builder import CatalogBuilder
from discovery.catalog import Catalog
from discovery.errors import ApplyError
from discovery.feed import Feed
from discovery.follow import Follower, FollowerStatus
from discovery.haproxy.apply import HAProxy
from discovery.haproxy.runtime import Master
from discovery.haproxy.settings import ProxySettings
from discovery.schema import SERVICES
from discovery.stores import StoreOptions, open_store
from discovery.stores.memory import Memory, MemoryStore
from discovery.watcher import Watcher
from tests.bench.fleet import Fleet, Step
from tests.lab.agent import Agent
from tests.lab.haproxy import TEMPLATES, settings
from tests.lab.wait import until

PATIENCE_SECONDS = 60.0
_TAKES_NOTHING = 0x01 | 0x08
"""srv_admin_state: forced into maintenance, or to drain."""
_PUTS_AT_ONCE = 5000


class ReloadsOnDemand:
    """A directory of templates of which one differs by a comment each time it is touched.

    It is the global section's: a change of it can only be loaded by a reload, whoever decides.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self._packaged = (TEMPLATES / "global.cfg.j2").read_text()
        self._touched = 0
        self.touch()

    def touch(self) -> None:
        """Ask for a reload."""
        self._touched += 1
        written = self.directory / ".new"
        written.write_text(f"{self._packaged}    # touched {self._touched} times\n")
        written.replace(self.directory / "global.cfg.j2")


class Pipeline:
    """Watcher, follower and HAProxy role as the agent wires them, behind a memory store.

    Every reload is made at once, unless ``more`` says otherwise.
    """

    def __init__(self, directory: Path, haproxy: str, **more: Any) -> None:
        self.memory = Memory()
        self.store = MemoryStore(self.memory)
        self.reloads = ReloadsOnDemand(directory / "templates")
        self.settings: ProxySettings = settings(
            directory / "state",
            haproxy,
            templates=(self.reloads.directory, TEMPLATES),
            **{"reload_interval_seconds": 0.0, "reload_spread_seconds": 0.0, **more},
        )
        feed: Feed[Catalog] = Feed()
        self.proxy = HAProxy(self.settings, lambda: self._follower.poke())
        self._follower = Follower(feed, self.proxy, quiet_seconds=0.0, on_attempt=self._attempted)
        self._watcher = Watcher(self.store, SERVICES, CatalogBuilder(), feed, hold_seconds=30)
        self._stop = threading.Event()
        self._applied = threading.Condition()
        self._revision = -1
        self._error: str | None = None
        self._threads = [
            threading.Thread(target=run, args=(self._stop,), daemon=True)
            for run in (self._watcher.run, self._follower.run, self.proxy.supervise)
        ]

    def __enter__(self) -> Self:
        (self.settings.state_dir).mkdir()
        self.proxy.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        self.store.close()
        self.proxy.stop()

    def fill(self, entries: Mapping[str, str]) -> None:
        """Put these keys at once, and wait until they are applied."""
        self.store.put(entries)
        self._wait()

    def change(self, step: Step) -> float:
        """The seconds from before the store is written to the confirmation that the worker runs it."""
        began = time.perf_counter()
        write(self.store, step)
        self._wait()
        return time.perf_counter() - began

    def force_reload(self) -> float:
        """The seconds of one reload: its check, the new worker, the former one's end of listening."""
        before = self.reload_count
        self.reloads.touch()
        until(lambda: self.reload_count > before, "reloads", PATIENCE_SECONDS)
        return self.proxy.status.last_reload_seconds or 0.0

    @property
    def reload_count(self) -> int:
        """Starts and reloads so far."""
        return sum(self.proxy.status.reloads.values())

    def worker(self) -> int:
        """The process that serves."""
        return Master(self.settings.master_socket).processes().workers[0]

    def _attempted(self, status: FollowerStatus, _seconds: float) -> None:
        with self._applied:
            self._error = status.error
            self._revision = status.applied_revision or 0
            self._applied.notify_all()

    def _wait(self) -> None:
        revision = self.memory.history.revision
        with self._applied:
            done = self._applied.wait_for(lambda: self._revision >= revision, PATIENCE_SECONDS)
        assert done, f"not applied: {self._follower.status}, {self.proxy.status}"


class Edge:
    """A real agent with the proxy role and a store, by default files, and what its HAProxy runs."""

    def __init__(
        self,
        directory: Path,
        fleet: Fleet,
        *arguments: str,
        roles: str = "proxy,status",
        store_url: str | None = None,
    ) -> None:
        self.reloads = ReloadsOnDemand(directory / "templates")
        self._url = store_url or f"file://{directory / 'store'}"
        self._agent = Agent(
            directory / "agent",
            self._url,
            f"--templates={self.reloads.directory}",
            *arguments,
            roles=roles,
        )
        self._master = directory / "agent" / ".agent" / "haproxy" / "master.sock"
        self._fleet = fleet

    def __enter__(self) -> Self:
        self.store = open_store(self._url, StoreOptions(timeout_seconds=60))
        entries = list(self._fleet.entries().items())
        for begin in range(0, len(entries), _PUTS_AT_ONCE):
            self.store.put(dict(entries[begin : begin + _PUTS_AT_ONCE]))
        self._agent.start(ready=False)
        self._agent.wait(lambda: self._agent.status("/readyz")[0] == 200, "is ready", PATIENCE_SECONDS)
        self.wait_until_applied()
        return self

    def __exit__(self, *error: object) -> None:
        with closing(self.store):
            self._agent.__exit__(*error)

    @property
    def port(self) -> int:
        """Where it serves http."""
        return self._agent.http_port

    @property
    def pid(self) -> int:
        """The agent's process."""
        assert self._agent.process
        return self._agent.process.pid

    @property
    def reload_count(self) -> int:
        """Starts and reloads so far."""
        return round(self._agent.metric_sum("discovery_haproxy_reloads_total"))

    def reload_seconds(self) -> list[float]:
        """How long each reload took."""
        return self._agent.reload_seconds()

    def old_workers(self) -> int:
        """How many workers only finish what they have."""
        return len(Master(self._master).processes().old_workers)

    def worker(self) -> int:
        """The process that serves."""
        return Master(self._master).processes().workers[0]

    def force_reload(self) -> None:
        """Have it reload once, and wait for it."""
        before = self.reload_count
        self.reloads.touch()
        self._agent.wait(lambda: self.reload_count > before, "reloads", PATIENCE_SECONDS)

    def wait_until_applied(self) -> None:
        """Wait until the worker's servers are those of the fleet, with their weights."""
        wanted = self._fleet.wanted()
        until(
            lambda: self._servers() == wanted,
            "HAProxy runs the fleet",
            PATIENCE_SECONDS,
            detail=lambda: _difference(self._servers() or {}, wanted),
        )

    def _servers(self) -> dict[str, int] | None:
        """None while the master begins anew, and does not answer."""
        try:
            return running_servers(self._master)
        except ApplyError:
            return None


def write(store: Any, step: Step) -> None:
    """One step, as one write."""
    if step.puts:
        store.put(step.puts)
    else:
        store.delete(step.deletes)


def running_servers(master_socket: Path) -> dict[str, int]:
    """The weights of the newest worker's servers that are to take requests, up or down, by address.

    It knows nothing of how sections and servers are named, nor of how one is kept from taking any.
    """
    master = Master(master_socket, 30.0)
    lines = master.worker(master.processes().workers[0], "show servers state").splitlines()
    header = next(line for line in lines if line.startswith("# "))
    columns = header.removeprefix("# ").split()
    at = {name: columns.index(name) for name in ("srv_addr", "srv_port", "srv_uweight", "srv_admin_state")}
    found = {}
    for line in lines:
        fields = line.split()
        if len(fields) != len(columns) or line.startswith("#"):
            continue
        weight = int(fields[at["srv_uweight"]])
        if weight and not int(fields[at["srv_admin_state"]]) & _TAKES_NOTHING:
            found[f"{fields[at['srv_addr']]}:{fields[at['srv_port']]}"] = weight
    return found


def _difference(running: Mapping[str, int], wanted: Mapping[str, int]) -> str:
    few = [
        f"{address}: weight {running.get(address)} instead of {wanted.get(address)}"
        for address in sorted(running.keys() | wanted.keys())
        if running.get(address) != wanted.get(address)
    ]
    return "\n".join(few[:20])


def rss_mb(pid: int) -> float:
    """The resident memory of a process."""
    match = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def helpers_of(pid: int) -> list[int]:
    """The agent's own child processes, those that answer DNS; HAProxy is none of them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            program = str((entry / "exe").readlink())
        except OSError:
            continue
        if parent == pid and "haproxy" not in program:
            found.append(int(entry.name))
    return found


def cpu_now(pid: int) -> float:
    """CPU seconds of all threads of a process so far, to the microsecond; 0 for one that ended."""
    spent = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
    except OSError:
        return 0.0
    return spent / 1e9
