"""A short one of the random runs of tests/chaos over every store; many long ones: `tox -e chaos`."""

from pathlib import Path

import pytest

from tests.chaos.registrator import STORES, Plan, run
from tests.lab.dockerd import DockerEngine


@pytest.mark.parametrize("live_restore", [True, False])
def test_at_rest_the_stores_are_what_docker_says(tmp_path: Path, live_restore: bool) -> None:
    """Registrators killed, and the engine once: with live restore its containers outlive that."""
    with DockerEngine(live_restore=live_restore) as engine:
        run(Plan(STORES, seed=1, containers=8, seconds=5), engine, tmp_path)
