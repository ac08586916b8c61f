"""Nothing of a container but what is meant for us is ever logged, stored or shown, at any log level."""

import json
from pathlib import Path

from tests.lab import agent
from tests.lab.agent import Agent
from tests.lab.dockerd import DockerEngine
from tests.lab.wait import until

SECRET = "hunter2"
SECRETS = {
    "PASSWORD": SECRET,
    "SERVICEPASSWORD": SECRET,
    "service_password": SECRET,
    "MY_SERVICE_NAME": SECRET,
    "DATABASE_URL": f"postgres://user:{SECRET}@db/x\nSERVICE_NAME={SECRET}",
    "EMPTY": "",
    SECRET: "by its name",
}
PUBLIC = "for-everyone"


def test_secrets_stay_where_they_are(engine: DockerEngine, tmp_path: Path) -> None:
    def run(name: str, **env: str) -> None:
        engine.run(
            name,
            ports={80: None},
            env={**SECRETS, **env},
            labels={"com.example.password": SECRET, "traefik.http.auth": SECRET, SECRET: "x"},
            command=["sh", "-c", f"true {SECRET}; exec httpd -f -p 80"],
            healthcheck={"test": ["CMD", "test", SECRET], "interval": 200_000_000},
            hostname="host",
            domainname=SECRET,
        )

    store = tmp_path / "store"
    watched = Agent(
        tmp_path / "agent",
        f"file://{store}",
        f"--docker={engine.url}",
        "--address=192.0.2.7",
        "--node=n1",
        "--log-level=debug",
        "--log-format=json",
        roles="registrator,proxy,status",
    )
    printed = []
    try:
        with watched:
            run("good", SERVICE_NAME="good", SERVICE_TAGS=PUBLIC)
            run("bad", SERVICE_NAME="bad", SERVICE_80_HOST_PORT="nonsense", SERVICE_WEIGHT="heavy")
            run("odd", SERVICE_80_CHECK_HTTP="no-slash", SERVICE_ID="../..", VIRTUAL_HOST="..")
            until(
                lambda: "good" in json.dumps(watched.services()), "registered", detail=watched.log.read_text
            )
            for path in ("/services", "/metrics", "/readyz", "/healthz"):
                printed.append(watched.status(path)[1])
            common = (f"--store=file://{store}", f"--state={tmp_path}/agent", "--log-level=debug")
            node = (f"--docker={engine.url}", "--node=n1", "--address=192.0.2.7")
            for name in ("good", "bad", "odd"):
                for flags in ((), ("--json",)):
                    done = agent.run("explain", *common, *node, name, *flags)
                    assert done.returncode == 0
                    printed.append(done.stdout + done.stderr)
            for command in (("services",), ("services", "--json"), ("render",), ("config",)):
                done = agent.run(*command, *common)
                printed.append(done.stdout + done.stderr)
            engine.client.rename("good", "better")
            engine.client.stop("bad", timeout=0)
            engine.freeze()
            engine.thaw()
            written = _everything_below(tmp_path)
            until(lambda: "n1:better:80" in _everything_below(store), "renamed")
    finally:
        for name in ("good", "better", "bad", "odd"):
            _remove(engine, name)
    printed += [written, _everything_below(tmp_path), watched.log.read_text()]
    assert PUBLIC in written
    assert "good" in printed[0]
    for text in printed:
        assert SECRET not in text, text[max(0, text.index(SECRET) - 300) :][:400]


def _remove(engine: DockerEngine, name: str) -> None:
    if engine.client.containers(all=True, filters={"name": f"^/{name}$"}):
        engine.client.remove_container(name, force=True)


def _everything_below(directory: Path) -> str:
    """The contents and names of all files, those of the store, of the state and of HAProxy."""
    found = []
    for path in directory.rglob("*"):
        if path.is_file():
            try:
                found.append(f"{path} {path.read_text(errors='replace')}")
            except FileNotFoundError:
                continue
    return "\n".join(found)
