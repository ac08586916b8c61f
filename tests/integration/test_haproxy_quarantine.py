"""One bad service among good ones, in a real HAProxy: the others change, and it keeps its last good state."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discovery.catalog import Instance, Service
from discovery.errors import ApplyError, RenderError
from discovery.haproxy.apply import HAProxy
from discovery.haproxy.settings import ProxySettings
from tests.lab.haproxy import (
    TEMPLATES,
    VERSIONS,
    catalog,
    echo,
    fetch,
    free_port,
    front_port,
    haproxy_binary,
    running,
    settings,
)
from tests.lab.worker_state import assert_worker_is_as, worker_pid

KEPT, LEFT_OUT = "kept at its last good value", "left out"
POISON = {"maxconn": "666"}
"""An option that HAProxy shall refuse, by a template of the user's own."""
NONSENSE = "{% if backend.service and backend.service.options.get('maxconn') == '666' %}"


@pytest.fixture(params=VERSIONS)
def binary(request: pytest.FixtureRequest) -> str:
    return haproxy_binary(request.param)


@pytest.fixture(scope="module")
def backends() -> Iterator[tuple[int, int]]:
    with echo("one") as one, echo("two") as two:
        yield one, two


def lead_to(name: str, *ports: int, options: Any = None, **more: Any) -> Service:
    """A service with an instance at each port, which is its id too."""
    instances = tuple(Instance(str(port), "127.0.0.1", port) for port in ports)
    return Service(name, more.pop("scheme", "http"), instances=instances, options=options or {}, **more)


class Templates:
    """A directory of the user's own templates, each the packaged one with something at its end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def put(self, name: str, more: str) -> None:
        (self.directory / name).write_text((TEMPLATES / name).read_text().rstrip("\n") + f"\n{more}\n")

    def remove(self, name: str) -> None:
        (self.directory / name).unlink()


@contextmanager
def edge(
    tmp_path: Path, binary: str, *services: Service, templates: dict[str, str]
) -> Iterator[tuple[HAProxy, ProxySettings, Templates]]:
    own = Templates(tmp_path / "own")
    for name, more in templates.items():
        own.put(name, more)
    of = settings(tmp_path / "state", binary, templates=(own.directory, TEMPLATES))
    with running(of, *services) as proxy:
        yield proxy, of, own


def apply(proxy: HAProxy, *services: Service) -> dict[str | None, tuple[str, str]]:
    """Apply, twice, of which the second is no change; consequence and reason of each problem by service."""
    wanted = catalog(*services)
    problems = proxy.apply(wanted)
    reloads = proxy.status.reloads
    assert proxy.apply(wanted) == problems
    assert proxy.status.reloads == reloads, "what is refused is not tried again as long as it is the same"
    assert len({each.service for each in problems}) == len(problems)
    return {each.service: (each.consequence, each.reason) for each in problems}


def server(of: ProxySettings, host: str) -> str:
    return str(fetch(front_port(of), host=host).seen["server"])


def test_a_refused_option_leaves_a_service_as_it_was(
    binary: str, backends: tuple[int, int], tmp_path: Path
) -> None:
    one, two = backends
    templates = {"backend.cfg.j2": NONSENSE + "\n    nonsense\n{% endif %}"}
    with edge(tmp_path, binary, lead_to("web", one), lead_to("api", one), templates=templates) as (p, of, _):
        found = apply(p, lead_to("web", two, options=POISON), lead_to("api", two), lead_to("new", one))
        consequence, reason = found.pop("web")
        assert (consequence, found) == (KEPT, {})
        assert "unknown keyword 'nonsense'" in reason
        assert_worker_is_as(of, catalog(lead_to("web", two), lead_to("api", two), lead_to("new", one)))
        # Its instances follow, and so does everything of the others.
        apply(p, lead_to("web", one, options=POISON), lead_to("api", one))
        assert_worker_is_as(of, catalog(lead_to("web", one), lead_to("api", one)))
        # When it is something else, that is tried.
        assert apply(p, lead_to("web", one, options={"maxconn": "7"}), lead_to("api", one)) == {}
        assert "maxconn 7" in (of.config).read_text()
        assert apply(p, lead_to("web", one, options=POISON), lead_to("api", one)).keys() == {"web"}
        assert "maxconn 7" in (of.config).read_text()
        assert server(of, "web") == "one"


def test_a_new_service_that_is_refused_is_left_out(
    binary: str, backends: tuple[int, int], tmp_path: Path
) -> None:
    one, two = backends
    templates = {"backend.cfg.j2": NONSENSE + "\n    nonsense\n{% endif %}"}
    with edge(tmp_path, binary, lead_to("web", one), templates=templates) as (p, of, _):
        port = free_port()
        bad = lead_to("bad", one, options=POISON, host_port=port)
        found = apply(p, bad, lead_to("web", two), lead_to("new", two))
        assert {name: each[0] for name, each in found.items()} == {"bad": LEFT_OUT}
        assert_worker_is_as(of, catalog(lead_to("web", two), lead_to("new", two)))
        assert fetch(front_port(of), host="bad").status == 404
        good = lead_to("bad", one, host_port=port)
        assert apply(p, good, lead_to("web", two)) == {}
        assert_worker_is_as(of, catalog(good, lead_to("web", two)))


def test_several_at_once(binary: str, backends: tuple[int, int], tmp_path: Path) -> None:
    """Some are named by HAProxy, one is in a section that it knows by no service's name."""
    one, two = backends
    line = (
        NONSENSE + "\n{% if backend.service.name == 'hidden' %}listen mine from http\n{% endif %}"
        "    nonsense\n{% endif %}"
    )
    good = [lead_to(f"good{n}", one) for n in range(10)]
    with edge(tmp_path, binary, *good, lead_to("web", one), templates={"backend.cfg.j2": line}) as (p, of, _):
        bad = [lead_to(name, one, options=POISON) for name in ("bad1", "bad2", "hidden", "web")]
        found = apply(p, *bad, *good, lead_to("new", two))
        assert {name: each[0] for name, each in found.items()} == {
            "bad1": LEFT_OUT,
            "bad2": LEFT_OUT,
            "hidden": LEFT_OUT,
            "web": KEPT,
        }
        assert_worker_is_as(of, catalog(*good, lead_to("web", one), lead_to("new", two)))


