"""Generic templates: real files, real commands."""

import os
import pwd
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from discovery.catalog import Catalog, Instance, Service
from discovery.errors import ApplyError, ConfigError, RenderError
from discovery.feed import Feed
from discovery.follow import Follower
from discovery.template_files import (
    TemplateFile,
    TemplateFileApplier,
    key_functions,
    parse_template,
    poke_on_keys,
)
from tests.lab.wait import until

SRC = "{% for service in services %}{{ service.name }} {{ service.instances[0].address }}\n{% endfor %}"


def catalog(**addresses: int) -> Catalog:
    return Catalog(
        1,
        {
            name: Service(name, instances=(Instance("0", "127.0.0.1", port),))
            for name, port in addresses.items()
        },
    )


class Place:
    """A template, its file and its keys in a directory of their own."""

    def __init__(self, directory: Path, src: str = SRC, **settings: Any) -> None:
        self.directory = directory
        self.src = directory / "hosts.j2"
        self.src.write_text(src)
        self.dest = directory / "out" / "hosts.conf"
        self.dest.parent.mkdir()
        self.reloads = directory / "reloads"
        self.keys: Feed[dict[str, str]] = Feed()
        self.keys.publish({"/services/web/scheme": "tcp"})
        self.template = TemplateFile(self.src, self.dest, **settings)
        self.applier = TemplateFileApplier(self.template, self.keys)

    def reload_count(self) -> int:
        return len(self.reloads.read_text().splitlines()) if self.reloads.exists() else 0

    def names(self) -> list[str]:
        return sorted(path.name for path in self.dest.parent.iterdir())


def counting(directory: Path) -> str:
    return f"echo >> {directory}/reloads"


def test_the_file_is_what_the_catalog_says(tmp_path: Path) -> None:
    place = Place(tmp_path, mode=0o640)
    place.applier.apply(catalog(web=1, api=2))
    assert place.dest.read_text() == "api 127.0.0.1:2\nweb 127.0.0.1:1\n"
    assert stat.S_IMODE(place.dest.stat().st_mode) == 0o640
    assert place.names() == ["hosts.conf"]


def test_raw_keys_and_functions(tmp_path: Path) -> None:
    source = "{{ keys['/a/b'] }} {{ getv('/a/b') }} {{ getv('/c', 'no') }} {{ exists('/c') }} {{ ls('/a') }}"
    place = Place(tmp_path, source + " {{ json(getv('/a/j')).n }}")
    place.keys.publish({"/a/b": "1", "/a/d/e": "2", "/a/d/f": "3", "/a/j": '{"n": 7}'})
    place.applier.apply(Catalog())
    assert place.dest.read_text() == "1 1 no False ['b', 'd', 'j'] 7"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("ok\n{{ getv('/none') }}", r"hosts\.j2:2: .*/none"),
        ("{{ nothing }}", r"hosts\.j2:1: 'nothing' is undefined"),
        ("\n\n{% if %}", r"hosts\.j2:3: "),
        ("{{ json('{') }}", r"hosts\.j2:1: "),
    ],
)
def test_a_broken_template_is_named_and_changes_nothing(tmp_path: Path, source: str, reason: str) -> None:
    place = Place(tmp_path)
    place.applier.apply(catalog(web=1))
    place.src.write_text(source)
    with pytest.raises(RenderError, match=reason):
        place.applier.apply(catalog(web=2))
    assert place.dest.read_text() == "web 127.0.0.1:1\n"


