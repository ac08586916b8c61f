"""The errors of discovery, one tree.

    DiscoveryError
    ├── UsageError            a person's mistake: exit code 2
    │   └── ConfigError           a setting is wrong; names the setting and the mend
    ├── StoreError            the store
    │   ├── StoreUnavailable      no answer, or no quorum; try again
    │   ├── StoreRefused          it answered no: credentials, API version, a key it cannot hold
    │   ├── HistoryLost           changes since a revision are gone: take a new snapshot
    │   └── SessionLost           expiring keys are gone: open a new session, put all again
    ├── SourceError           the Docker engine
    ├── AgentUnavailable      the agent of this node does not tell what it does
    ├── SchemaError           one value from outside is unusable: quarantine it
    ├── RenderError           a template; names file and line
    ├── ApplyError            what should run does not run (yet)
    └── CommandError          a child process failed or took too long

Errors of libraries are translated into this tree once, where the library is called, with ``from``.
Loops catch the root only; whatever else arises is a bug and ends the process with a traceback.
"""


class DiscoveryError(Exception):
    """Root of every error that discovery raises on purpose; its text is fit for a person."""


class UsageError(DiscoveryError):
    """A person asked for something that cannot be; the command ends with exit code 2."""


class ConfigError(UsageError):
    """A setting is unusable.

    ``setting`` is its name as the person wrote it, ``reason`` what is wrong, ``mend`` what to do.
    """

    def __init__(self, setting: str, reason: str, mend: str = "") -> None:
        super().__init__(f"{setting}: {reason}" + (f" ({mend})" if mend else ""))
        self.setting = setting
        self.reason = reason
        self.mend = mend


class StoreError(DiscoveryError):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError):
    """No store answers in time, or it has no quorum. Says nothing about what the store holds."""


class StoreRefused(StoreError):
    """The store answered and refused: credentials, API version, a key or value it cannot hold."""


class HistoryLost(StoreError):
    """The changes since the given revision are no longer known; take a snapshot and go on from it."""


class SessionLost(StoreError):
    """A session's keys, or some of them, have expired; open a new one and put everything again."""


class AgentUnavailable(DiscoveryError):
    """The agent of this node does not run, has no status role, or does not answer in time."""


class SourceError(DiscoveryError):
    """The source of instances, such as the Docker engine, cannot be read. Not: it has none."""


class SchemaError(DiscoveryError):
    """One value from outside does not keep the key contract; ``str()`` is the reason, fit for display."""


class RenderError(DiscoveryError):
    """A template cannot be rendered; ``str()`` names its file and line.

    ``service`` is the one it could not be rendered for, None when it is no single one's fault.
    """

    def __init__(self, reason: str, service: str | None = None) -> None:
        super().__init__(reason)
        self.service = service


class ApplyError(DiscoveryError):
    """What should be running is not running; the last good state still is, as far as it could be kept."""


class ConfigRefused(ApplyError):
    """A program refuses its configuration; ``message`` is all that it says."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason)
        self.message = message


class Postponed(ApplyError):
    """Not everything runs yet, on purpose: what is left is to be applied again after ``seconds``."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class CommandError(DiscoveryError):
    """A child process ended with an error or was ended because it took too long.

    ``status`` is its exit status, None when it did not end by itself, or never began.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
