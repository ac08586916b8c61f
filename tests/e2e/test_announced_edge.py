"""A server that dies on its signal at once, announced to a real edge: its end costs no request."""

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from tests.lab.agent import Agent, discovery_command, fetch, free_port
from tests.lab.wait import until

SERVER = """
import http.server, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.05)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
"""Ends on SIGTERM in the midst of whatever it does, as a program without a handler."""


def test_no_request_is_lost_when_one_of_two_is_stopped(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    with Agent(tmp_path / "agent", store, roles="proxy,status") as agent:
        sidekicks = [announced(store) for _ in range(2)]
        answers: list[tuple[int, str]] = []
        stop = threading.Event()
        clients = [threading.Thread(target=ask, args=(agent, answers, stop)) for _ in range(4)]
        try:
            until(lambda: len(instances(agent)) == 2, "both are known", detail=agent.log.read_text)
            until(lambda: post(agent)[0] == 200, "served", detail=agent.log.read_text)
            for client in clients:
                client.start()
            until(lambda: len(answers) > 50, "requests come")
            sidekicks[0].terminate()
            assert sidekicks[0].wait(30) == 128 + signal.SIGTERM
            asked = len(answers)
            until(lambda: len(answers) > asked + 50, "requests go on")
        finally:
            stop.set()
            for client in clients:
                if client.ident is not None:
                    client.join(30)
            for sidekick in sidekicks:
                if sidekick.poll() is None:
                    os.killpg(sidekick.pid, signal.SIGTERM)
                    sidekick.wait(30)
    assert [answer for answer in answers if answer != (200, "ok")] == []


def announced(store: str) -> "subprocess.Popen[bytes]":
    port = free_port()
    arguments = ["announce", f"--store={store}", "--check=tcp", "--drain=1", "web", f"127.0.0.1:{port}", "--"]
    command = [sys.executable, "-c", SERVER, str(port)]
    return subprocess.Popen([*discovery_command(), *arguments, *command], start_new_session=True)


def instances(agent: Agent) -> list[object]:
    (service,) = agent.services()["services"] or [{"instances": []}]  # type: ignore[misc]
    return list(service["instances"])


def ask(agent: Agent, answers: list[tuple[int, str]], stop: threading.Event) -> None:
    """POST, which HAProxy does not send to another server once it has been sent."""
    while not stop.is_set():
        answers.append(post(agent))


def post(agent: Agent) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{agent.http_port}/", data=b"x")
    request.add_header("Host", "web.x")
    return fetch(request)
