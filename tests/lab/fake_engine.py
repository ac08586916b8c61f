"""A Docker engine's API over a unix socket, without containers: for what a real engine cannot be made to do.

A thousand containers that cost nothing, requests that are counted. tests/contract/test_engine_contract.py
holds it to what a real dockerd does. It knows list, inspect, events, networks, and what makes those change:
create, start, pause, unpause, rename, kill, stop, remove. Stop signals are obeyed at once.
"""

import copy
import itertools
import json
import re
import socketserver
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import docker

from tests.lab.dockerd import DockerEngine

API_VERSION = "1.41"
_TEMPLATE = Path(__file__).parent.parent / "unit" / "inspect" / "published_fixed.json"
_NEVER = "0001-01-01T00:00:00Z"

Document = dict[str, Any]


class NoSuchContainer(Exception):
    """404."""


class FakeEngine:
    """The engine; a context manager that listens at ``url``. ``requests`` counts what was asked of it.

    Its keys are ``list``, ``inspect``, ``events``, ``networks``, ``version`` and the actions.
    """

    run = DockerEngine.run
    """Create and start a container, by the very code that does so on a real engine."""
    _start_container = DockerEngine._start_container

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self._directory = tempfile.TemporaryDirectory(prefix="fake-engine-")
        self.url = f"unix://{self._directory.name}/docker.sock"
        self._template = json.loads(_TEMPLATE.read_text())
        self._containers: dict[str, Document] = {}
        self._numbers = itertools.count(1)
        self._events: list[Document] = []
        self._changed = threading.Condition()
        self._closed = False
        self._server: _Server | None = None
        self._client: Any = None

    @property
    def client(self) -> Any:
        """A docker.APIClient on this engine."""
        if self._client is None:
            self._client = docker.APIClient(base_url=self.url, version="auto", timeout=30)
        return self._client

    def __enter__(self) -> Self:
        self._server = _Server(self.url.removeprefix("unix://"), self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._directory.cleanup()

    # -- what is asked

    def list(self, everything: bool) -> list[Document]:
        """As ``GET /containers/json``."""
        with self._changed:
            return [
                _list_item(document)
                for document in reversed(self._containers.values())
                if everything or document["State"]["Status"] in ("running", "paused")
            ]

    def inspect(self, name: str) -> Document:
        """As ``GET /containers/NAME/json``."""
        with self._changed:
            return copy.deepcopy(self._find(name))

    def events(self, since: float, filters: Document) -> Iterator[Document | None]:
        """The events of these types and actions from ``since`` (seconds since 1970) on; None now and then."""
        position = 0
        while not self._closed:
            with self._changed:
                if position == len(self._events):
                    self._changed.wait(0.5)
                fresh = self._events[position:]
                position += len(fresh)
            yield None
            for event in fresh:
                recent = event["timeNano"] >= since * 1e9
                if recent and all(event[key] in filters.get(name, [event[key]]) for name, key in _FILTERS):
                    yield event

    def age(self) -> None:
        """From now on what has happened so far is too long ago to be told."""
        with self._changed:
            for event in self._events:
                event["timeNano"] = 0

    # -- what changes it

    def create(self, name: str, wish: Document) -> Document:
        """As ``POST /containers/create``."""
        document: Document = copy.deepcopy(self._template)
        number = next(self._numbers)
        document["Id"] = f"{number:064x}"
        document["Name"] = f"/{name}"
        document["Created"] = _now()
        asked = wish.get("HostConfig") or {}
        document["Config"] |= {
            "Image": wish["Image"],
            "Env": wish.get("Env"),
            "Labels": wish.get("Labels") or {},
            "ExposedPorts": wish.get("ExposedPorts") or {},
        }
        document["HostConfig"]["PortBindings"] = asked.get("PortBindings") or {}
        document["State"] |= {"Status": "created", "Running": False, "Pid": 0, "StartedAt": _NEVER}
        _network(document, None)
        with self._changed:
            self._containers[document["Id"]] = document
            self._emit("create", document)
        return {"Id": document["Id"], "Warnings": []}

    def act(self, name: str, action: str, query: dict[str, str]) -> None:
        """As ``POST /containers/NAME/ACTION``."""
        with self._changed:
            document = self._find(name)
            state = document["State"]
            if action == "start":
                state |= {"Status": "running", "Running": True, "Pid": 1, "StartedAt": _now()}
                _network(document, int(document["Id"], 16))
                self._emit("connect", document, kind="network")
                self._emit("start", document)
            elif action in ("pause", "unpause"):
                paused = action == "pause"
                state |= {"Status": "paused" if paused else "running", "Paused": paused}
                self._emit(action, document)
            elif action == "rename":
                document["Name"] = f"/{query['name']}"
                self._emit("rename", document)
            elif action == "kill":
                self._kill(document, query.get("signal", "SIGKILL"))
            elif action == "stop":
                self._kill(document, "SIGTERM")
                self._emit("stop", document)

    def remove(self, name: str) -> None:
        """As ``DELETE /containers/NAME?force=1``."""
        with self._changed:
            document = self._find(name)
            if document["State"]["Running"]:
                self._kill(document, "SIGKILL")
            del self._containers[document["Id"]]
            self._emit("destroy", document)

    def _kill(self, document: Document, signal: str) -> None:
        number = {"SIGKILL": "9", "SIGTERM": "15", "SIGHUP": "1"}.get(signal, signal)
        self._emit("kill", document, signal=number)
        if number in ("9", "15"):
            document["State"] |= {"Status": "exited", "Running": False, "Paused": False, "Pid": 0}
            document["State"]["FinishedAt"] = _now()
            _network(document, None)
            self._emit("disconnect", document, kind="network")
            self._emit("die", document, exitCode="137")

    def _find(self, name: str) -> Document:
        found = self._containers.get(name)
        for document in () if found else self._containers.values():
            if document["Name"] == f"/{name}" or document["Id"].startswith(name):
                return document
        if found is None:
            raise NoSuchContainer(name)
        return found

    def _emit(self, action: str, document: Document, kind: str = "container", **attributes: str) -> None:
        now = time.time_ns()
        name = document["Name"].removeprefix("/")
        if kind == "network":
            actor = {
                "ID": "bridge",
                "Attributes": {"container": document["Id"], "name": "bridge", "type": "bridge"},
            }
        else:
            told = {"image": document["Config"]["Image"], "name": name, **attributes}
            actor = {"ID": document["Id"], "Attributes": told}
        self._events.append(
            {"Type": kind, "Action": action, "Actor": actor, "time": now // 10**9, "timeNano": now}
        )
        self._changed.notify_all()


_FILTERS = (("type", "Type"), ("event", "Action"))


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _network(document: Document, number: int | None) -> None:
    """Give it the address of this number, or for None take it away; published ports come and go with it."""
    settings = document["NetworkSettings"]
    address = "" if number is None else f"172.29.{number // 250}.{number % 250 + 2}"
    settings["IPAddress"] = settings["Networks"]["bridge"]["IPAddress"] = address
    ports: Document = {} if number is None else dict.fromkeys(document["Config"]["ExposedPorts"])
    for port, bindings in document["HostConfig"]["PortBindings"].items() if number is not None else ():
        host_port = bindings[0].get("HostPort") or str(30000 + number % 30000)
        ports[port] = [{"HostIp": host, "HostPort": host_port} for host in ("0.0.0.0", "::")]
    settings["Ports"] = ports


def _list_item(document: Document) -> Document:
    ports = []
    for port, bindings in document["NetworkSettings"]["Ports"].items():
        number, _, protocol = port.partition("/")
        for binding in bindings or [{}]:
            item = {"PrivatePort": int(number), "Type": protocol}
            if binding:
                item |= {"IP": binding["HostIp"], "PublicPort": int(binding["HostPort"])}
            ports.append(item)
    status = document["State"]["Status"]
    return {
        "Id": document["Id"],
        "Names": [document["Name"]],
        "Image": document["Config"]["Image"],
        "ImageID": document["Image"],
        "Command": "httpd",
        "Created": 1700000000,
        "Ports": ports,
        "Labels": document["Config"]["Labels"],
        "State": status,
        "Status": {"running": "Up 2 minutes", "paused": "Up 2 minutes (Paused)"}.get(status, "Exited (0)"),
        "HostConfig": {"NetworkMode": "default"},
        "NetworkSettings": {"Networks": document["NetworkSettings"]["Networks"]},
        "Mounts": [],
    }


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, engine: FakeEngine) -> None:
        super().__init__(path, _Handler)
        self.engine = engine


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        engine, path, query = self._asked()
        if path == "/version":
            engine.requests["version"] += 1
            self._answer(200, {"ApiVersion": API_VERSION, "MinAPIVersion": "1.12", "Version": "20.10.24"})
        elif path == "/containers/json":
            engine.requests["list"] += 1
            self._answer(200, engine.list(query.get("all") in ("1", "true", "True")))
        elif found := re.fullmatch(r"/containers/([^/]+)/json", path):
            engine.requests["inspect"] += 1
            self._try(lambda: self._answer(200, engine.inspect(found[1])), found[1])
        elif path == "/networks":
            engine.requests["networks"] += 1
            names = ("bridge", "host", "none")
            driver = {"none": "null"}
            self._answer(200, [{"Name": name, "Driver": driver.get(name, name)} for name in names])
        elif path == "/events":
            engine.requests["events"] += 1
            self._stream(engine, float(query.get("since", time.time())), json.loads(query["filters"]))
        else:
            self._answer(404, {"message": "page not found"})

    def do_POST(self) -> None:
        engine, path, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, _, name, action = (*path.split("/"), "")[:4]
        engine.requests[action or name] += 1
        if name == "create":
            self._answer(201, engine.create(query["name"], json.loads(body)))
        else:
            self._try(lambda: (engine.act(name, action, query), self._answer(204, None)), name)

    def do_DELETE(self) -> None:
        engine, path, _ = self._asked()
        name = path.split("/")[2]
        self._try(lambda: (engine.remove(name), self._answer(204, None)), name)

    def _asked(self) -> tuple[FakeEngine, str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        return self.server.engine, re.sub(r"^/v[\d.]+(?=/)", "", parts.path), query

    def _try(self, act: Any, name: str) -> None:
        try:
            act()
        except NoSuchContainer:
            self._answer(404, {"message": f"No such container: {name}"})

    def _answer(self, status: int, document: object) -> None:
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, engine: FakeEngine, since: float, filters: Document) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in engine.events(since, filters):
                if event is not None:
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
