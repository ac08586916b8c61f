"""A storm of changes, and one of reloads, under clients that count every request that fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.storm import Plan, Storm, run_reloads, run_storm
from tests.lab.haproxy import VERSIONS, haproxy_binary

SECONDS, CHANGES_A_SECOND = 2, 100
RELOADS = 6


def plan_of(version: str) -> Plan:
    """Two times 20 clients of a few services."""
    return Plan(haproxy_binary(version), services=20, instances=4, clients=20, pause_seconds=0.01)


@pytest.fixture(scope="module", params=VERSIONS)
def storm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    """One storm of changes, looked at from several sides."""
    directory: Path = tmp_path_factory.mktemp("storm")
    yield run_storm(directory, plan_of(request.param), SECONDS, CHANGES_A_SECOND)


def test_no_request_fails_while_services_change(storm: Storm) -> None:
    assert storm.account.failures == {}, storm.account.first_failures
    assert storm.account.keep_alive > 100
    assert storm.account.closing > 100


def test_requests_go_to_all_that_take_them_and_to_no_others(storm: Storm) -> None:
    assert storm.taking > 20
    assert not storm.not_asked
    assert not storm.asked_in_vain


def test_a_storm_of_changes_is_no_storm_of_reloads(storm: Storm) -> None:
    assert storm.reloads <= 1


@pytest.mark.parametrize("version", VERSIONS)
def test_no_request_fails_while_haproxy_reloads(tmp_path: Path, version: str) -> None:
    told = run_reloads(tmp_path, plan_of(version), RELOADS)
    assert told.reloads >= RELOADS
    assert told.account.failures == {}, told.account.first_failures
    # Each is a request that would have failed, had it been sent a moment before.
    assert told.account.idle_closes == 0
    assert told.account.keep_alive > 100
    assert told.account.closing > 100
