"""The bridge of an engine that cannot be asked."""

from structlog.testing import capture_logs

from discovery.sources.bridge import DEFAULT_BRIDGE, bridge_addresses
from discovery.sources.engine_client import EngineAddress


def test_an_engine_that_cannot_be_asked_is_said_and_its_bridge_assumed() -> None:
    with capture_logs() as logs:
        addresses = bridge_addresses(EngineAddress("unix:///nowhere/docker.sock"))
    assert [(each["event"], each["interface"]) for each in logs] == [("bridge_assumed", DEFAULT_BRIDGE)]
    assert all("%" not in address for address in addresses)
