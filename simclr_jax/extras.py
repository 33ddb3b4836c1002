"""How to install what is optional: the packages of an extra of pyproject.toml, by their own names.

Nobody holds the name of this package at PyPI, so `pip install` of it with an extra could bring
anybody's.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from importlib import metadata

from simclr_jax.errors import UserError


def install(extra: str) -> str:
    """Return the command that installs the packages of an extra."""
    try:
        lines = metadata.requires("simclr-jax") or []
    except metadata.PackageNotFoundError:  # a clone on PYTHONPATH
        lines = []
    asked = [re.fullmatch(rf"([^;]+);\s*extra\s*==\s*['\"]{extra}['\"]\s*", line) for line in lines]
    packages = [shlex.quote(found[1].replace(" ", "")) for found in asked if found]
    if not packages:
        return f"pip install -e '.[{extra}]' in a clone of the repository"
    return f"pip install {' '.join(packages)}"


@contextlib.contextmanager
def needed(what: str, *packages: str) -> Iterator[None]:
    """Import some packages inside; one that is missing or does not import is a `UserError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in packages:
            raise
        raise UserError(
            f"{what} needs {missing}, which is not installed: pip install {' '.join(packages)}"
        ) from error
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # a library of theirs, or one of the other
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{what} needs {packages[0]}, which is there and does not import ({reason}): install "
            f"builds that go together: pip install --force-reinstall {' '.join(packages)}"
        ) from error
