"""Packages that only some exports need: one that is missing is said in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from simclr_jax.errors import UserError


@contextlib.contextmanager
def needed(what: str, *packages: str) -> Iterator[None]:
    """Import some packages inside; what is missing of them is a `UserError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in packages:
            raise
        raise UserError(
            f"{what} needs {missing}, which is not installed: pip install {' '.join(packages)}"
        ) from error
