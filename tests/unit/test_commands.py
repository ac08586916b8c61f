"""Child processes, run for real."""

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from discovery.commands import OUTPUT_BYTES, run
from discovery.errors import CommandError

PATIENCE_SECONDS = 20
FOR_EVER = "sleep 300"


def gone(pid: int) -> bool:
    """Whether the process ended, within a generous time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_output_is_both_streams() -> None:
    assert run("echo out; echo err >&2", 10) == "out\nerr\n"


def test_list_is_run_without_a_shell() -> None:
    assert run(["echo", "$HOME; x"], 10) == "$HOME; x\n"


def test_input_is_empty() -> None:
    assert run("cat", 10) == ""


def test_output_that_is_no_utf_8_is_escaped() -> None:
    assert run(r"printf '\377a'", 10) == r"\xffa"


def test_status_and_end_of_the_output_are_told() -> None:
    with pytest.raises(CommandError, match=r"'echo no; exit 3' ended with status 3: no$"):
        run("echo no; exit 3", 10)
    with pytest.raises(CommandError) as caught:
        run("yes no | head -n 100000; echo the end; exit 3", 60)
    assert str(caught.value).endswith("the end")
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    "command",
    [["/nonexistent/command"], ["/etc/passwd"], ["echo", "a\0b"], "echo a\0b", ["echo", "\ud800"], []],
)
def test_what_cannot_be_started_says_so(command: str | list[str]) -> None:
    with pytest.raises(CommandError, match="cannot be started"):
        run(command, 10)


def test_large_output_passes_and_endless_output_does_not_fill_the_memory() -> None:
    assert len(run("head -c 500000 /dev/zero", 60)) == 500_000
    text = run(f"head -c {3 * OUTPUT_BYTES} /dev/zero; echo end", 60)
    assert len(text) <= OUTPUT_BYTES
    assert text.endswith("end\n")


def test_whole_group_ends_with_the_time_out(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(CommandError, match="took longer than"):
        run(f"({FOR_EVER} & echo $! > {pid}; wait)", 0.5)
    assert gone(int(pid.read_text()))


def test_time_out_tells_what_was_said_so_far() -> None:
    with pytest.raises(CommandError, match="waiting for godot"):
        run(f"echo waiting for godot; {FOR_EVER}", 1)


def test_ignored_signals_do_not_help(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="took longer than"):
        run("trap '' TERM INT HUP; while :; do sleep 1; done", 0.5)


def test_command_ends_although_what_it_started_goes_on(tmp_path: Path) -> None:
    """A reload command that starts a daemon is done when it ends, whoever still holds its output."""
    pid = tmp_path / "pid"
    try:
        began = time.monotonic()
        assert run(f"echo started; {FOR_EVER} & echo $! > {pid}", 60) == "started\n"
        assert time.monotonic() - began < PATIENCE_SECONDS
        os.kill(int(pid.read_text()), 0)
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_chatter_of_what_it_left_behind_does_not_hold_it_up(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    try:
        assert "\n" in run(f"yes & echo $! > {pid}; sleep 0.2", PATIENCE_SECONDS)
    finally:
        # It may have ended already, for nobody reads what it writes.
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_time_out_holds_although_a_process_left_the_group(tmp_path: Path) -> None:
    """confd's reload command could block for ever."""
    pid = tmp_path / "pid"
    try:
        began = time.monotonic()
        with pytest.raises(CommandError, match="took longer than"):
            run(f"setsid sh -c 'echo $$ > {pid}; exec {FOR_EVER}' & {FOR_EVER}", 1)
        assert time.monotonic() - began < PATIENCE_SECONDS
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_closed_output_does_not_end_the_wait() -> None:
    with pytest.raises(CommandError, match="took longer than"):
        run(f"exec >&- 2>&-; {FOR_EVER}", 0.5)
    assert run("exec >&- 2>&-; sleep 0.1", 10) == ""


def test_more_descriptors_than_select_knows_do_not_matter() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    many: list[int] = []
    try:
        while not many or many[-1] < 1100:
            many.append(os.open("/dev/null", os.O_RDONLY))
        assert run("echo x", 10) == "x\n"
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    run("true", 10)
    for command, seconds in (("false", 10.0), (FOR_EVER, 0.2)):
        with pytest.raises(CommandError):
            run(command, seconds)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
