"""A person's word that a mass loss is one: ``discovery proxy accept``, handed to the agent by two files.

held.json   what the agent holds back, while it does
accept      the request of the command; the agent takes it away, and lets go

Both are in the proxy role's own directory, which only the agent's user can enter.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from discovery import files
from discovery.errors import ApplyError
from discovery.haproxy.massloss import MassLoss
from discovery.pathwatch import PathWatch

log = structlog.get_logger(__name__)

_FORMAT = 1


class HeldFile:
    """What is held, for other processes to read. ``write`` and ``clear`` raise nothing, but log a failure."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "held.json"
        # What the file says; not known before it was written, for a former agent may have left one.
        self._written: MassLoss | None = None
        self._known = False
        self._failed = False

    def write(self, loss: MassLoss) -> None:
        """Tell what is held; at no cost while it is the same."""
        self._change(loss)

    def clear(self) -> None:
        """Tell that nothing is held; at no cost while it is so. To be called at the start as well."""
        self._change(None)

    def read(self) -> MassLoss | None:
        """What is held; None if nothing is. Raises ApplyError when that cannot be found out."""
        try:
            return _decode(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise ApplyError(f"{self._path}: cannot be read: {error}") from error

    def _change(self, loss: MassLoss | None) -> None:
        if self._known and loss == self._written:
            return
        try:
            if loss is None:
                self._path.unlink(missing_ok=True)
            else:
                files.replace(self._path, _encode(loss), mode=0o600)
        except (OSError, ApplyError) as error:
            if not self._failed:
                log.warning("held_instances_not_told", path=str(self._path), error=str(error))
            self._failed = True
        else:
            self._written, self._known, self._failed = loss, True, False


class AcceptRequest:
    """The request and its two ends: ``hand_over`` is the command's, ``take`` the agent's."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """``clock`` gives Unix time, which the two ends share."""
        self._path = directory / "accept"
        self._clock = clock
        self._failed = False

    def take(self) -> bool:
        """Whether somebody asks and still waits; the request is gone then. Raises nothing.

        One that was left behind by a command that was killed is removed, and means nothing: it was about
        another loss. To be called often, and costs a look at one name.
        """
        try:
            waits_until = float(self._path.read_text(encoding="utf-8"))
            self._path.unlink()
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            # One that cannot be removed would be taken again and again, and accept the losses to come.
            if not self._failed:
                log.warning("accept_request_not_taken", path=str(self._path), error=str(error))
            self._failed = True
            return False
        self._failed = False
        return self._clock() <= waits_until

    def hand_over(self, timeout_seconds: float) -> None:
        """Ask, and return when the agent took the request.

        Raises ApplyError when none does in time, or nobody can be asked; there is no request then.
        """
        changed = threading.Event()
        watch = PathWatch([self._path], changed.set)
        watch.start()
        try:
            files.replace(self._path, f"{self._clock() + timeout_seconds}\n", mode=0o600)
            deadline = time.monotonic() + timeout_seconds
            while self._path.exists() and (left := deadline - time.monotonic()) > 0:
                changed.wait(left)
                changed.clear()
        finally:
            watch.stop()
            withdrawn = self._withdraw()
        if withdrawn:
            raise ApplyError(
                f"no agent took the request {self._path} within {timeout_seconds:g} s"
                " (start `discovery agent` or `discovery proxy` on this node, or name its --state here)"
            )

    def _withdraw(self) -> bool:
        """Whether the request was still there; removed by us, it cannot have been taken."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ApplyError(f"{self._path}: cannot be removed: {error}") from error
        return True


def _encode(loss: MassLoss) -> str:
    return json.dumps(
        {
            "format": _FORMAT,
            "since": loss.since_seconds,
            "until": loss.until_seconds,
            "instances": loss.instances,
        }
    )


def _decode(data: object) -> MassLoss:
    """The inverse of ``_encode``; ValueError for anything else."""
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ValueError(f"it is not of format {_FORMAT}")
    instances = data.get("instances")
    if not isinstance(instances, dict) or not all(isinstance(ids, list) for ids in instances.values()):
        raise ValueError("its instances are no lists by service")
    try:
        times = float(data["since"]), float(data["until"])
    except (KeyError, TypeError) as error:
        raise ValueError("it does not tell since and until when") from error
    return MassLoss(*times, {name: tuple(map(str, ids)) for name, ids in instances.items()})
