"""What the proxy role tells of itself."""

from dataclasses import replace
from pathlib import Path

from discovery.catalog import Catalog, Instance, Service
from discovery.haproxy.layout import Layout, place
from discovery.haproxy.model import Model, build
from discovery.haproxy.plan import Means, plan
from discovery.haproxy.report import ProxyStatus, Reload, unserved
from discovery.haproxy.settings import ProxySettings
from tests.lab.haproxy import TEMPLATES


def layout_and_model(before: Catalog, after: Catalog, tmp_path: Path) -> tuple[Layout, Model]:
    settings = ProxySettings(tmp_path, templates=(TEMPLATES,))
    running = place(build(before, settings))
    wanted = build(after, settings)
    return plan(running, wanted, Means(can_add=True)).layout, wanted


def catalog(*services: Service) -> Catalog:
    return Catalog(1, {each.name: each for each in services})


WEB = Service("web", instances=(Instance("0", "10.0.0.5", 80),))
API = Service("api", instances=(Instance("0", "10.0.0.6", 80),))


def test_nothing_is_missed_when_everything_could_be_changed(tmp_path: Path) -> None:
    more = replace(WEB, instances=(*WEB.instances, Instance("1", "10.0.0.7", 80)))
    assert unserved(*layout_and_model(catalog(WEB, API), catalog(more, API), tmp_path)) == ()


def test_a_service_without_a_place_one_with_another_option_and_one_without_its_port_are_named(
    tmp_path: Path,
) -> None:
    new = Service("new")
    other = replace(API, options={"balance": "leastconn"})
    port = replace(WEB, host_port=9000)
    running = catalog(WEB, API, Service("same"))
    wanted = catalog(port, other, Service("same"), new)
    assert unserved(*layout_and_model(running, wanted, tmp_path)) == ("api", "new", "web")


def test_the_last_reload_is_the_newest() -> None:
    assert ProxyStatus(True, 1, "2.6").last_reload_seconds is None
    reloads = (Reload(10.0, ("start",), 0.5), Reload(20.0, ("listener",), 0.1))
    assert ProxyStatus(True, 1, "2.6", last_reloads=reloads).last_reload_seconds == 0.1
