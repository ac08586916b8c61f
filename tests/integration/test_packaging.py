"""What is built is whole: the sdist, a wheel made from it, and the command installed from that wheel."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import discovery

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted(
    path.relative_to(ROOT / "templates").as_posix()
    for path in (ROOT / "templates").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel that was built from it, without a network."""
    # A copy, for setuptools leaves its build directory in the tree and reads it the next time.
    tree = tmp_path_factory.mktemp("tree")
    for name in ("discovery", "templates"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)
    run(sys.executable, "-m", "build", "--no-isolation", str(tree), cwd=tree)
    return tree / "dist"


@pytest.fixture(scope="module")
def bin_directory(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of a new environment with the wheel; its dependencies are those of the tests' own."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel))
    # After the environment's own packages on the path, so that its discovery is the one that is found.
    (site_packages,) = place.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def run(*command: str, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def carried(names: list[str], prefix: str) -> list[str]:
    return sorted(
        name.removeprefix(prefix) for name in names if name.startswith(prefix) and not name.endswith("/")
    )


def test_there_are_templates_to_carry() -> None:
    assert {"haproxy/haproxy.cfg.j2", "systemd/discovery-agent.service"} < set(TEMPLATES)


def test_the_wheel_carries_the_templates_and_says_that_it_is_typed(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert carried(names, "discovery/templates/") == TEMPLATES
    assert "discovery/py.typed" in names
    modules = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "discovery").rglob("*.py"))
    assert [name for name in modules if name not in names] == []


def test_the_sdist_carries_the_templates(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
    assert carried(names, f"{sdist.name.removesuffix('.tar.gz')}/templates/") == TEMPLATES


def test_the_installed_command_runs_outside_the_checkout(bin_directory: Path, tmp_path: Path) -> None:
    out = run(str(bin_directory / "discovery"), "--help", cwd=tmp_path)
    assert "Usage: discovery" in out
    assert "announce" in out


def test_the_installed_package_finds_its_templates(bin_directory: Path, tmp_path: Path) -> None:
    program = (
        "import discovery, importlib.resources as resources\n"
        "print(discovery.__file__)\n"
        "print(resources.files('discovery.templates').joinpath('haproxy/haproxy.cfg.j2').is_file())"
    )
    where, found = run(str(bin_directory / "python"), "-c", program, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(bin_directory.parent)
    assert found == "True"


def test_tox_tests_what_is_installed() -> None:
    if "TOX_ENV_NAME" not in os.environ:
        pytest.skip("not run by tox")
    assert Path(discovery.__file__).is_relative_to(sys.prefix)
