"""Options through the whole proxy role: its own templates, its running worker."""

from pathlib import Path

import pytest

from discovery.options import parse_option
from tests.integration.test_haproxy_options import OPTIONS_OF, TCP, basic
from tests.lab.haproxy import (
    VERSIONS,
    catalog,
    echo,
    fetch,
    free_port,
    front_port,
    haproxy_binary,
    running,
    service,
    settings,
)

SPOKEN_TO = ("tls", "h2", "proxied1", "proxied2")


@pytest.mark.parametrize("version", VERSIONS)
def test_options_are_served_and_come_and_go(version: str, tmp_path: Path) -> None:
    of = settings(tmp_path, haproxy_binary(version))
    port = front_port(of)
    with echo("one") as one, echo("two") as two:
        services = [
            service(name, one, two, options={key: parse_option(key, text) for key, text in options.items()})
            for name, options in OPTIONS_OF.items()
        ]
        services += [
            service(name, one, scheme="tcp", host_port=free_port(), options=options)
            for name, options in TCP.items()
        ]
        bare = service("later", one)
        with running(of, *services, bare) as proxy:
            for name in OPTIONS_OF.keys() - set(SPOKEN_TO):
                expected = {"refused": 403, "nobody": 403, "noauth": 403, "locked": 401}.get(name, 200)
                assert fetch(port, "/", f"{name}.local").status == expected, name
            assert fetch(port, "/", "locked.local", headers={"Authorization": basic("sha512")}).status == 200
            assert fetch(port, "/", "headed.local").headers["x-b"] == "#1"
            assert fetch(port, "/later/x", "any.domain").seen["path"] == "/x"
            closed = service("later", one, options={"allow": "nobody"})
            proxy.apply(catalog(*services, closed, revision=2))
            assert fetch(port, "/", "later.local").status == 403
            assert fetch(port, "/later/x", "any.domain").status == 403
            proxy.apply(catalog(*services, bare, revision=3))
            assert fetch(port, "/", "later.local").status == 200


@pytest.mark.parametrize("version", VERSIONS)
def test_an_instance_that_comes_later_has_its_cookie(version: str, tmp_path: Path) -> None:
    of = settings(tmp_path, haproxy_binary(version))
    options = {"sticky": "cookie"}
    with echo("one") as one, echo("two") as two, running(of, service("web", one, options=options)) as proxy:
        proxy.apply(catalog(service("web", one, two, options=options), revision=2))
        given = {}
        for _ in range(6):
            answer = fetch(front_port(of), "/", "web.local")
            given[answer.seen["server"]] = answer.headers["set-cookie"].partition(";")[0]
        assert given.keys() == {"one", "two"}
        assert all(cookie.removeprefix("discovery_web=") for cookie in given.values())
        for server, cookie in given.items():
            answers = [fetch(front_port(of), "/", "web.local", headers={"Cookie": cookie}) for _ in range(4)]
            assert {answer.seen["server"] for answer in answers} == {server}
