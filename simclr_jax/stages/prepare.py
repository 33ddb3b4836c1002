"""From a recipe and a place to run it to a run that may start: all fields set, images open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import fields, segments, validation
from simclr_jax.data import sources
from simclr_jax.data.sources import Opened, Source, Trained, Unseen
from simclr_jax.stages import build, heritage, pretrain, scored
from simclr_jax.stages import labels as label_choice
from simclr_jax.stages.adapt import adapt, as_before
from simclr_jax.stages.inherit import inherit
from simclr_jax.train import timetable as timetables
from simclr_jax.train.timetable import Timetable


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A recipe with every field set, and its images.

    Attributes:
      config: the recipe.
      images: all of the training split.
      train: those of them to learn from, without labels that may not be used.
      test: held-out images.
      timetable: the run in numbers.
      chosen: lines about fields that the recipe left open.
      trained_on: what it trains on, and those it comes from, see `heritage`; empty of a run that is
        resumed and too old to say so.
      notes: lines about what is scored.
      labels: that it and those it comes from learn from.
    """

    config: ConfigDict
    images: Source
    train: Source
    test: Source
    timetable: Timetable
    chosen: list[str]
    trained_on: list[Trained]
    notes: tuple[str, ...]
    labels: heritage.Budget

    @property
    def protocol(self) -> dict[str, str]:
        """Return what results say of labels and scored images, where there is anything to say."""
        notes = {"scored images": "; ".join(self.notes)} if self.notes else {}
        return {**self.labels.protocol, **notes}

    def about(self) -> list[str]:
        """Return lines about the images, which a user should know before waiting for a run."""
        train, test = self.train, self.test
        labels = f"{train.classes} classes" if train.classes else "no labels"
        counts = f"images    {len(train)} to learn from, {len(test)} held out, {labels}"
        about = (*sources.notes(train), *sources.notes(test), *self.notes)
        notes = dict.fromkeys((*about, *scored.notes(self.config, self.images, test)))
        said = [f"labels    {self.labels.line}"] if self.labels.line else []
        return [counts, *said, *(f"note      {note}" for note in notes)]


def prepare(
    config: ConfigDict,
    devices: int,
    kept: epath.Path | None = None,
    before: Mapping[str, Any] | None = None,
    open_all: Callable[..., Opened] = sources.open_all,
    read: heritage.Read | None = None,
) -> Prepared:
    """Check everything that can be known before a model is built.

    That a run to start from, or a teacher, fits is checked later: a pipeline has yet to train them.

    Args:
      config: a recipe.
      devices: over which a batch is spread.
      kept: where a run that is resumed keeps its index of images.
      before: the recipe of that run.
      open_all: see `data.sources.open_all`.
      read: looks up the runs that this one comes from, see `heritage.of_recipe`.

    Raises:
      UserError: for whatever a user can put right.
    """
    fields.known(config)
    config, inherited = inherit(config, before)
    validation.validate(config, devices, before)
    if before is None:
        sources_of = heritage.of_recipe(config, read)
        unseen = Unseen(sources_of, heritage.REMEDY, config.eval.seen)
        opened = open_all(config.data, kept, unseen)
        notes = opened.notes
    else:  # whose sources may be gone
        recorded = heritage.recorded(before)
        sources_of = heritage.of_others(recorded)
        opened = open_all(config.data, kept, held_out=recorded[0].held_out if recorded else None)
        notes = heritage.notes(before)
    images, test = opened.train, opened.test
    train, labels = images, heritage.Budget(0)
    if config.stage in fields.LABELLED:
        if config.stage == "finetune" or test.classes:
            label_choice.check(config, test, "held-out")
        train = label_choice.restrict(config, images)
        labels = heritage.budget(config, opened, train, sources_of)
    if before is None:
        config, chosen = adapt(config, train, test)
    else:
        config, chosen = as_before(config, before), []
    validation.validate(config, devices, before)
    if config.stage not in fields.LABELLED:
        pretrain.check_sample(config, train)
    build.check_images(config, train, test)
    timetable = timetables.make(config, len(train), segments.of_record(before or {}))
    if config.stage not in fields.LABELLED:
        pretrain.check(config, timetable, train)
    if before is None:
        recorded = [*heritage.own(config, opened, train), *sources_of]
    return Prepared(
        config,
        images,
        train,
        test,
        timetable,
        [*inherited, *chosen],
        recorded,
        notes,
        labels,
    )
