"""What a flag of a door may hold; anything else is refused while flags are read, in one line.

    flags.DEFINE(flag_kinds.Path(), "out", None, "The file to write.")
    flags.DEFINE(flag_kinds.Number(least=0, most=1), "max_bad_fraction", None, "...")

No shell replaces the `~` behind `--out=`, so a path does. Numbers are finite and within limits:
absl's own kinds let `nan` pass.
"""

from __future__ import annotations

import math
import os
import pathlib
import re

from absl import flags

DIGITS = 30  # of a whole number: more are no number that anybody means


class Path(flags.ArgumentParser):
    """A file or a directory, or a word that stands for one; `~` is the user's home."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        """Return the path with its `~` replaced.

        Raises:
          ValueError: if it is the home of a user whom there is not.
        """
        return at_home(argument)


class Paths(flags.ListParser):
    """Several, with commas."""

    syntactic_help = "paths with commas"

    def parse(self, argument: str | list[str]) -> list[str]:
        """Return the paths. Raises as `Path`."""
        return [at_home(path) for path in super().parse(argument)]


class Number(flags.ArgumentParser):
    """A finite number.

    Args:
      least, most: limits that it may have.
      above: a limit that it may not have.
    """

    def __init__(
        self, least: float = -math.inf, most: float = math.inf, above: float | None = None
    ):
        self._least, self._most, self._above = least, most, above
        said = [f"above {above:g}"] if above is not None else []
        said += [f"{least:g} or more"] if least > -math.inf else []
        said += [f"at most {most:g}"] if most < math.inf else []
        self._rule = ", ".join(["a finite number"] + [" and ".join(said)] * bool(said))
        self.syntactic_help = self._rule

    def parse(self, argument: str | float) -> float:
        """Return the number.

        Raises:
          ValueError: if it is none, or out of its limits.
        """
        try:
            value = float(argument)
        except ValueError:
            value = math.nan
        good = math.isfinite(value) and self._least <= value <= self._most
        if not good or (self._above is not None and value <= self._above):
            raise ValueError(f"it must be {self._rule}")
        return value

    def flag_type(self) -> str:
        """Return what absl calls it."""
        return "float"


class Whole(flags.ArgumentParser):
    """A whole number from `least` to `most`."""

    def __init__(self, least: int = 0, most: int = 2**63 - 1):
        self._least, self._most = least, most
        named = f"at most {most}" if most < 2**63 - 1 else ""
        self._rule = " and ".join(part for part in (f"{least} or more", named) if part)
        self.syntactic_help = f"a whole number, {self._rule}"

    def parse(self, argument: str | int) -> int:
        """Return the number.

        Raises:
          ValueError: if it is none, or out of its limits.
        """
        text = str(argument)
        try:
            value = int(text) if len(text) <= DIGITS else None
        except ValueError:
            value = None
        if value is None or not self._least <= value <= self._most:
            raise ValueError(f"it must be a whole number, {self._rule}")
        return value

    def flag_type(self) -> str:
        """Return what absl calls it."""
        return "int"


def at_home(path: str) -> str:
    """Return a path whose `~`, or `~user`, is replaced; after a comma as well.

    Raises:
      ValueError: if there is no such user.
    """
    parts = re.split(r"(?<=,)(?=~)", path)
    for i, part in enumerate(parts):
        if not part.startswith("~"):
            continue  # as it is: a URL would not survive being made a path
        try:
            parts[i] = os.fspath(pathlib.Path(part).expanduser())
        except RuntimeError:
            user = part.split("/")[0]
            raise ValueError(f"there is no home of {user}: write its directory in full") from None
    return "".join(parts)
