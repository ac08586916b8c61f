"""Serves the status application on one address, from a thread that the composition root gives it."""

import socket
import threading

import uvicorn

from discovery.errors import ConfigError
from discovery.status.app import application
from discovery.status.metrics import Metrics
from discovery.status.view import StatusView

_FAREWELL_SECONDS = 2


class StatusServer:
    """Holds its socket from the start, so that a bad address is known before any thread runs."""

    def __init__(self, listen: tuple[str, int], view: StatusView, metrics: Metrics) -> None:
        """Bind ``listen`` (port 0: any free one). Raises ConfigError when that cannot be."""
        host, port = listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ConfigError(
                "status.listen",
                f"cannot listen on {host} port {port}: {error.strerror or error}",
                "choose another address with --status",
            ) from error
        metrics.show(view)
        self._config = uvicorn.Config(
            application(view, metrics),
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_FAREWELL_SECONDS,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, with the port it really has."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop``; then answer what has been asked, and free the port. Not in the main thread.

        In any other thread uvicorn leaves the signals alone, which belong to the agent.
        """
        with self._socket:
            _Server(self._config, stop).run(sockets=[self._socket])


class _Server(uvicorn.Server):
    """uvicorn, ended by an event: it looks ten times a second."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    async def on_tick(self, counter: int) -> bool:
        return self._stop.is_set() or await super().on_tick(counter)