def test_a_refused_listener_leaves_a_service_as_it_was(
    binary: str, backends: tuple[int, int], tmp_path: Path
) -> None:
    one, two = backends
    bad, good = free_port(), free_port()
    templates = {"listener.cfg.j2": "{% if listener.port == " + str(bad) + " %}\n    nonsense\n{% endif %}"}
    with edge(
        tmp_path, binary, lead_to("web", one), lead_to("api", one, host_port=good), templates=templates
    ) as (p, of, _):
        web = lead_to("web", two, host_port=bad)
        found = apply(p, web, lead_to("api", two, host_port=good))
        assert {name: each[0] for name, each in found.items()} == {"web": KEPT}
        assert_worker_is_as(of, catalog(lead_to("web", two), lead_to("api", two, host_port=good)))
        # One that moves to it keeps the port it had.
        found = apply(p, lead_to("web", one), lead_to("api", one, host_port=bad))
        assert {name: each[0] for name, each in found.items()} == {"api": KEPT}
        assert_worker_is_as(of, catalog(lead_to("web", one), lead_to("api", one, host_port=good)))
        # Unless another has it by then.
        found = apply(p, lead_to("web", one, host_port=good), lead_to("api", one, host_port=bad))
        assert found.keys() == {"api"}
        assert_worker_is_as(of, catalog(lead_to("web", one, host_port=good), lead_to("api", one)))


def test_a_refused_scheme_leaves_a_service_as_it_was(
    binary: str, backends: tuple[int, int], tmp_path: Path
) -> None:
    one, two = backends
    port = free_port()
    templates = {"listener.cfg.j2": "{% if listener.mode == 'tcp' %}\n    nonsense\n{% endif %}"}
    with edge(tmp_path, binary, lead_to("web", one), templates=templates) as (p, of, _):
        found = apply(p, lead_to("web", two, scheme="tcp", host_port=port), lead_to("new", one))
        assert {name: each[0] for name, each in found.items()} == {"web": KEPT}
        assert_worker_is_as(of, catalog(lead_to("web", two), lead_to("new", one)))
        assert server(of, "web") == "two"


