"""What an installed package has: every module, every recipe, a command, and nothing else."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BUILD = (
    "import sys; from setuptools import build_meta; "
    "print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
)
RECIPES = {path.name: path.read_bytes() for path in (ROOT / "configs").glob("*.py")}
MODULES = {str(path.relative_to(ROOT)) for path in (ROOT / "simclr_jax").rglob("*.py")}


def build(kind, source, out):
    """Build with the setuptools of this environment; return the file."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77", reason="make test installs the extra dev")
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "out"))
    unwanted = shutil.ignore_patterns("__pycache__", "golden", "*.egg-info")
    for part in ("simclr_jax", "configs", "benchmarks", "tests", "docs", "launch"):
        shutil.copytree(ROOT / part, source / part, ignore=unwanted)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    return build("sdist", source, out)


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the unpacked sdist, as `make wheel` does: so that has all that it takes."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("unpacked", "wheel"))
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    return build("wheel", next(source.iterdir()), out)


def test_a_wheel_is_the_package_and_its_recipes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == MODULES | {f"simclr_jax/configs/{name}" for name in RECIPES}
        for name, content in RECIPES.items():
            assert archive.read(f"simclr_jax/configs/{name}") == content
        about = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(about).decode())
    assert dict(parser["console_scripts"]) == {"simclr": "simclr_jax.command:main"}


def test_a_source_distribution_has_no_tests_and_no_benchmarks(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in names if name}
    assert {"simclr_jax", "configs", "setup.py", "LICENSE", "CHANGELOG.md"} <= tops
    assert not tops & {"tests", "benchmarks", "launch"}


def test_recipes_are_found_in_an_installed_package(wheel, tmp_path):
    """Unpacked where nothing else is: neither the clone nor a finder of an editable install."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "100"}

    def simclr(*arguments):
        command = [sys.executable, "-m", "simclr_jax", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"in {tmp_path / 'site' / 'simclr_jax' / 'configs'}" in simclr("recipes")
    said = [simclr("fields", name, "--changed") for name in ("digits", "configs/digits.py")]
    assert said[0] == said[1] and "optim.base_lr=12.0" in said[0]
    assert "model.width=2.0" in simclr("fields", "imagenet.py:width=2", "--prefix=model.width")


def test_the_citation_is_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'\nversion: "{version}"\n' in (ROOT / "CITATION.cff").read_text()
    heading = (ROOT / "CHANGELOG.md").read_text().splitlines()[2]
    assert heading.startswith(f"## {version}")
