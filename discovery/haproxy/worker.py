"""Changes the worker that serves by its runtime socket, and sees whether it is as it should be."""

import csv
import re
import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from discovery.errors import ApplyError
from discovery.haproxy.certificate_commands import run_certificate_commands
from discovery.haproxy.layout import Layout
from discovery.haproxy.plan import Plan
from discovery.haproxy.state import States, misfits, observed, parse_states

_COMMAND_BYTES = 15_000
"""2.6 never answers a longer one, since it does not fit into its buffer."""
_LINE_BYTES = 32_000
_MOVE_SECONDS = 2.0
_LOOK_SECONDS = 0.001
_FEW = 20
"""Of more sections than this the states are read all at once."""

_CONNECTIONS = re.compile(r"^(\S+)/s([1-9][0-9]*) \S+ \S+ \S+ - \S+ ([0-9]+) ", re.MULTILINE)
"""A row of ``show servers conn``: section, number, and how many connections have a request."""

_PID = re.compile(r"^Pid: (\d+)$", re.MULTILINE)
_FOUND = re.compile(r'found=(?:no|yes, .*?value="([^"]*)")')
_OPEN = "OPEN"
_OUR_FRONTENDS = ("edge", "port:", "held:")
_NO_MAP = "Unknown map identifier"


class Worker:
    """HAProxy's newest worker. Every method raises ApplyError when it does not answer."""

    def __init__(self, ask: Callable[[str], str]) -> None:
        """``ask`` gives the worker's answer to one line of commands."""
        self._ask = ask

    def pid(self) -> int:
        """The process that answers."""
        match = _PID.search(self._ask("show info"))
        if match is None:
            raise ApplyError("HAProxy's worker does not tell its process id")
        return int(match[1])

    def states(self, names: Sequence[str] | None = None) -> States:
        """The servers of these sections, or of all."""
        if names is None or len(names) > _FEW:
            return parse_states(self._ask("show servers state"))
        if not names:
            return {}
        return parse_states(self._ask(";".join(f"show servers state {name}" for name in names)))

    def carry_out(self, plan: Plan, pid: int) -> Layout | None:
        """Do what was planned; None when the worker, whose process id is ``pid``, is then as planned.

        Else the layout it has: its servers are not as they should be, and the rest is to be planned anew.
        Raises ApplyError when something else is not, or another worker answers by now.
        """
        run_certificate_commands(plan.certificate_commands, self._ask)
        self._move(plan)
        answers = "".join(self._ask(line) for line in _lines(plan.commands))
        states = self.states(plan.touched)
        if self.pid() != pid:
            raise ApplyError(f"HAProxy's worker is no longer {pid}")
        self._check_maps(plan.commands, answers)
        self._check_frontends(plan.commands, answers)
        wrong = misfits((plan.layout.sections[name] for name in plan.touched), states)
        return observed(plan.layout, wrong, states) if wrong else None

    def _move(self, plan: Plan) -> None:
        """Give slots their next addresses, and wait until they have them."""
        if not plan.moves:
            return
        answers = "".join(self._ask(line) for line in _lines(plan.moves))
        slots = [tuple(command.split()[2].split("/")) for command in plan.moves]
        names = tuple(dict.fromkeys(section for section, _ in slots))
        wanted = {
            (name, slot.name): slot.server.address
            for name in names
            for slot in plan.layout.sections[name].slots
            if slot.server is not None
        }
        deadline = time.monotonic() + _MOVE_SECONDS
        while True:
            states = self.states(names)
            left = [
                f"{section}/{slot}"
                for section, slot in slots
                if (state := states.get(section, {}).get(slot)) is None
                or state.address != wanted[section, slot]
            ]
            if not left:
                return
            if time.monotonic() > deadline:
                raise ApplyError(f"HAProxy does not move {left[0]}: {answers.strip()[:500]}")
            select.select((), (), (), _LOOK_SECONDS)

    def busy(self, names: Sequence[str]) -> frozenset[tuple[str, int]]:
        """The slots of these sections with a request under way, by name of the section and number.

        When it is over, its connection is kept for more of them: by then nobody else may have the slot, or
        his requests would go to the one that was there before.
        """
        few = [f"show servers conn {name}" for name in names] if len(names) <= _FEW else ["show servers conn"]
        rows = _CONNECTIONS.finditer("".join(self._ask(line) for line in few))
        return frozenset((row[1], int(row[2])) for row in rows if row[1] in names and row[3] != "0")

    def is_as(self, layout: Layout) -> bool:
        """Whether the worker is as this layout says: its sections, servers and maps."""
        present = set(self._ask("show backend").split())
        if not layout.sections.keys() <= present or misfits(layout.sections.values(), self.states()):
            return False
        return not any(self._strays(layout))

    def mend(self, layout: Layout) -> tuple[str, ...]:
        """Put right what maps and listeners are not as this layout says; the commands it took.

        Raises ApplyError when they are not as they should be all the same.
        """
        commands = tuple(self._strays(layout))
        if commands:
            answers = "".join(self._ask(line) for line in _lines(commands))
            if any(self._strays(layout)):
                raise ApplyError(f"HAProxy's maps and listeners cannot be mended: {answers.strip()[:500]}")
        return commands

    def _strays(self, layout: Layout) -> Iterator[str]:
        """The commands that make maps and listeners be as this layout says."""
        for name, wanted in layout.maps().items():
            answer = self._ask(f"show map {name}")
            if answer.startswith(_NO_MAP):
                # A template of the user's own has no use for it.
                continue
            found = [row for line in answer.splitlines() if len(row := line.split(" ")) == 3]
            seen = Counter(key for _, key, _ in found)
            for _, key, value in found:
                if key not in wanted:
                    yield f"del map {name} {key}"
                elif seen[key] == 1 and value != wanted[key]:
                    yield f"set map {name} {key} {wanted[key]}"
                elif seen[key] > 1:
                    # Of two the first counts, and they can only go together.
                    yield f"del map {name} {key}"
            yield from (f"add map {name} {key} {value}" for key, value in wanted.items() if seen[key] != 1)
        paused = {each.name for each in layout.paused}
        for name, is_open in self._frontends().items():
            # Those of a user's own template are as that says, which may be disabled.
            if name.startswith(_OUR_FRONTENDS) and is_open is (name in paused):
                yield f"{'disable' if is_open else 'enable'} frontend {name}"

    def _frontends(self) -> Mapping[str, bool]:
        """Whether each frontend takes connections, by its name."""
        rows = csv.DictReader(self._ask("show stat -1 1 -1").removeprefix("# ").splitlines())
        return {row["pxname"]: row["status"] == _OPEN for row in rows}

    def _check_maps(self, commands: Iterable[str], answers: str) -> None:
        wanted = dict(_map_entries(commands))
        if not wanted:
            return
        said = "".join(self._ask(line) for line in _lines(f"get map {name} {key}" for name, key in wanted))
        found = [match[1] for match in _FOUND.finditer(said)]
        if found != list(wanted.values()):
            raise ApplyError(f"HAProxy's maps are not as they should be: {answers.strip()[:500]}")

    def _check_frontends(self, commands: Iterable[str], answers: str) -> None:
        wanted = {
            words[2]: words[0] == "enable"
            for command in commands
            if (words := command.split())[1] == "frontend"
        }
        if not wanted:
            return
        is_open = self._frontends()
        if any(is_open.get(name) is not state for name, state in wanted.items()):
            raise ApplyError(f"HAProxy's listeners are not as they should be: {answers.strip()[:500]}")


def _map_entries(commands: Iterable[str]) -> Iterator[tuple[tuple[str, str], str | None]]:
    """By map and key, the value that is there after these commands, None for no such key."""
    for command in commands:
        verb, what, *words = command.split(" ")
        if what == "map":
            yield (words[0], words[1]), None if verb == "del" else words[2]


def _lines(commands: Iterable[str]) -> Iterator[str]:
    """The commands joined to lines that are not too long. Raises ApplyError for one that cannot be sent."""
    line: list[str] = []
    size = 0
    for command in commands:
        if len(command) > _COMMAND_BYTES or ";" in command or "\n" in command:
            raise ApplyError(f"a command to HAProxy cannot be sent: {command[:100]!r}")
        if line and size + len(command) > _LINE_BYTES:
            yield ";".join(line)
            line, size = [], 0
        line.append(command)
        size += len(command) + 1
    if line:
        yield ";".join(line)