def test_a_template_that_fails_for_one_service(
    binary: str, backends: tuple[int, int], tmp_path: Path
) -> None:
    """At the start, and when it is saved while HAProxy runs."""
    one, two = backends
    line = NONSENSE + "\n{{ no_such_thing }}\n{% endif %}"
    with edge(
        tmp_path,
        binary,
        lead_to("bad", one, options=POISON),
        lead_to("web", one),
        templates={"backend.cfg.j2": line},
    ) as (p, of, own):
        assert_worker_is_as(of, catalog(lead_to("web", one)))
        found = apply(p, lead_to("bad", one, options=POISON), lead_to("web", two), lead_to("new", one))
        assert found.keys() == {"bad"}
        assert "'no_such_thing' is undefined" in found["bad"][1]
        assert_worker_is_as(of, catalog(lead_to("web", two), lead_to("new", one)))
        own.remove("backend.cfg.j2")
        p._controller.templates_changed()
        bad = lead_to("bad", one, options=POISON)
        assert apply(p, bad, lead_to("web", two)) == {}
        assert_worker_is_as(of, catalog(bad, lead_to("web", two)))
        own.put("backend.cfg.j2", line + "\n    # saved")
        p._controller.templates_changed()
        found = apply(p, lead_to("bad", one, options=POISON), lead_to("web", one), lead_to("new", two))
        assert found.keys() == {"bad"}
        assert server(of, "web") == "one"
        assert server(of, "new") == "two"
        assert "# saved" in of.config.read_text()


def test_a_fault_that_is_nobodys_blames_nobody(
    binary: str, backends: tuple[int, int], tmp_path: Path
) -> None:
    one, two = backends
    with edge(tmp_path, binary, lead_to("web", one), templates={}) as (p, of, own):
        own.put("edge.cfg.j2", "    nonsense")
        p._controller.templates_changed()
        fancy = lead_to("fancy", one, options={"balance": "leastconn"})
        wanted = catalog(lead_to("web", two), lead_to("new", one), fancy)
        for _ in range(2):
            with pytest.raises(ApplyError, match=r"refuses the configuration: .*nonsense"):
                p.apply(wanted)
            assert_worker_is_as(of, catalog(lead_to("web", two), lead_to("new", one)))
        own.put("edge.cfg.j2", "{{ nonsense }}")
        p._controller.templates_changed()
        with pytest.raises(RenderError, match="'nonsense' is undefined"):
            p.apply(wanted)
        own.remove("edge.cfg.j2")
        p._controller.templates_changed()
        assert p.apply(wanted) == ()
        assert_worker_is_as(of, wanted)
        assert p.status.reloads["start"] == 1
        assert sum(p.status.reloads.values()) == 2


def test_a_refused_service_costs_the_others_no_reload(
    binary: str, backends: tuple[int, int], tmp_path: Path
) -> None:
    """With a listener that is refused for good, everybody else goes on changing at runtime."""
    one, two = backends
    bad = free_port()
    templates = {"listener.cfg.j2": "{% if listener.port == " + str(bad) + " %}\n    nonsense\n{% endif %}"}
    with edge(tmp_path, binary, lead_to("web", one), templates=templates) as (p, of, _):
        stuck = lead_to("stuck", one, host_port=bad)
        apply(p, lead_to("web", one), replace(stuck, host_port=None))
        apply(p, lead_to("web", one), stuck)
        reloads, worker = p.status.reloads, worker_pid(of)
        for ports in ((two,), (one, two), (one,)):
            apply(p, lead_to("web", *ports), lead_to("new", *ports), stuck)
            rest = catalog(lead_to("web", *ports), lead_to("new", *ports), replace(stuck, host_port=None))
            assert_worker_is_as(of, rest)
        assert p.status.reloads == reloads
        assert worker_pid(of) == worker
