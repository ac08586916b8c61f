"""A short one of the random runs of tests/chaos for each store; many long ones: `tox -e chaos`."""

from pathlib import Path

import pytest

from tests.chaos.registrator import STORES, Plan, opened, run
from tests.lab.dockerd import DockerEngine


@pytest.mark.parametrize("kind", STORES)
def test_at_rest_the_store_is_what_docker_says(tmp_path: Path, kind: str) -> None:
    """Registrators killed, and the engine once: with live restore its containers outlive that."""
    live_restore = kind in ("memory", "etcd3")
    plan = Plan(kind, seed=1, containers=8, seconds=5)
    with opened(kind, tmp_path) as store, DockerEngine(live_restore=live_restore) as engine:
        run(plan, engine, store, tmp_path)
