"""Templates of people: every mistake in one is a RenderError that names file and line."""

from pathlib import Path

import pytest

from discovery.errors import RenderError
from discovery.templating import Templates


def write(directory: Path, **texts: str) -> Templates:
    directory.mkdir(exist_ok=True)
    for name, text in texts.items():
        (directory / f"{name}.j2").write_text(text)
    return Templates(directory)


def test_rendering_keeps_lines_as_they_are_written(tmp_path: Path) -> None:
    templates = write(
        tmp_path, a="{% for x in xs %}\n  {% if x %}\n  {{ x }} & '<'\n  {% endif %}\n{% endfor %}\n"
    )
    assert templates.render("a.j2", xs=["1", "", "2<"]) == "  1 & '<'\n  2< & '<'\n"


MISTAKES = {
    "syntax": ("fine\n{% if %}", 2),
    "unclosed": ("fine\n\n{% for x in [] %}", 3),
    "undefined": ("fine\n{{ nothing }}", 2),
    "undefined member": ("fine\n{{ catalog.nothing }}", 2),
    "undefined in a condition": ("{% if nothing %}{% endif %}", 1),
    "unknown filter": ("fine\n{{ 1 | nofilter }}", 2),
    "type": ("fine\n\n{{ 1 + 'x' }}", 3),
    "division": ("fine\n{{ 1 / 0 }}", 2),
    "value": ("{{ 'x' | int(base=99) }}\n{{ 'abc'.index('z') }}", None),
    "call": ("fine\n{{ 1() }}", 2),
    "recursion by include": ("fine\n{% include 'a.j2' %}", None),
    "recursion by macro": ("{% macro m() %}\n{{ m() }}\n{% endmacro %}\n{{ m() }}", None),
    "memory": ("fine\n{{ 'x' * 10 ** 17 }}", 2),
    "overflow": ("fine\n{{ 'x' * 10 ** 30 }}", 2),
    "too long a range": ("fine\n{{ range(10 ** 30) | length }}", 2),
    "missing include": ("fine\n{% include 'b.j2' %}", 2),
    "missing parent": ("{% extends 'b.j2' %}", 1),
    "missing choice": ("\n\n{% include ['b.j2', 'c.j2'] %}", 3),
    "outside": ("{% include '../../etc/passwd' %}", 1),
    "not implemented": ("fine\n{{ fail() }}", 2),
}


def fail() -> None:
    raise NotImplementedError("not here")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_names_file_and_line(tmp_path: Path, mistake: str) -> None:
    text, line = MISTAKES[mistake]
    templates = write(tmp_path, a=text)
    with pytest.raises(RenderError) as caught:
        templates.render("a.j2", catalog={}, fail=fail)
    place = f"{tmp_path / 'a.j2'}:" + (f"{line}: " if line else "")
    assert str(caught.value).startswith(place)


def test_mistake_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    templates = write(tmp_path, a="{% include 'b.j2' %}", b="\n{{ nothing }}")
    with pytest.raises(RenderError, match=rf"^{tmp_path}/b\.j2:2: "):
        templates.render("a.j2")
    templates = write(tmp_path, a="{% include 'b.j2' %}", b="\n\n{% nothing %}")
    with pytest.raises(RenderError, match=rf"^{tmp_path}/b\.j2:3: "):
        templates.render("a.j2")


def test_missing_template_names_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=rf"a\.j2: there is no such template in {tmp_path}"):
        write(tmp_path).render("a.j2")


@pytest.mark.parametrize("name", ["../secret.j2", "/etc/passwd", "..", ""])
def test_nothing_outside_the_directories_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.j2").write_text("secret")
    with pytest.raises(RenderError):
        write(tmp_path / "inside").render(name)


def test_file_that_is_no_text_is_a_render_error(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(RenderError, match=r"a\.j2"):
        Templates(tmp_path).render("a.j2")


def test_file_that_fails_to_be_read_is_a_render_error() -> None:
    """/proc/self/mem is a file that anyone may open and nobody can read from its beginning."""
    with pytest.raises(RenderError, match="mem"):
        Templates(Path("/proc/self")).render("mem")


def test_earlier_directory_hides_the_later_file_by_file(tmp_path: Path) -> None:
    write(tmp_path / "ours", a="ours {% include 'b.j2' %}", b="ours")
    write(tmp_path / "theirs", b="theirs")
    templates = Templates(tmp_path / "theirs", tmp_path / "ours")
    assert templates.render("a.j2") == "ours theirs"


def test_cleared_templates_see_what_changed_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "ours", a="ours")
    templates = Templates(tmp_path / "theirs", tmp_path / "ours")
    assert templates.render("a.j2") == "ours"
    write(tmp_path / "theirs", a="theirs")
    templates.clear()
    assert templates.render("a.j2") == "theirs"
    (tmp_path / "theirs" / "a.j2").unlink()
    templates.clear()
    assert templates.render("a.j2") == "ours"


def test_broken_template_works_again_once_mended(tmp_path: Path) -> None:
    templates = write(tmp_path, a="{{ nothing }}")
    with pytest.raises(RenderError):
        templates.render("a.j2")
    write(tmp_path, a="mended")
    templates.clear()
    assert templates.render("a.j2") == "mended"


def test_a_template_may_stay_as_it_was_until_it_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("one")
    templates = Templates(tmp_path, auto_reload=False)
    assert templates.render("a.j2") == "one"
    (tmp_path / "a.j2").write_text("another")
    assert templates.render("a.j2") == "one"
    templates.clear()
    assert templates.render("a.j2") == "another"
