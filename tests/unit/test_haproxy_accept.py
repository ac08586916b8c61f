"""The two files by which a person accepts a mass loss."""

import json
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from discovery.errors import ApplyError
from discovery.haproxy.accept import AcceptRequest, HeldFile
from discovery.haproxy.massloss import MassLoss
from tests.lab.thread import in_thread

LOSS = MassLoss(100.5, 700.5, {"api": ("0",), "web": ("n1:web:80", "n2:web:80")})


# ---- what is held ------------------------------------------------------------------------------------


def test_what_is_held_is_told_until_it_is_not(tmp_path: Path) -> None:
    ours, theirs = HeldFile(tmp_path), HeldFile(tmp_path)
    assert theirs.read() is None
    ours.write(LOSS)
    assert theirs.read() == LOSS
    assert (tmp_path / "held.json").stat().st_mode & 0o777 == 0o600
    ours.clear()
    assert theirs.read() is None
    ours.clear()


def test_same_loss_is_written_once(tmp_path: Path) -> None:
    ours = HeldFile(tmp_path)
    ours.write(LOSS)
    written = (tmp_path / "held.json").stat().st_ino
    ours.write(MassLoss(100.5, 700.5, dict(LOSS.instances)))
    assert (tmp_path / "held.json").stat().st_ino == written
    ours.write(MassLoss(100.5, 700.5, {"web": ("n2:web:80",)}))
    assert HeldFile(tmp_path).read() == MassLoss(100.5, 700.5, {"web": ("n2:web:80",)})


def test_what_a_former_agent_held_is_cleared(tmp_path: Path) -> None:
    HeldFile(tmp_path).write(LOSS)
    HeldFile(tmp_path).clear()
    assert HeldFile(tmp_path).read() is None


def test_what_cannot_be_written_is_logged_once_and_tried_again(tmp_path: Path) -> None:
    ours = HeldFile(tmp_path / "later")
    with capture_logs() as logs:
        ours.write(LOSS)
        ours.write(LOSS)
    assert [each["event"] for each in logs] == ["held_instances_not_told"]
    (tmp_path / "later").mkdir()
    ours.write(LOSS)
    assert HeldFile(tmp_path / "later").read() == LOSS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"format": 2, "since": 1, "until": 2, "instances": {}}),
        json.dumps({"format": 1, "since": None, "until": 2, "instances": {}}),
        json.dumps({"format": 1, "since": "soon", "until": 2, "instances": {}}),
        json.dumps({"format": 1, "until": 2, "instances": {}}),
        json.dumps({"format": 1, "since": 1, "until": 2, "instances": {"web": "0"}}),
        json.dumps({"format": 1, "since": 1, "until": 2}),
        "[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_not_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "held.json").write_text(text)
    with pytest.raises(ApplyError, match=r"held\.json: cannot be read"):
        HeldFile(tmp_path).read()


# ---- the request -------------------------------------------------------------------------------------


def test_request_that_was_taken_is_taken_once(tmp_path: Path) -> None:
    agent = AcceptRequest(tmp_path)
    taken: list[bool] = []

    def run(stop: threading.Event) -> None:
        while not stop.wait(0.01):
            taken.append(agent.take())

    with in_thread(run):
        AcceptRequest(tmp_path).hand_over(20)
    assert taken.count(True) == 1
    assert not agent.take()


def test_request_that_nobody_takes_is_withdrawn(tmp_path: Path) -> None:
    with pytest.raises(ApplyError, match="no agent took the request"):
        AcceptRequest(tmp_path).hand_over(0.05)
    assert not AcceptRequest(tmp_path).take()


def test_request_that_was_left_behind_means_nothing(tmp_path: Path) -> None:
    now = [1000.0]
    agent = AcceptRequest(tmp_path, lambda: now[0])
    (tmp_path / "accept").write_text("1030.0\n")
    now[0] = 1030.5
    assert not agent.take()
    assert not (tmp_path / "accept").exists()
    (tmp_path / "accept").write_text("1060.0\n")
    assert agent.take()


@pytest.mark.parametrize("text", ["", "now"])
def test_file_that_is_no_request_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "accept").write_text(text)
    agent = AcceptRequest(tmp_path)
    with capture_logs() as logs:
        assert [agent.take(), agent.take()] == [False, False]
    assert [each["event"] for each in logs] == ["accept_request_not_taken"]


def test_request_that_cannot_be_removed_is_not_taken_for_ever(tmp_path: Path) -> None:
    (tmp_path / "accept").mkdir()
    with capture_logs() as logs:
        assert not AcceptRequest(tmp_path).take()
    assert [each["event"] for each in logs] == ["accept_request_not_taken"]


def test_nobody_can_be_asked_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ApplyError, match="cannot be written"):
        AcceptRequest(tmp_path / "nowhere").hand_over(1)
