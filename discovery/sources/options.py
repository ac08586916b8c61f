"""What a port's words say beyond name and address: weight, tags, options for the edges, the rest. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from discovery.errors import SchemaError
from discovery.options import OPTIONS, Option
from discovery.schema import parse_port, printable
from discovery.sources import checks

MOST_EXTRA = 50
EXTRA_CHARACTERS = 1024

OWN_WORDS = ("name", "id", "tags", "ignore", "scheme", "host_port", "network", "weight")
"""Words with a meaning of their own; all others are options or extra."""

_NEVER = frozenset({*OWN_WORDS, *checks.WORDS, *checks.UNSUPPORTED})
_EXTRA_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_SECRET = re.compile(
    r"passw|passphrase|secret|token|credential|private|(?:^|_)(?:key|pwd|auth)(?:_|$)|api_?key"
)
_NEAR = 0.75


@dataclass(slots=True)
class Said:
    """Options in canonical text, what else was said, and words with the reason why they do not count."""

    options: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def read_options(
    words: Mapping[str, str], derived: Mapping[str, str], known: Mapping[str, Option] = OPTIONS
) -> Said:
    """What the words of a port say to the edges, over the options ``derived`` from other words.

    A word that is no option is extra: kept for templates, and for nobody else. One that says by its name
    that it is a secret is not kept at all. One that keeps people out and cannot be read lets nobody in.
    """
    said = Said()
    # Empty is as not set; but a variable that came out empty must not let in those it was to keep out.
    texts = {
        name: text
        for name, text in words.items()
        if name in known and name not in _NEVER and (text or known[name].stand_in is not None)
    }
    for name, text in {**derived, **texts}.items():
        option = known.get(name)
        if option is None:
            continue
        try:
            said.options[name] = option.parse(text.strip())
        except SchemaError as error:
            if option.stand_in is not None:
                said.options[name] = option.stand_in
            said.problems.append((word_of(name), str(error)))
    for name in sorted(words.keys() - known.keys() - _NEVER):
        _keep_extra(name, words[name], said)
        if near := get_close_matches(name, [*known, *_NEVER], n=1, cutoff=_NEAR):
            said.problems.append((word_of(name), f"means nothing here, did you mean {word_of(near[0])}?"))
    return said


def _keep_extra(name: str, text: str, said: Said) -> None:
    if not text or _SECRET.search(name) or not _EXTRA_NAME.fullmatch(name):
        return
    if len(text) > EXTRA_CHARACTERS or len(said.extra) >= MOST_EXTRA:
        reason = f"of what is said besides, {MOST_EXTRA} texts of {EXTRA_CHARACTERS} characters are kept"
        said.problems.append((word_of(printable(name)), reason))
        return
    said.extra[name] = text


def word_of(name: str) -> str:
    """``tags`` → ``SERVICE_TAGS``."""
    return f"SERVICE_{name.upper()}"


def read_weight(words: Mapping[str, str]) -> int | None:
    """SERVICE_WEIGHT, None without; SchemaError for anything but 0 to 256."""
    text = words.get("weight", "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 256):
        raise SchemaError(f"{printable(text)!r} is no weight from 0 to 256")
    return int(text)


def read_host_port(words: Mapping[str, str]) -> int | None:
    """SERVICE_HOST_PORT, None without; SchemaError for what is no port."""
    if not words.get("host_port"):
        return None
    try:
        return parse_port(words["host_port"])
    except SchemaError as error:
        raise SchemaError(f"SERVICE_HOST_PORT: {error}") from None
