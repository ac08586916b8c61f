"""What is held back outlives the agent."""

from pathlib import Path

from structlog.testing import capture_logs

from discovery.catalog import Attributes, Catalog, Instance, Service
from discovery.haproxy.heldstate import HeldServices
from discovery.haproxy.massloss import MassLossGuard

WEB = Service(
    "web",
    "http",
    8080,
    tuple(
        Instance(f"n{number}:web:80", f"fd00::{number}", 80, Attributes(weight=number, node=f"n{number}"))
        for number in range(10, 22)
    ),
    {"balance": "leastconn", "request_headers": "X-Key: s3cret"},
)
DB = Service("db", "tcp", 5432, (Instance("0", "10.0.0.9", 5432),))


def holding(*services: Service, left: tuple[Service, ...] = ()) -> MassLossGuard:
    guard = MassLossGuard(30, 600)
    guard.admit(Catalog(1, {each.name: each for each in services}), 0)
    guard.admit(Catalog(2, {each.name: each for each in left}), 1)
    return guard


def test_a_service_is_read_as_it_was_held(tmp_path: Path) -> None:
    guard = holding(WEB, DB)
    HeldServices(tmp_path).save(guard.held)
    loaded = HeldServices(tmp_path).load()
    assert dict(loaded) == {"web": WEB, "db": DB}
    assert (tmp_path / "held-services.json").stat().st_mode & 0o777 == 0o600


def test_only_what_is_held_is_kept(tmp_path: Path) -> None:
    left = Service("web", "http", 8080, WEB.instances[:2], WEB.options)
    HeldServices(tmp_path).save(holding(WEB, left=(left,)).held)
    loaded = HeldServices(tmp_path).load()
    assert [each.id for each in loaded["web"].instances] == sorted(each.id for each in WEB.instances[2:])


def test_one_life_holds_what_the_other_held(tmp_path: Path) -> None:
    first = holding(WEB, DB)
    HeldServices(tmp_path).save(first.held)
    loss = first.loss
    assert loss is not None
    second = MassLossGuard(30, 600)
    second.resume(HeldServices(tmp_path).load(), loss, 2)
    believed, before = second.admit(Catalog(2), 2), first.admit(Catalog(2), 2)
    assert dict(believed.services) == dict(before.services)


def test_a_file_that_says_nothing_holds_nothing(tmp_path: Path) -> None:
    assert dict(HeldServices(tmp_path).load()) == {}
    (tmp_path / "held-services.json").write_text("{")
    with capture_logs() as logs:
        assert dict(HeldServices(tmp_path).load()) == {}
    assert logs[0]["event"] == "last_good_unreadable"
