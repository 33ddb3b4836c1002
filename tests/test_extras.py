"""What a user is told to install: packages that are what they seem, for every extra."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from simclr_jax import extras
from simclr_jax.errors import UserError

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SOURCES = [*(ROOT / "simclr_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
LAUNCH = [path for path in (ROOT / "launch").iterdir() if path.is_file()]
TOLD = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *LAUNCH, *SOURCES]
USED = sorted(
    {
        name
        for path in SOURCES
        for name in re.findall(r"extras\.install\(['\"](\w+)", path.read_text())
    }
)
# With -e it is a directory that is installed, and behind a / or before a version a file.
NAMED = re.compile(r"pip install(?![^\n|]* -e )[^\n|]*(?<![/\w])simclr[-_]jax(?![\w/.]|-\*|-\d)")


@pytest.mark.parametrize("extra", USED)
def test_the_command_has_the_packages_of_the_extra(extra):
    said = extras.install(extra)
    assert said.startswith("pip install ") and "simclr" not in said
    for wanted in DECLARED[extra]:
        name, *limits = re.findall(r"[\w\[\]-]+|[<>=]+[\d.]+", wanted)
        assert name in said and all(limit in said for limit in limits)


def test_what_is_not_installed_is_a_clone(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert extras.install("tf") == "pip install -e '.[tf]' in a clone of the repository"


@pytest.mark.parametrize("path", TOLD, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_is_told_to_install_a_name_that_nobody_holds(path):
    """Whoever registers it could run anything on the machine of a reader."""
    text = path.read_text()
    assert not NAMED.search(text) and "simclr-jax[" not in text


@pytest.mark.parametrize(
    "text, named",
    [
        ("pip install simclr-jax", True),
        ("`pip install 'simclr_jax[tf]'`", True),
        ("pip install -e '.[tf]' in simclr_jax", False),
        ("pip install -q -e 'simclr_jax[tpu]'", False),  # a directory
        ("pip install dist/simclr_jax-*.whl", False),
        ("pip install numpy\nsimclr_jax", False),
    ],
)
def test_the_rule_sees_names_and_no_files(text, named):
    assert bool(NAMED.search(text)) == named


@pytest.mark.parametrize("error", [RuntimeError, OSError, ImportError])
def test_a_package_that_does_not_import_is_one_line(error):
    """As torchvision for CUDA beside torch for CPUs, or a library that is missing."""
    words = r"--x needs one, .* does not import \(no op here\): install builds"
    with pytest.raises(UserError, match=words), extras.needed("--x", "one", "two"):
        raise error("no\nop  here")
    other = ModuleNotFoundError("no", name="three")  # a module that is none of theirs
    with pytest.raises(ModuleNotFoundError), extras.needed("--x", "one"):
        raise other
