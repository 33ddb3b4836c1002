"""Closing, unlocking, tidying: all of it is done, and never in the place of an error under way.

A `finally`, an `__exit__` or a callback that raises replaces the error because of which it runs: of
a full disk one would see where the last of five files was closed. So the package has none of them
that could raise; what is to be done at an end goes through `close` or `Closing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


def close(error: BaseException | None, *steps: Callable[[], object]) -> None:
    """Do all `steps`, in their order, whatever becomes of the others.

    Args:
      error: that is under way, or None.
      steps: what is to be done.

    Raises:
      BaseException: what the first failing step raised, once all are done, with a note of what
        the others raised. If an error is under way, nothing: the notes are on that one then, which
        a traceback shows (`--debug`).
    """
    # A generator that is closed ends by an exception too, and nothing is wrong.
    shown = None if isinstance(error, GeneratorExit) else error
    raised = None
    for step in steps:
        try:
            step()
        # Of Ctrl-C as well: it ends the step it meets, and what is left is done all the same.
        except BaseException as another:
            if shown is None:
                shown = raised = another
            elif another is not shown:
                shown.add_note(f"while closing: {type(another).__name__}: {another}")
    if raised is not None:
        raise raised


class Closing:
    """Steps to be done at the end of a `with` block; see `close`.

    What is entered or added inside the block is left in the opposite order, and then the `steps`
    are done in theirs.
    """

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps: list[Callable[[BaseException | None], object]] = []
        for step in reversed(steps):
            self.step(step)

    def __enter__(self) -> Closing:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        steps, self._steps = self._steps, []
        close(error, *[lambda step=step: step(error) for step in reversed(steps)])

    def step(self, action: Callable[..., object], *args: Any) -> None:
        """Do `action(*args)` at the end."""
        self._steps.append(lambda _: action(*args))

    def enter(self, manager: Any) -> Any:
        """Enter a context manager, which is left at the end, and return what it gives.

        It cannot keep an error from going on.
        """
        kind = type(manager)
        value = kind.__enter__(manager)
        self._steps.append(
            lambda error: kind.__exit__(
                manager, type(error) if error else None, error, error and error.__traceback__
            )
        )
        return value
