"""The package in bare environments, of every Python here and with every set of extras.

Each environment is made and filled by pip, from a copy without this repository's own environment.
Minutes each: `make test-release`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.release

ROOT = Path(__file__).parents[2]
EXTRAS = ("", "images", "tf", "parquet", "images,tf,gcs,parquet")
SHORT = (
    "--config=digits",
    "--config.train.steps=20",
    "--config.optim.warmup_epochs=0.5",
    "--config.train.batch_size=64",
    "--config.log.every_steps=5",
)


def pythons() -> list[str]:
    """Return one interpreter of each version from 3.11 on: this one, those of pyenv, of PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {f"3.{sys.version_info.minor}": sys.executable}
    for version in (f"3.{minor}" for minor in range(11, 20)):
        there = [*sorted(pyenv.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")]
        for python in filter(None, there):
            found.setdefault(version, str(python))
    return list(found.values())


def run(*command, cwd):
    """Run a command outside this repository's environment; return what it said."""
    hidden = ("PYTHONPATH", "XLA_FLAGS", "JAX_PLATFORMS", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def installed(python, extras, folder, editable=False):
    """Make an environment, install a copy of the project there.

    Returns:
      Its interpreter, and a directory in which nothing of the project is.
    """
    source = folder / "source"
    for part in ("simclr_jax", "configs"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, source / part, ignore=unwanted)
    for part in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    home = folder / "home"
    home.mkdir()
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    own = str(folder / "venv" / "bin" / "python")
    wanted = f".[{extras}]" if extras else "."
    run(own, "-m", "pip", "install", "-q", *["-e"] * editable, wanted, cwd=source)
    run(own, "-m", "pip", "check", cwd=source)
    return own, home


# Every Python with the core, and every set of extras with this Python.
MATRIX = [(p, e) for p, e in itertools.product(pythons(), EXTRAS) if not e or p == sys.executable]


@pytest.mark.parametrize("python, extras", MATRIX)
def test_a_bare_install_trains_judges_and_reports(python, extras, tmp_path):
    own, home = installed(python, extras, tmp_path)
    workdir, checkpoint = (f"--{flag}={tmp_path / 'run'}" for flag in ("workdir", "checkpoint"))
    said = run(own, "-m", "simclr_jax.main", *SHORT, workdir, cwd=home)
    assert "pretrained encoder" in said and "untrained encoder" in said
    said = run(own, "-m", "simclr_jax.linear_probe", checkpoint, "--solver=knn", cwd=home)
    assert "top-1" in said
    run(Path(own).parent / "simclr", "report", checkpoint, cwd=home)
    assert list(tmp_path.rglob("report*.html"))


def test_an_editable_install_reads_the_recipes_of_the_clone(tmp_path):
    own, home = installed(sys.executable, "", tmp_path, editable=True)
    assert f"in {tmp_path / 'source' / 'configs'}" in run(
        own, "-m", "simclr_jax", "recipes", cwd=home
    )
    recipe = tmp_path / "source" / "configs" / "digits.py"
    recipe.write_text(recipe.read_text().replace("base_lr = 12.0", "base_lr = 7.5"))
    said = run(own, "-m", "simclr_jax", "fields", "digits", "--prefix=optim.base_lr", cwd=home)
    assert "optim.base_lr=7.5" in said


def test_a_door_without_its_extra_names_it(tmp_path):
    own, home = installed(sys.executable, "", tmp_path)
    command = (own, "-m", "simclr_jax.main", "--config=configs/imagenet.py")
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"], cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 1 and "pip install 'tensorflow" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
