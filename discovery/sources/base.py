"""The source protocol: whatever knows which instances run here, such as the Docker engine."""

from typing import Protocol

from discovery.catalog import Problem, Registration


class Source(Protocol):
    """One thread calls ``registrations`` and ``wait`` in turn; the rest is for any thread."""

    name: str
    relist_seconds: float
    """How long it may be, at most, until ``wait`` asks for the next look."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be registered at the last look, and why."""
        ...

    def registrations(self) -> tuple[Registration, ...]:
        """What should be registered now, oldest first, with no service and id twice.

        Raises SourceError when it cannot be known: empty means that there is nothing.
        """
        ...

    def wait(self, timeout_seconds: float) -> bool:
        """Whether it is time to look again: something may have changed, or the last look is too old."""
        ...

    def close(self) -> None:
        """Free what it holds; a ``wait`` or ``registrations`` under way ends soon."""
        ...