def test_an_edited_template_is_used_at_the_next_call(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.applier.apply(catalog(web=1))
    place.src.write_text("new")
    place.applier.apply(catalog(web=1))
    assert place.dest.read_text() == "new"


def test_what_did_not_change_is_neither_written_nor_reloaded(tmp_path: Path) -> None:
    place = Place(tmp_path, reload_cmd=counting(tmp_path))
    place.applier.apply(catalog(web=1))
    before = place.dest.stat()
    place.applier.apply(catalog(web=1))
    assert (place.dest.stat().st_ino, place.reload_count()) == (before.st_ino, 1)
    place.applier.apply(catalog(web=2))
    assert place.reload_count() == 2


def test_a_file_that_someone_else_changed_is_put_right(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for spoil in (lambda: place.dest.write_text("mine"), lambda: place.dest.chmod(0o600), place.dest.unlink):
        place.applier.apply(catalog(web=1))
        spoil()
        place.applier.apply(catalog(web=1))
        assert place.dest.read_text() == "web 127.0.0.1:1\n"
        assert stat.S_IMODE(place.dest.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["{{src}}", "{{ src }}", "{{.src}}"])
def test_the_check_judges_the_new_file(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "it's a directory"
    directory.mkdir()
    place = Place(directory, check_cmd=f"grep -q :1 {name}", reload_cmd="true")
    place.applier.apply(catalog(web=1))
    with pytest.raises(ApplyError, match=r"hosts\.conf: left as it was, check_cmd .* ended with status 1"):
        place.applier.apply(catalog(web=2))
    assert place.dest.read_text() == "web 127.0.0.1:1\n"
    assert place.names() == ["hosts.conf"]


def test_a_failed_check_does_not_reload(tmp_path: Path) -> None:
    place = Place(tmp_path, check_cmd="echo no >&2; false", reload_cmd=counting(tmp_path))
    with pytest.raises(ApplyError, match="no"):
        place.applier.apply(catalog(web=1))
    assert (place.names(), place.reload_count()) == ([], 0)


def test_a_failed_reload_is_retried_although_the_file_is_right(tmp_path: Path) -> None:
    place = Place(tmp_path, reload_cmd=f"test -e {tmp_path}/mended && {counting(tmp_path)}")
    for _ in range(2):
        with pytest.raises(ApplyError, match=r"hosts\.conf: written, reload_cmd .* ended with status 1"):
            place.applier.apply(catalog(web=1))
        assert place.dest.read_text() == "web 127.0.0.1:1\n"
    (tmp_path / "mended").touch()
    place.applier.apply(catalog(web=1))
    place.applier.apply(catalog(web=1))
    assert place.reload_count() == 1


def test_a_new_process_reloads_once_for_the_last_one_may_have_died_before_it(tmp_path: Path) -> None:
    place = Place(tmp_path, reload_cmd=counting(tmp_path))
    place.applier.apply(catalog(web=1))
    heir = TemplateFileApplier(place.template, place.keys)
    heir.apply(catalog(web=1))
    heir.apply(catalog(web=1))
    assert place.reload_count() == 2


@pytest.mark.parametrize("setting", ["check_cmd", "reload_cmd"])
def test_commands_end(tmp_path: Path, setting: str) -> None:
    place = Place(tmp_path, **{setting: "sleep 300"}, timeout_seconds=0.2)
    with pytest.raises(ApplyError, match=r"took longer than 0\.2 s"):
        place.applier.apply(catalog(web=1))


def test_a_missing_directory_and_a_missing_template_are_named(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.src.unlink()
    with pytest.raises(RenderError, match=r"hosts\.j2: there is no such template"):
        place.applier.apply(Catalog())
    place.src.write_text(SRC)
    place.dest.parent.rmdir()
    with pytest.raises(ApplyError, match=r"out/hosts\.conf: cannot be written"):
        place.applier.apply(Catalog())


def test_keys_not_read_yet_are_not_an_empty_store(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with pytest.raises(ApplyError, match="keys below /services/ have not been read yet"):
        TemplateFileApplier(place.template, Feed()).apply(Catalog())
    assert place.names() == []


def test_a_follower_retries_the_reload_and_follows_raw_keys(tmp_path: Path) -> None:
    command = f"test -e {tmp_path}/mended && {counting(tmp_path)}"
    place = Place(tmp_path, "{{ getv('/x/y', '') }}", prefix="/x/", reload_cmd=command)
    catalogs: Feed[Catalog] = Feed()
    follower = Follower(catalogs, place.applier)
    stop = threading.Event()
    threads = [
        threading.Thread(target=follower.run, args=(stop,)),
        threading.Thread(target=poke_on_keys, args=(place.keys, follower.poke, stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        catalogs.publish(Catalog())
        until(lambda: follower.status.error is not None, "the reload failed")
        (tmp_path / "mended").touch()
        until(lambda: follower.status.error is None and place.reload_count() == 1, "the reload was retried")
        place.keys.publish({"/x/y": "new"})
        until(lambda: place.dest.read_text() == "new" and place.reload_count() == 2, "the key was followed")
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


# ---- settings


def test_all_settings() -> None:
    me = pwd.getpwuid(os.getuid())
    table = {
        "src": "a.j2",
        "dest": "/etc/a.conf",
        "prefix": "/app",
        "check_cmd": "check {{src}}",
        "reload_cmd": "reload",
        "mode": "0600",
        "owner": me.pw_name,
        "group": me.pw_gid,
        "timeout_seconds": 5,
    }
    assert parse_template(0, table, Path("/conf")) == TemplateFile(
        Path("/conf/a.j2"),
        Path("/etc/a.conf"),
        "/app/",
        "check {{src}}",
        "reload",
        0o600,
        me.pw_uid,
        me.pw_gid,
        5.0,
    )
    assert parse_template(0, {"src": "/a", "dest": "/b"}) == TemplateFile(Path("/a"), Path("/b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"reload_command": "x"},
            r"template[3].reload_command: there is no such setting (did you mean reload_cmd?)",
        ),
        ({"mode": "rw"}, "template[3].mode: 'rw' is no text of octal digits"),
        ({"mode": 644}, "template[3].mode: 644 is no text of octal digits"),
        ({"mode": "77777"}, "template[3].mode: "),
        ({"owner": "no-such-user"}, "template[3].owner: there is no user 'no-such-user' on this node"),
        ({"owner": 2**32}, "template[3].owner: 4294967296 is no id of a user"),
        ({"owner": -1}, "template[3].owner: there is no user '-1'"),
        ({"group": "no-such-group"}, "template[3].group: there is no group 'no-such-group'"),
        ({"prefix": "app"}, "template[3].prefix: 'app' does not begin with /"),
        ({"timeout_seconds": 0}, "template[3].timeout_seconds: 0 is no number of seconds"),
        ({"timeout_seconds": "9"}, "template[3].timeout_seconds: '9' is no number"),
        ({"src": ""}, "template[3].src: '' is no text"),
        ({"check_cmd": ["x"]}, "template[3].check_cmd: ['x'] is no text"),
    ],
)
def test_a_wrong_setting_is_named(change: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_template(3, {"src": "/a", "dest": "/b"} | change)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("missing", ["src", "dest"])
def test_source_and_destination_are_needed(missing: str) -> None:
    table = {"src": "/a", "dest": "/b"}
    del table[missing]
    with pytest.raises(ConfigError, match=rf"template\[0\]\.{missing}: is missing"):
        parse_template(0, table)


def test_owner_and_group_are_set(tmp_path: Path) -> None:
    owner, group = (65534, 65533) if os.getuid() == 0 else (os.getuid(), os.getgid())
    place = Place(tmp_path, owner=owner, group=group)
    place.applier.apply(Catalog())
    assert (place.dest.stat().st_uid, place.dest.stat().st_gid) == (owner, group)


def test_ls_takes_whole_names() -> None:
    ls = key_functions({"/ab/c": "", "/a/d": ""})["ls"]
    assert (ls("/a"), ls("/a/"), ls("/")) == (["d"], ["d"], ["a", "ab"])
