"""docs/registrator.md says what the code does."""

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from discovery import gliderlabs
from discovery.sources import checks
from discovery.sources.docker import register
from discovery.sources.options import OWN_WORDS
from discovery.sources.rules import Convention
from discovery.sources.words import read_words
from tests.unit.inspected import ALL, NODE, container

PAGE = (Path(__file__).parents[2] / "docs" / "registrator.md").read_text()


def cells(heading: str) -> list[list[str]]:
    """The rows of the table that begins with this row."""
    _, _, rest = PAGE.partition(f"{heading}\n")
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_every_word_is_there() -> None:
    for word in (*OWN_WORDS, *checks.WORDS):
        assert f"`SERVICE_{word.upper()}`" in PAGE


def test_every_convention_is_there() -> None:
    listed = [row[0].strip("`") for row in cells("| convention | |")]
    assert listed == list(get_args(Convention))


def test_every_flag_of_gliderlabs_is_there() -> None:
    listed = {flag for row in cells("| its argument | here |") for flag in re.findall(r"`-(\S+)`", row[0])}
    assert listed == set(gliderlabs._NAMES)


def test_the_command_line_of_the_page_is_understood() -> None:
    (line,) = re.findall(r"discovery registrator (-ip.*)", PAGE)
    *flags, registry = gliderlabs.translate(line.split())
    assert flags == ["--ip", "10.0.0.5", "--ttl", "60", "--ttl-refresh", "20", "--resync", "600"]
    assert gliderlabs.store_url(registry, None) == "etcd2://10.0.0.1:2379"


@pytest.mark.parametrize(("published", "words", "services"), cells("| published | words | services |"))
def test_the_table_of_names_is_true(published: str, words: str, services: str) -> None:
    found = container("two_ports" if "443" in published else "published_fixed")
    said = replace(found, words=read_words(re.findall(r"`([^`]*)`", words), {}))
    registrations = register(said, ALL, NODE).registrations
    assert [each.service for each in registrations] == re.findall(r"`([^`]*)`", services)
