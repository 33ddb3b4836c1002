"""Segments that a finished run was extended by, each with a learning rate of its own.

The steps that a recipe says are the plan. An extension adds steps behind them, and says for these
how the rate rises, how high, and where it ends. `config.json` keeps the list beside the recipe.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from simclr_jax.errors import UserError

KEY = "segments"  # in `config.json`
MOST = 10**12  # steps


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps that were added to a run after its end.

    Attributes:
      first_step: updates finished when it begins, which is where what was before it ended.
      total_steps: updates finished when it ends.
      warmup_steps: in which its rate rises from 0 to its peak.
      peak_rate: of its learning rate.
    """

    first_step: int
    total_steps: int
    warmup_steps: int
    peak_rate: float

    @property
    def steps(self) -> int:
        """Return its length."""
        return self.total_steps - self.first_step


class Extension(NamedTuple):
    """What a user asks for.

    Attributes:
      to: "EPOCHS", or "Nsteps": the length of the whole run afterwards.
      base_lr: of which `optim.lr_scaling` makes the peak of the rate; None: that of the run.
      warmup_epochs: None: those of the recipe, a tenth of what is added at most.
    """

    to: str
    base_lr: float | None = None
    warmup_epochs: float | None = None


def length(to: str) -> tuple[float, int]:
    """Return the epochs that `Extension.to` says, or 0 and the steps.

    Raises:
      UserError: if it says neither.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(steps)?", to.strip())
    number = float(match[1]) if match else 0.0
    whole = match is not None and (not match[2] or "." not in match[1])
    if not match or not whole or not 0 < number <= MOST:
        raise UserError(
            f'--extend_to is "{to[:80]}": give the epochs of the whole run, such as 200, or its '
            "steps, such as 5000steps"
        )
    return (0.0, int(match[1])) if match[2] else (number, 0)


def of_record(record: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Return the segments in the record of a run.

    Raises:
      UserError: if they are none, or do not follow one another.
    """
    try:
        found = msgspec.convert(record.get(KEY, []), tuple[Segment, ...])
    except msgspec.ValidationError as error:
        raise UserError(f"{KEY}: {error}") from error
    for one in found:
        rises = 0 <= one.warmup_steps < one.steps
        if not (0 < one.first_step < one.total_steps <= MOST and rises):
            raise UserError(
                f"{KEY} has steps {one.first_step} to {one.total_steps}, of which "
                f"{one.warmup_steps} are warm-up: no run can have such"
            )
        if not (math.isfinite(one.peak_rate) and one.peak_rate > 0):
            raise UserError(f"{KEY} has peak_rate {one.peak_rate}: it must be above 0")
    for before, after in itertools.pairwise(found):
        if after.first_step != before.total_steps:
            raise UserError(
                f"{KEY} has one from step {after.first_step}, and the one before ends at "
                f"{before.total_steps}"
            )
    return found


def kept(segments: Sequence[Segment]) -> dict[str, Any]:
    """Return what `config.json` says of segments, nothing where there are none."""
    return {KEY: msgspec.to_builtins(list(segments))} if segments else {}


def begins(before: Any, now: Any) -> bool:
    """Tell whether what a record says now of segments is what was there, and maybe more."""
    older, newer = before or [], now or []
    return list(newer[: len(older)]) == list(older)
