"""Documentation that states facts of the code is compared with the code."""

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from discovery.catalog import Instance, Service
from discovery.config import SETTINGS, load
from discovery.haproxy.render import BackendView, ServerView
from discovery.options import ANY, OPTIONS
from discovery.settings import Settings
from discovery.template_files import TemplateFile
from discovery.templating import Templates

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


def compare(name: str, rows: Iterator[str]) -> str:
    """The page of this name, whose table of this name has these rows."""
    page = DOCS / f"{name}.md"
    before, _, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"<!-- end of {name} -->\n")
    table = "\n".join(rows)
    expected = f"{before}<!-- {name} -->\n{table}\n<!-- end of {name} -->\n{after}"
    if os.environ.get("DISCOVERY_UPDATE_DOCS"):
        page.write_text(expected)
    assert page.read_text() == expected
    return expected


def test_the_table_of_settings_is_what_the_code_has() -> None:
    """`DISCOVERY_UPDATE_DOCS=1` writes it."""
    expected = compare("settings", rows())
    assert str(Settings.model_fields["state_dir"].description) in expected


def option_rows() -> Iterator[str]:
    yield "| option | values | for | |"
    yield "|---|---|---|---|"
    for option in OPTIONS.values():
        schemes = "any" if option.schemes == ANY else ", ".join(option.schemes)
        yield f"| `{option.name}` | {option.values} | {schemes} | {option.documentation} |"


def test_the_table_of_options_is_what_the_code_has() -> None:
    """`DISCOVERY_UPDATE_DOCS=1` writes it."""
    compare("options", option_rows())


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and text of each fenced block of a language."""
    for page in sorted(DOCS.glob("*.md")):
        for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL):
            yield page.name, text


@pytest.mark.parametrize(("page", "text"), list(blocks("toml")))
def test_every_sample_configuration_is_one(tmp_path: Path, page: str, text: str) -> None:
    file = tmp_path / "discovery.toml"
    file.write_text(text)
    load({}, {}, file)


@pytest.mark.parametrize(("page", "text"), list(blocks("jinja")))
def test_every_sample_template_renders(tmp_path: Path, page: str, text: str) -> None:
    (tmp_path / "sample.j2").write_text(text)
    web = Service("web", instances=(Instance("0", "10.0.0.5", 80),))
    assert "10.0.0.5:80" in Templates(tmp_path).render("sample.j2", services=[web])


def test_every_reason_of_a_reload_is_documented() -> None:
    """A reason is a word in the code where it is found out."""
    code = "".join(each.read_text() for each in (DOCS.parent / "discovery" / "haproxy").glob("*.py"))
    found = re.findall(
        r'reasons\["(\w+)"\]|why(?:: str = |=)"(\w+)"|start_last_good\("(\w+)"\)|\(\*reasons, "(\w+)"\)', code
    )
    reasons = {word for words in found for word in words if word}
    _, _, table = (DOCS / "how-it-works.md").read_text().partition("| reason |")
    cells = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert {word for cell in cells for word in re.findall(r"`(\w+)`", cell)} == reasons | {"adopted"}
    assert len(reasons) > 10


def test_every_part_of_a_backend_that_a_template_sees_is_documented() -> None:
    page = (DOCS / "templates.md").read_text()
    for field in fields(BackendView):
        assert f"`backend.{field.name}`" in page
    for field in fields(ServerView):
        assert f"`{field.name}`" in page


def test_every_template_is_documented() -> None:
    page = (DOCS / "templates.md").read_text()
    for template in (DOCS.parent / "templates" / "haproxy").glob("*.j2"):
        assert f"`{template.name}`" in page


def test_every_setting_of_a_template_file_is_documented() -> None:
    page = (DOCS / "templates.md").read_text()
    for field in fields(TemplateFile):
        assert f"`{field.name}`" in page
