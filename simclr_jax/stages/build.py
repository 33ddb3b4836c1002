"""From a recipe to the parts that every stage is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from simclr_jax import validation
from simclr_jax.augment.policy import Policy
from simclr_jax.data import sources
from simclr_jax.data.sources import Images, Source
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.average import Variables
from simclr_jax.frame.net import Recorder, project
from simclr_jax.models.inputs import COLOURED
from simclr_jax.optim import masks, optimizers, schedules
from simclr_jax.segments import Segment
from simclr_jax.stages.scored import lacking
from simclr_jax.train.timetable import Timetable
from simclr_jax.unlabelled import counted

# What becomes of a parameter, where not all are treated alike. As words for yes and no they name
# the same leaves of the optimiser's state as in older checkpoints.
MOVES, STILL = "True", "False"


def first_parts(
    config: ConfigDict, channels: int, classifier: tuple[str, int, int] | None = None
) -> Variables:
    """Return the first values of encoder, head and a classifier, as `{params, batch_stats}`.

    Args:
      config: a recipe.
      channels: of the images.
      classifier: its part (`probe` or `classifier`), the layer of the head it reads, and classes.

    Returns:
      For each of `params` and `batch_stats` the trees of the parts that have any.
    """
    parts: dict[str, nn.Module] = {
        "encoder": modules.encoder(config),
        "head": modules.projection_head(config),
    }
    if classifier:
        part, tap, classes = classifier
        parts[part] = modules.classifier(config, classes)
    net, side = Recorder(parts, jax.random.key(config.seed)), config.data.image_size
    hiddens = project(net, jnp.zeros((2, 1, side, side, channels), config.train.dtype))
    if classifier:
        net(part, hiddens[tap])
    return net.variables


def first_variables(config: ConfigDict, channels: int) -> Variables:
    """Return the first values of encoder and head on the host, see `first_parts`."""
    return jax.device_get(jax.jit(lambda: first_parts(config, channels))())


def policies(config: ConfigDict) -> dict[str, tuple[Policy, ...]]:
    """Return for each group of views, in the order of their names, the augmentation of its views.

    Inside a group they have the order of their names in the recipe, each as often as its `copies`.
    """
    groups: dict[str, tuple[Policy, ...]] = {}
    views = sorted(config.augment.views.items())  # first, second
    for _, view in sorted(views, key=lambda named: named[1].group):
        policy = Policy(
            size=config.data.image_size if view.size is None else view.size,
            crop=view.crop,
            area=(view.area_min, view.area_max),
            aspect=(view.aspect_min, view.aspect_max),
            crop_law=config.augment.crop_law,
            min_object_covered=view.min_object_covered,
            grid=config.augment.grid,
            clip_resized=config.augment.clip_resized,
            flip=view.flip,
            jitter=view.jitter,
            brightness=view.strength * view.brightness,
            contrast=view.strength * view.contrast,
            saturation=view.strength * view.saturation,
            hue=view.strength * view.hue,
            brightness_mode=config.augment.brightness_mode,
            grayscale=view.grayscale,
            blur=view.blur,
            blur_sigma=(view.blur_sigma_min, view.blur_sigma_max),
            solarize=view.solarize,
            solarize_threshold=view.solarize_threshold,
            grayscale_first=view.grayscale_first,
            precision=config.augment.precision,
            dtype=config.augment.dtype,
        )
        groups[view.group] = groups.get(view.group, ()) + (policy,) * view.copies
    return groups


def schedule(timetable: Timetable) -> optax.Schedule:
    """Return the learning rate over a run: that of its plan, then those of its segments."""
    segments = timetable.segments
    rates = [_planned(timetable), *(_extended(timetable, segment) for segment in segments)]
    return optax.join_schedules(rates, list(timetable.borders)) if segments else rates[0]


def peak(timetable: Timetable) -> optax.Schedule:
    """Return the peak of the rate in the segment that a step belongs to."""
    peaks = [timetable.peak_rate, *(segment.peak_rate for segment in timetable.segments)]
    rates = [optax.constant_schedule(rate) for rate in peaks]
    return optax.join_schedules(rates, list(timetable.borders)) if timetable.segments else rates[0]


def _planned(timetable: Timetable) -> optax.Schedule:
    """Return the rate that a recipe says: warm-up, then a cosine, by step or epoch, or drops."""
    t = timetable
    if t.drops:
        return schedules.warmup_drops(t.peak_rate, t.warmup_steps, t.drops, t.drop_factor)
    if t.cosine_epochs is None:
        return schedules.warmup_cosine(t.peak_rate, t.warmup_steps, t.planned_steps)
    return schedules.warmup_cosine_by_epoch(
        t.peak_rate, t.warmup_steps, t.cosine_epochs, t.epoch_starts
    )


def _extended(timetable: Timetable, segment: Segment) -> optax.Schedule:
    """Return the rate of a segment, by the steps since it began; where rates drop it stays."""
    t, rises = timetable, segment.warmup_steps
    if t.drops:
        return schedules.warmup_drops(segment.peak_rate, rises, ())
    if t.cosine_epochs is None:
        return schedules.warmup_cosine(segment.peak_rate, rises, segment.steps)
    ends = (segment.first_step + rises, segment.total_steps)
    first, last = (step * t.batch_size / t.examples for step in ends)
    starts = t.epoch_starts - segment.first_step
    return schedules.warmup_cosine_by_epoch(segment.peak_rate, rises, (first, last), starts)


def optimizer(
    config: ConfigDict,
    rate: optax.Schedule,
    *,
    learns: Callable[[tuple[str, ...]], bool] | None = None,
    rates: Mapping[str, optax.Schedule] | None = None,
    roles: Mapping[str, str] | None = None,
) -> optax.GradientTransformation:
    """Return the optimiser of a recipe.

    Args:
      config: a recipe.
      rate: the learning rate.
      learns: does the parameter at a path such as `("head", "dense1", "bias")` learn? The others
        stay as they are. None: all learn.
      rates: the learning rates of parts that have another.
      roles: of parameters whose names do not say it, see `optim/masks.py`.
    """
    rates = rates or {}
    if not (learns or rates):
        return _one_rate(config, rate, roles)

    def label(path: Any, _: Any) -> str:
        names = tuple(str(key.key) for key in path)
        if learns and not learns(names):
            return STILL
        return names[0] if names[0] in rates else MOVES

    made = {MOVES: _one_rate(config, rate, roles), STILL: optax.set_to_zero()}
    made |= {part: _one_rate(config, own, roles) for part, own in rates.items()}
    return optax.partition(made, lambda params: jax.tree_util.tree_map_with_path(label, params))


def _one_rate(
    config: ConfigDict, rate: optax.Schedule, roles: Mapping[str, str] | None
) -> optax.GradientTransformation:
    o = config.optim

    def mask(*of: str) -> optimizers.Mask:
        return functools.partial(masks.mask, roles=of, declared=roles)

    def decayed(usual: tuple[str, ...]) -> optimizers.Mask:
        return mask(*(masks.ROLES if o.decayed == "all" else usual))

    if o.name == "lars":
        adapted = (*masks.LARS_ADAPTED, *(["classifier"] if o.adapt_classifier else []))
        return optimizers.lars(
            rate,
            momentum=o.momentum,
            weight_decay=o.weight_decay,
            trust_coefficient=o.trust_coefficient,
            rate_in_momentum=not o.rate_after_momentum,
            decayed=decayed(masks.LARS_DECAYED),
            adapted=mask(*adapted),
        )
    if o.name == "sgd":
        return optimizers.sgd(
            rate,
            momentum=o.momentum,
            weight_decay=o.weight_decay,
            nesterov=o.nesterov,
            rate_in_momentum=o.rate_in_momentum,
            decayed=decayed(masks.SGD_DECAYED),
        )
    make, usual = {
        "adam": (optimizers.adam, masks.SGD_DECAYED),
        "adamw": (optimizers.adamw, masks.ADAMW_DECAYED),
    }[o.name]
    return make(rate, weight_decay=o.weight_decay, decayed=decayed(usual))


def check_images(config: ConfigDict, train: Source, test: Source) -> None:
    """Check that a data set has what the recipe asks of it.

    Raises:
      UserError: if labels are missing, images are too small to crop, or the splits do not match.
    """
    policies(config)  # its own checks, before anything is written
    own = {name: view.size for name, view in config.augment.views.items() if view.size is not None}
    for source in (train, test):
        sources.check_views(source, {f"augment.views.{name}.size": own[name] for name in own})
    wanted = [name for name in ("probe", "knn") if config.eval[name]]
    looked_at = "knn" in wanted or (config.stage == "pretrain" and config.eval.compare)
    if wanted and (why := lacking(train, test, looked_at)):
        fields = " ".join(f"--config.eval.{name}=False" for name in wanted)
        raise UserError(f"{why}, which eval.{wanted[0]} needs: set {fields}")
    if wanted and (train.multi_label or test.multi_label):
        fields = " ".join(f"--config.eval.{name}=False" for name in wanted)
        raise UserError(
            f"images may have several labels, for which eval.{wanted[0]} is not made: set {fields}"
        )
    if train.channels != test.channels:
        raise UserError(
            f"training images have {train.channels} channel(s), evaluation images "
            f"{test.channels}: give both the same"
        )
    if config.model.input in COLOURED and train.channels != 3:
        raise UserError(
            f"model.input is {config.model.input}, made of 3 channels, but the images have "
            f"{train.channels}: set --config.model.input=rgb"
        )
    if len(test) < 2:
        raise UserError(f"there is {len(test)} image to evaluate on: raise data.holdout_fraction")
    compared = config.stage == "pretrain" and config.eval.compare
    if compared and not train.multi_label and not lacking(train, test):
        _check_few_labels(config.eval.few_labels, train)
    if isinstance(train, Images) and isinstance(test, Images):
        _check_sizes(config, train, test)


def _check_few_labels(few: int, train: Source) -> None:
    labels = train.labels
    assert labels is not None  # there are classes
    counts = np.bincount(labels[counted(labels)])
    fewest = counts[counts > 0].min()
    if fewest < few:
        raise UserError(
            f"eval.few_labels is {few}, but a class has only {fewest} training images: "
            f"set --config.eval.few_labels={fewest}"
        )


def _check_sizes(config: ConfigDict, train: Images, test: Images) -> None:
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise UserError(
            f"training images are {train.pixels.shape[1:]}, evaluation images "
            f"{test.pixels.shape[1:]}: give both the same size"
        )
    validation.smallest_crop(config, *train.pixels.shape[1:3])
