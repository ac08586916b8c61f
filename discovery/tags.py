"""Tags as gliderlabs' registrator writes them: comma-separated, `\\,` for a comma in one. Pure."""

from collections.abc import Iterator

from discovery.errors import SchemaError

TAGS_CHARACTERS = 4096


def split_tags(text: str) -> tuple[str, ...]:
    """``a,b\\,c`` → ``a`` and ``b,c``; empty ones are dropped."""
    if len(text) > TAGS_CHARACTERS:
        raise SchemaError(f"tags are at most {TAGS_CHARACTERS} characters")
    return tuple(filter(None, _split_unescaped(text)))


def _split_unescaped(text: str) -> Iterator[str]:
    tag = ""
    for part in text.split(","):
        if part.endswith("\\"):
            tag += part[:-1] + ","
            continue
        yield tag + part
        tag = ""
    yield tag
