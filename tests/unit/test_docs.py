"""Documentation that states facts of the code is compared with the code."""

import os
from collections.abc import Iterator
from pathlib import Path

from discovery.config import SETTINGS, Settings
from discovery.options import OPTIONS

DOCS = Path(__file__).parents[2] / "docs"


def rows() -> Iterator[str]:
    yield "| setting in the file | flag | environment | default | |"
    yield "|---|---|---|---|---|"
    for setting in SETTINGS:
        default = "" if setting.key == "state_dir" else shown(setting.field.default)
        cells = [f"`{setting.key}`", f"`{setting.flag}`", f"`{setting.environment}`", default]
        yield f"| {' | '.join(cells)} | {setting.field.description} |"


def shown(value: object) -> str:
    if value is None or value == "":
        return ""
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


def test_the_table_of_settings_is_what_the_code_has() -> None:
    """`DISCOVERY_UPDATE_DOCS=1` writes it."""
    page = DOCS / "settings.md"
    before, _, rest = page.read_text().partition("<!-- settings -->\n")
    _, _, after = rest.partition("<!-- end of settings -->\n")
    expected = before + "<!-- settings -->\n" + "\n".join(rows()) + "\n<!-- end of settings -->\n" + after
    if os.environ.get("DISCOVERY_UPDATE_DOCS"):
        page.write_text(expected)
    assert page.read_text() == expected
    assert Settings.model_fields["state_dir"].description in expected


def test_every_option_is_in_the_key_contract() -> None:
    page = (DOCS / "keys.md").read_text()
    for option in OPTIONS.values():
        assert f"| `{option.name}` |" in page
