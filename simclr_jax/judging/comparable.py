"""Whether runs may stand in one table: they were judged on the same images, seen at one size."""

from __future__ import annotations

from collections.abc import Mapping

from simclr_jax.errors import UserError

NONE = "none"


class Comparable:
    """Refuses a run that was judged on something else than the first.

    Args:
      asked: what asks for one table, such as a flag.
    """

    def __init__(self, asked: str):
        self._asked = asked
        self._first: tuple[str, dict[str, str]] | None = None

    def add(self, run: str, on: Mapping[str, str]) -> None:
        """Compare a run with the first one.

        Args:
          run: what a person calls it.
          on: what it was judged on, by what a person calls that, such as "held-out images".

        Raises:
          UserError: naming both and what differs.
        """
        if self._first is None:
            self._first = run, dict(on)
            return
        first, of_first = self._first
        pairs = {
            what: (of_first.get(what, NONE), on.get(what, NONE)) for what in {**of_first, **on}
        }
        differ = [f"{what} ({a}; {b})" for what, (a, b) in pairs.items() if a != b]
        if differ:
            raise UserError(
                f"{self._asked}: {first} and {run} are judged on other {', other '.join(differ)}, "
                "so their scores do not go into one table: leave one out"
            )
