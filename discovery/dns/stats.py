"""Counts of what the DNS role answered."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from dnslib import QTYPE, RCODE

from discovery.dns import wire

Origin = Literal["local", "forwarded", "refused"]
Cell = list[int]
"""One number that the hot path counts up in place."""


class Outcome(NamedTuple):
    """Labels of one count: the question's type (``other`` for rare ones), the rcode, and who knew the answer.

    ``refused`` are clients outside the networks we answer.
    """

    qtype: str
    rcode: str
    origin: Origin


class Stats:
    """Written by the one thread that serves, read by any."""

    def __init__(self) -> None:
        self._cells: dict[Outcome, Cell] = {}
        self._found: dict[tuple[int, int, Origin], Cell] = {}
        self.dropped = 0
        """Messages met with silence: responses, and less than a header."""
        self.unsent = 0
        """Replies that the kernel would not take."""

    def cell(self, qtype: int, rcode: int, origin: Origin) -> Cell:
        """The count of this outcome; ``qtype`` 0 stands for a message without a question."""
        cell = self._found.get((qtype, rcode, origin))
        if cell is None:
            cell = self._cells.setdefault(Outcome(_qtype(qtype), _rcode(rcode), origin), [0])
            if qtype in QTYPE.forward:
                self._found[qtype, rcode, origin] = cell
        return cell

    def snapshot(self) -> Mapping[Outcome, int]:
        """Every count so far."""
        return {outcome: cell[0] for outcome, cell in list(self._cells.items())}


def _qtype(qtype: int) -> str:
    if qtype == 0:
        return "none"
    # Only types that dnslib knows: labels made of whatever a client sends would have no bound.
    return str(QTYPE.forward[qtype]) if qtype in QTYPE.forward else "other"


def _rcode(rcode: int) -> str:
    if rcode == wire.BADVERS:
        return "BADVERS"
    return str(RCODE.forward[rcode]) if rcode in RCODE.forward else "other"
