"""What a method of pretraining says of itself, and where methods are found.

Everybody who must know something of a method before or after it trains (recipes, validation, plan,
report, warm start, optimisers) reads its `Declaration`; nobody knows methods by name. A method is a
module with two names in it: `DECLARATION`, and `make`, which builds it (`frame/method.py`).
`config.method` names a file of `simclr_jax/methods/`, or any importable module by its dotted name,
such as `my_project.my_method`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.errors import UserError, choose, printable

HOME = "simclr_jax.methods"
LOCAL = "local"  # the group of views that are local crops, see `losses/multi_crop.py`
TWO_AND_LOCAL = {"views": (2, 2), LOCAL: (0, None)}  # views of a method that can use them
DEFAULT = "simclr"  # of recipes that name no method, and of runs older than the field


class Field(NamedTuple):
    """A field of a method's own group in the recipe, `config.NAME.FIELD`.

    Attributes:
      default: its type is that of the field; a number that may be fractional is a float.
      about: what it means, in a few words.
      rule: what values it may take, in words.
      holds: the rule.
    """

    default: Any
    about: str
    rule: str = ""
    holds: Callable[[Any], bool] = lambda value: True


class Unread(NamedTuple):
    """Why a recipe does not read a field that others read.

    Attributes:
      who: does not read it, such as "instdisc.loss=softmax".
      instead: the flag by which it would be read, such as "--config.instdisc.loss=nce".
    """

    who: str
    instead: str


class Chart(NamedTuple):
    """Metrics that share an axis in the report, with what each is called.

    Attributes:
      title: above the chart.
      metrics: from the name of a metric to what it is called.
      percent: whether they are fractions.
      caption: below the chart.
    """

    title: str
    metrics: Mapping[str, str]
    percent: bool = False
    caption: str = ""


def _nothing(config: ConfigDict) -> None:
    """Do nothing to a recipe."""


def _all_read(config: ConfigDict) -> Mapping[str, Unread]:
    """Say that each field is read whatever the others are."""
    return {}


def _unknown(config: ConfigDict) -> float | None:
    """Know no loss of an encoder that has learned nothing."""
    return None


def _nothing_held(config: ConfigDict, examples: int) -> int:
    """Hold nothing between epochs: most methods."""
    return 0


def _nothing_left(config: ConfigDict) -> float:
    """Say that a loss can fall to zero."""
    return 0.0


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a method says of itself.

    Attributes:
      title: what a person calls it, such as "SimCLR".
      views: for each group of views how many it looks at, the fewest and the most (None: any).
      recipe: sets in a recipe what the method wants otherwise than SimCLR: policies, head, ...
      reads: what it reads of the groups `loss`, `memory` and `head` of a recipe: whole groups, or
        fields such as `loss.temperature`. To set another is a mistake.
      fields: its own fields, by name, in the group of the recipe that is called as the method.
      unread: from a recipe to those of `reads` and `fields` that are not read because of what
        others say, by their dotted names. To set one of them is a mistake.
      check: raises `UserError` for fields that do not go together; those of `recipes.OPEN` may be
        None.
      check_sample: likewise, from a recipe and some of the training images, uint8 `[h, w, c]` each,
        for images from which nothing can be learned; None: it learns from any.
      labels: whether labels of training images teach it.
      chance: from a whole recipe to the metric `loss` of an encoder that has learned nothing.
      chance_at: likewise from a recipe and numbers of finished steps, `[n]`, to that loss in each
        of the steps that follow, where it is another at first; None: it is `chance` all along.
      floor: likewise to the loss of one that has learned all; "hardly anything has been learned"
        is said by the way from chance to there, and not at all of a method that returns None.
      between_epochs: from a whole recipe and the number of training images to the bytes that every
        device holds beside the state while something is made before an epoch, float32.
      of_images: whether chance, chance_at and floor depend on how many training images there
        are, of each of which the method keeps something; they take that number as one more
        argument.
      parts: of its network beside encoder, head and probe, all that there always are. They can be
        taken over by `init.parts`, and are not judged.
      roles: what the optimiser takes parameters for whose names do not say it, by the beginning of
        their path, such as `{"predictor/temperature": "bias"}`; see `optim/masks.py`.
      charts: its own metrics in the report.
    """

    title: str
    views: Mapping[str, tuple[int, int | None]] = dataclasses.field(
        default_factory=lambda: {"views": (2, 2)}
    )
    recipe: Callable[[ConfigDict], None] = _nothing
    reads: tuple[str, ...] = ()
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    unread: Callable[[ConfigDict], Mapping[str, Unread]] = _all_read
    check: Callable[[ConfigDict], None] = _nothing
    check_sample: Callable[[ConfigDict, Sequence[np.ndarray]], None] | None = None
    labels: bool = False
    chance: Callable[..., float | None] = _unknown
    chance_at: Callable[..., np.ndarray] | None = None
    floor: Callable[..., float | None] = _nothing_left
    of_images: bool = False
    between_epochs: Callable[[ConfigDict, int], int] = _nothing_held
    parts: tuple[str, ...] = ()
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    charts: tuple[Chart, ...] = ()


def known() -> tuple[str, ...]:
    """Return the names of the methods that come with the package."""
    package = importlib.import_module(HOME)
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def module(method: str) -> ModuleType:
    """Return the module of a method.

    Raises:
      UserError: if there is no such method, or the module is none.
    """
    if "." not in method:
        choose("method", method, known())
        return importlib.import_module(f"{HOME}.{method}")
    if not all(part.isidentifier() for part in method.split(".")):
        raise UserError(
            f"method is {printable(method)[:80]}, which is no dotted name of a module: give one, "
            f"or any of {', '.join(known())}"
        )
    try:
        found = importlib.import_module(method)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{method}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise UserError(
            f"method is {method}, but there is no module {error.name}: install it, or put its "
            "directory on PYTHONPATH"
        ) from error
    for name in ("DECLARATION", "make"):
        if not hasattr(found, name):
            raise UserError(
                f"method is {method}, but that module has no {name}: see simclr_jax/methods/"
            )
    return found


def find(method: str) -> Declaration:
    """Return what a method says of itself; raise `UserError` if there is no such method."""
    return module(method).DECLARATION


def group(method: str) -> str:
    """Return the group of a recipe that holds the method's own fields."""
    return method.rpartition(".")[2]
