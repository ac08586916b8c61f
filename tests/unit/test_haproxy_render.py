"""Model → text: whole configurations against golden files, and no text from the store in a line of its own.

To write the golden files anew: ``GOLDEN=write pytest tests/unit/test_haproxy_render.py``, then read the diff.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from discovery.catalog import Attributes, Catalog, Instance, Service
from discovery.errors import RenderError
from discovery.haproxy.certificates import Certificate
from discovery.haproxy.layout import held_ranges, place
from discovery.haproxy.model import build
from discovery.haproxy.plan import Means, plan
from discovery.haproxy.render import CONFIG, Machine, Renderer, binds_of
from discovery.haproxy.settings import HeldPorts, ProxySettings
from discovery.templating import Templates

TEMPLATES = Path(__file__).parents[2] / "templates" / "haproxy"
GOLDEN = Path(__file__).parent / "golden" / "haproxy"
MACHINE = Machine(103, 106, 20000)


def settings(*own: Path, **more: Any) -> ProxySettings:
    return ProxySettings(Path("/var/lib/discovery"), (*own, TEMPLATES), **more)


def renderer(of: ProxySettings, machine: Machine = MACHINE) -> Renderer:
    return Renderer(of, machine, Templates(*of.templates))


def catalog(*services: Service) -> Catalog:
    return Catalog(1, {each.name: each for each in services})


CERTIFICATE = Certificate("local", "a certificate\n", 0, 1, "AB")


def written(render: Renderer, wanted: Catalog, of: ProxySettings) -> Mapping[str, str]:
    """The files of a worker that is made for this catalog, with one spare section."""
    model = replace(build(wanted, of), certificates={"local": CERTIFICATE} if of.https else {})
    held = held_ranges(of.held_ports, "*", refused={9105})
    return render.render(place(model, render.checks(model), spares={"http": 1}, held=held))


def two(port: int) -> tuple[Instance, ...]:
    return (Instance("node1:web:80", "10.0.0.1", port), Instance("node2:web:80", "10.0.0.2", port))


CASES: dict[str, tuple[ProxySettings, Machine, Catalog]] = {
    "nothing": (settings(), MACHINE, catalog()),
    "everything": (
        settings(
            http=("*:80", "[::1]:8080"),
            https=("*:443",),
            certs=Path("/etc/discovery/certs"),
            held_ports=(HeldPorts("http", 9100, 9109), HeldPorts("tcp", 9200, 9209)),
        ),
        Machine(None, None, 1024),
        catalog(
            Service("web", instances=two(80), host_port=9000),
            Service("api", instances=two(8080), options={"path": "keep", "redirect": "https"}),
            Service("held", host_port=9109, options={"hosts": "api.example.com,*.example.org"}),
            Service("db", "tcp", 5432, (Instance("0", "fd00::1", 5432),)),
            Service("unreachable", "tcp", None, two(1)),
            Service("empty"),
            Service("shop", options={"redirect": "https", "hosts": "www.example.com,*.example.org"}),
            Service(
                "weighted",
                instances=(
                    Instance("heavy", "10.0.0.1", 80, Attributes(weight=256)),
                    Instance("leaving", "10.0.0.2", 80, Attributes(draining=True)),
                ),
            ),
        ),
    ),
}


def rendered(case: str) -> dict[str, str]:
    of, machine, wanted = CASES[case]
    return dict(written(renderer(of, machine), wanted, of))


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    files = rendered(case)
    directory = GOLDEN / case
    if os.environ.get("GOLDEN") == "write":
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text)
    assert files == {path.name: path.read_text() for path in directory.iterdir()}


def test_only_what_changed_is_rendered(tmp_path: Path) -> None:
    """A template that can no longer be rendered shows which sections are."""
    of = settings(tmp_path)
    template = tmp_path / "backend.cfg.j2"
    template.write_text("backend {{ backend.name }}\n")
    render = renderer(of)
    web, api = Service("web", host_port=9000), Service("api")
    first = build(catalog(web, api), of)
    layout = place(first)
    before = render.render(layout)
    template.write_text("{{ nonsense }}")
    planned = plan(layout, build(catalog(web, api), of, first), Means())
    assert render.render(planned.layout) == before
    changed = Service("api", instances=two(80))
    with pytest.raises(RenderError, match=rf"{template}:1: 'nonsense' is undefined") as caught:
        render.render(plan(layout, build(catalog(web, changed), of, first), Means()).layout)
    assert caught.value.service == "api"
    template.write_text("backend other:{{ backend.name }}\n")
    render.clear()
    assert "backend other:service:web\n" in render.render(layout)[CONFIG]


def test_a_users_template_hides_its_namesake_only(tmp_path: Path) -> None:
    (tmp_path / "global.cfg.j2").write_text("global\n    # mine\n")
    of = settings(tmp_path)
    text = written(renderer(of), catalog(Service("web")), of)[CONFIG]
    assert "    # mine\n" in text
    assert "backend service:web" in text


@pytest.mark.parametrize(("descriptors", "checked"), [(4, True), (3, False)])
def test_servers_are_not_checked_when_the_checks_would_take_too_many_files(
    descriptors: int, checked: bool
) -> None:
    of = settings()
    render = renderer(of, Machine(None, None, descriptors))
    web = catalog(Service("web", instances=two(80)))
    assert (render.checks(build(web, of)) is not None) is checked
    assert ("default-server check " in written(render, web, of)[CONFIG]) is checked


def test_checks_that_are_on_are_not_turned_off_by_one_server_more() -> None:
    of = settings()
    render = renderer(of, Machine(None, None, 40))
    many = tuple(Instance(str(number), "10.0.0.1", number + 1) for number in range(25))
    on = [render.checks(build(catalog(Service("web", instances=many[:n])), of)) for n in (20, 21)]
    assert [each is not None for each in on] == [True, False]
    still = [
        render.checks(build(catalog(Service("web", instances=many[:n])), of), are_on=True) for n in (24, 25)
    ]
    assert [each is not None for each in still] == [True, False]


def test_binds_are_found_wherever_they_are_written() -> None:
    lines = (
        "bind *:80",
        "\tbind [::1]:81,10.0.0.1:82 ssl",
        " bind /x.sock",
        " # bind *:9",
        " bindx *:8",
        " bind *:90-91",
    )
    text = "\n".join(("frontend a", *lines))
    assert binds_of({CONFIG: text}) == {("*", 80), ("::1", 81), ("10.0.0.1", 82), ("*", 90), ("*", 91)}
    assert binds_of({}) == frozenset()


# ---- hostile catalogs -------------------------------------------------------------------------------

hostile = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["a\n    bind *:1", "x weight 0", '"$PATH"', "a#b", "a\\", "'", "\r", "\u2028", "%[src]", "-"]
    ),
)
names = st.one_of(hostile, st.from_regex(r"[a-z0-9]{1,5}", fullmatch=True))
instances = st.builds(
    Instance,
    id=names,
    host=st.one_of(hostile, st.sampled_from(["10.0.0.1", "fd00::1"])),
    port=st.integers(1, 65535),
    attributes=st.builds(
        Attributes, weight=st.none() | st.integers(0, 256), node=hostile, draining=st.booleans()
    ),
)
services = st.builds(
    Service,
    name=names,
    scheme=st.sampled_from(["http", "tcp"]),
    host_port=st.none() | st.integers(1, 65535),
    instances=st.lists(instances, max_size=3).map(tuple),
    options=st.dictionaries(st.sampled_from(["path", "other"]), hostile, max_size=2),
)

LINE = re.compile(
    r"|    (server s\d+ [\w.:\[\]-]+:\d+ id \d+( weight \d+)?"
    r"|default-server [\w -]+|maxconn \d+"
    r"|bind (\*|[\w.:\[\]]+):\d+"
    r"|http-request set-var\(txn\.service\) str\([\w.:\[\]-]+\)"
    r"|default_backend service:[\w.:\[\]-]+)"
    r"|frontend port:\d+ from (edge|tcp)|backend service:[\w.:\[\]-]+ from (http|tcp)",
    re.ASCII,
)
OF = settings()
FIXED = set(written(renderer(OF), catalog(), OF)[CONFIG].split("\n"))


@given(st.lists(services, max_size=4))
@hypothesis_settings(max_examples=150, deadline=None)
def test_no_value_of_a_catalog_makes_a_line_of_its_own(hostiles: list[Service]) -> None:
    wanted = catalog(*hostiles)
    files = written(renderer(OF), wanted, OF)
    lines = [line for line in files[CONFIG].split("\n") if line not in FIXED]
    assert all(LINE.fullmatch(line) for line in lines)
    assert sum(line.startswith("backend service:") for line in lines) <= len(wanted.services)
    assert sum(" server " in line for line in lines) <= sum(
        len(s.instances) for s in wanted.services.values()
    )
    assert len(files["hosts.map"].splitlines()) <= len(wanted.services)
    assert all(re.fullmatch(r"\S+ \S+", line) for line in files["hosts.map"].split("\n")[:-1])
