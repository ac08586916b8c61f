"""Brings a running HAProxy from one set of certificates to another, through its runtime socket."""

import re
from collections.abc import Callable, Iterator, Mapping

from discovery.errors import ApplyError
from discovery.haproxy.certificates import DEFAULT, LIST, Certificate, default_of

COMMAND_BYTES = 16_000
"""A command that fills HAProxy's buffer of 16,384 bytes is refused by 3.0; it makes 2.6.12 spin and abort."""

_DONE = {
    "new": re.compile(r"New empty certificate store|Certificate '.*' already exists"),
    "set": re.compile(r"Transaction (?:created|updated) for certificate (?P<file>\S+)!"),
    "commit": re.compile(r"^Success!", re.MULTILINE),
    "add": re.compile(r"^Success!", re.MULTILINE),
    "del": re.compile(r"^(?:Entry '.*' deleted in crtlist|Certificate '.*' deleted!)"),
}
# With a transaction open for another certificate 2.6 puts the payload into that one.
_OTHER = re.compile(r"ongoing transaction is about '([^']+)'|Transaction updated for certificate (\S+)!")


def certificate_commands(
    running: Mapping[str, Certificate], wanted: Mapping[str, Certificate]
) -> tuple[str, ...] | None:
    """The runtime commands after which a worker that has ``running`` serves ``wanted``; None for a reload.

    That takes a reload when there were none or shall be none, for the listeners come or go with them, and
    when one is too large for a command. Each command is sent as it is and ended by one newline; those with a
    payload have lines. New ones come before old ones go.
    """
    if not running or not wanted:
        return None if running or wanted else ()
    commands = [*_added(running, wanted), *_new_default(running, wanted), *_removed(running, wanted)]
    return None if any(len(command) >= COMMAND_BYTES for command in commands) else tuple(commands)


def _added(running: Mapping[str, Certificate], wanted: Mapping[str, Certificate]) -> Iterator[str]:
    for _, each in sorted(wanted.items()):
        was = running.get(each.name)
        if was is None:
            yield f"new ssl cert {each.file}"
            yield from _exchange(each.file, each.text)
            yield f"add ssl crt-list {LIST} {each.file}"
        elif was.text != each.text:
            yield from _exchange(each.file, each.text)


def _new_default(running: Mapping[str, Certificate], wanted: Mapping[str, Certificate]) -> Iterator[str]:
    was, new = default_of(running), default_of(wanted)
    if was is not None and new is not None and was.text != new.text:
        yield from _exchange(DEFAULT, new.text)


def _removed(running: Mapping[str, Certificate], wanted: Mapping[str, Certificate]) -> Iterator[str]:
    for name, each in sorted(running.items()):
        if name not in wanted:
            yield f"del ssl crt-list {LIST} {each.file}"
            yield f"del ssl cert {each.file}"


def _exchange(file: str, text: str) -> Iterator[str]:
    # The text ends with a newline and has no blank line: the one that is sent after it ends the payload.
    yield f"set ssl cert {file} <<\n{text}"
    yield f"commit ssl cert {file}"


def run_certificate_commands(commands: tuple[str, ...], ask: Callable[[str], str]) -> None:
    """Send each command with ``ask``, which returns the worker's answer.

    Raises ApplyError at the first that is refused, with no transaction left open. What was done before it
    stays done, and a reload puts everything right.
    """
    for command in commands:
        # Without the payload, which is secret.
        line = command.partition(" <<")[0]
        verb, *_, file = line.split()
        answer = ask(command)
        if not _is_done(verb, file, answer) and (other := _OTHER.search(answer)):
            # Left by an agent that was killed in the middle of it.
            ask(f"abort ssl cert {other[1] or other[2]}")
            answer = ask(command)
        if not _is_done(verb, file, answer):
            if verb in ("set", "commit"):
                ask(f"abort ssl cert {file}")
            said = " ".join(answer.split())[:300] or "nothing"
            raise ApplyError(f"HAProxy answers {line!r} with: {said}")


def _is_done(verb: str, file: str, answer: str) -> bool:
    match = _DONE[verb].search(answer)
    return match is not None and match.groupdict().get("file", file) == file


def fingerprint_shown(answer: str) -> str | None:
    """The fingerprint in the answer to ``show ssl cert FILE``; None if there is no such certificate."""
    match = re.search(r"^SHA1 FingerPrint: ([0-9A-F]{40})$", answer, re.MULTILINE)
    return match and match[1]
