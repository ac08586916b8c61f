"""A real Docker engine for tests: its own root, socket, bridge and image; stopped, killed, started again."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import docker

from tests.lab.need import need
from tests.lab.wait import until

START_SECONDS = 60.0
STOP_SECONDS = 60.0
PORT_TRIES = 10

IMAGE = "busybox:local"
APPLETS = (
    "sh",
    "touch",
    "rm",
    "httpd",
    "nc",
    "sleep",
    "wget",
    "nslookup",
    "cat",
    "echo",
    "kill",
    "true",
    "test",
    "ip",
)


class DockerEngine:
    """A dockerd that is ours alone; a context manager that starts it and ends it with all its containers.

    ``bip`` is the bridge's address, by default one that no other engine of these tests has. Without
    ``bridge`` the bridge is made here, under a name of its own, and removed again, so that several
    engines may run; with it, that bridge must exist. ``iptables`` is off, so that engines in one network
    namespace leave each other's rules alone: published ports work all the same, through docker-proxy.
    ``netns`` runs it inside a named network namespace. ``extra`` are further flags. Directories stay the
    same over restarts.
    """

    def __init__(
        self,
        *,
        bip: str | None = None,
        bridge: str | None = None,
        netns: str | None = None,
        iptables: bool = False,
        live_restore: bool = False,
        insecure_registry: str | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dockerd-"))
        self.url = f"unix://{self.directory}/run/docker.sock"
        self._subnet_lock: int | None = None
        self.bip = bip or self._claim_bip()
        self._binary = need("dockerd")
        self._netns = netns
        self._own_bridge = bridge is None
        self.bridge = bridge or f"dt{self.directory.name[-8:]}"
        self._flags = [
            f"--data-root={self.directory}/root",
            f"--exec-root={self.directory}/exec",
            f"--pidfile={self.directory}/pid",
            f"--host={self.url}",
            f"--bridge={self.bridge}",
            f"--iptables={str(iptables).lower()}",
            f"--ip-masq={str(iptables).lower()}",
            f"--live-restore={str(live_restore).lower()}",
        ]
        self._flags += extra
        if insecure_registry:
            self._flags.append(f"--insecure-registry={insecure_registry}")
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    @property
    def gateway(self) -> str:
        """The bridge's address, which containers reach the node by."""
        return self.bip.partition("/")[0]

    def _claim_bip(self) -> str:
        """The bridge address of a subnet that no other test run on this machine uses meanwhile."""
        for third in range(48, 112):
            path = Path(tempfile.gettempdir(), f"discovery-lab-172.29.{third}.lock")
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._subnet_lock = lock
            return f"172.29.{third}.1/24"
        raise AssertionError("every subnet for test engines is in use")

    # -- life

    def start(self, seconds: float = START_SECONDS) -> Self:
        """Start dockerd and wait, for so long at most, until it answers; the image is there."""
        (self.directory / "run").mkdir(exist_ok=True)
        self._forget_dead()
        self._make_bridge()
        with (self.directory / "log").open("ab") as log:
            command = [*self._prefix(), self._binary, *self._flags]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until(self._answers, "dockerd answers", seconds, detail=self._log_tail)
        if not self.client.images(name=IMAGE):
            self._import_image()
        return self

    def stop(self) -> None:
        """SIGTERM, and wait: containers are stopped, unless with live restore."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._process = None

    def kill(self) -> None:
        """kill -9: containers go on running without it."""
        assert self._process
        self._process.kill()
        self._process.wait(STOP_SECONDS)
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted, nothing is answered."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(docker.errors.DockerException, OSError):
                self.remove_all()
        self.stop()
        self._end_leftovers()
        if self._own_bridge:
            subprocess.run(
                [*self._prefix(), "ip", "link", "del", self.bridge], capture_output=True, check=False
            )
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._subnet_lock is not None:
            os.close(self._subnet_lock)
            self._subnet_lock = None

    # -- containers

    @property
    def client(self) -> Any:
        """A docker.APIClient on this engine."""
        if self._client is None:
            self._client = docker.APIClient(base_url=self.url, version="auto", timeout=30)
        return self._client

    def run(
        self,
        name: str,
        *,
        ports: Mapping[int | str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        command: list[str] | None = None,
        network: str | None = None,
        image: str = IMAGE,
        start: bool = True,
        host: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> str:
        """Create and start a container of a web server on port 80, or of ``command``; its id.

        ``ports`` are published as the docker library has it: ``{80: None}``, ``{"53/udp": 5353}``,
        ``{80: ("127.0.0.1", 8080)}``. ``host`` are further arguments of its create_host_config, ``config`` of
        its create_container. The server, as PID 1, ignores SIGTERM: stopping it takes the whole time-out.
        """
        ports = ports or {}
        bindings = {} if network == "host" else {"port_bindings": dict(ports)}  # the library refuses both
        exposed = [_port_and_protocol(port) for port in ports] + list(config.pop("ports", []))
        created = self.client.create_container(
            image,
            command or ["httpd", "-f", "-p", "80"],
            name=name,
            ports=exposed,
            environment=dict(env or {}),
            labels=dict(labels or {}),
            host_config=self.client.create_host_config(
                network_mode=network or "default", **bindings, **(host or {})
            ),
            **config,
        )
        if start:
            self._start_container(created["Id"])
        return str(created["Id"])

    def _start_container(self, container_id: str) -> None:
        """Start it, again when another engine of this machine took the port that this one chose."""
        for last in (*([False] * (PORT_TRIES - 1)), True):
            try:
                self.client.start(container_id)
            except docker.errors.APIError as error:
                if last or "address already in use" not in str(error):
                    raise
            else:
                return

    def remove_all(self) -> None:
        """Remove every container, and every network that is not the engine's own."""
        for container in self.client.containers(all=True):
            with contextlib.suppress(docker.errors.NotFound):
                self.client.remove_container(container["Id"], force=True)
        for network in self.client.networks():
            if network["Name"] not in ("bridge", "host", "none"):
                self.client.remove_network(network["Id"])

    # -- details

    def _prefix(self) -> list[str]:
        # Not `ip netns exec`, which hides the cgroup mounts.
        return ["nsenter", f"--net=/run/netns/{self._netns}"] if self._netns else []

    def _make_bridge(self) -> None:
        if not self._own_bridge:
            return
        if subprocess.run(
            [*self._prefix(), need("ip"), "link", "show", self.bridge], capture_output=True, check=False
        ).returncode:
            # With a MAC address of its own, as docker0 has: a bridge without takes the lowest of its ports',
            # and when that container ends the others send to an address that is gone until they ask again.
            mac = "02:42:" + ":".join(f"{int(part):02x}" for part in self.gateway.split("."))
            for step in (
                f"link add {self.bridge} address {mac} type bridge",
                f"address add {self.bip} dev {self.bridge}",
                f"link set {self.bridge} up",
            ):
                subprocess.run([*self._prefix(), "ip", *step.split()], check=True)

    def _forget_dead(self) -> None:
        """Remove pid files of a killed dockerd and its containerd, which goes with it.

        Its number may belong to another process by now, or to a zombie where nobody reaps orphans; dockerd
        would take either for alive.
        """
        (self.directory / "pid").unlink(missing_ok=True)
        containerd = self.directory / "exec" / "containerd" / "containerd.pid"
        if containerd.exists():
            pid = containerd.read_text().strip()
            until(lambda: not _is_running(pid), "containerd ends with its dockerd", STOP_SECONDS)
            containerd.unlink()

    def _answers(self) -> bool:
        assert self._process
        if self._process.poll() is not None:
            raise AssertionError(f"dockerd ended with status {self._process.returncode}\n{self._log_tail()}")
        self._client = None
        try:
            return bool(self.client.ping())
        except (docker.errors.DockerException, OSError):
            return False

    def _import_image(self) -> None:
        root = self.directory / "image"
        (root / "bin").mkdir(parents=True)
        shutil.copy(need("busybox"), root / "bin" / "busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        for directory in ("etc", "tmp", "www"):
            (root / directory).mkdir()
        archive = shutil.make_archive(str(self.directory / "image"), "tar", root)
        repository, _, tag = IMAGE.partition(":")
        self.client.import_image(archive, repository=repository, tag=tag)

    def _log_tail(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def _end_leftovers(self) -> None:
        """containerd and shims that a killed dockerd left behind: they name our directory."""
        needle = str(self.directory)
        for _ in range(3):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    with contextlib.suppress(OSError):
                        if needle in (entry / "cmdline").read_bytes().decode(errors="replace"):
                            _kill_tree(int(entry.name))
        for mount in reversed(re.findall(rf"{re.escape(needle)}\S*", Path("/proc/mounts").read_text())):
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


def _port_and_protocol(port: int | str) -> int | tuple[int, str]:
    if isinstance(port, int):
        return port
    number, _, protocol = port.partition("/")
    return (int(number), protocol or "tcp")


def _is_running(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _kill_tree(pid: int) -> None:
    """End a shim, containerd or docker-proxy together with the container processes below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        with contextlib.suppress(OSError):
            _kill_tree(int(child))
    os.kill(pid, signal.SIGKILL)
