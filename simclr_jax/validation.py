"""What the fields of a recipe may be together; by itself, each is the matter of `fields.py`.

All that can be known before data is read or a model built is checked here, once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import declaration, fields, recipes, records, segments, view_rules
from simclr_jax.declaration import Unread
from simclr_jax.errors import UserError
from simclr_jax.recipes import get, head_layers

# Groups that other stages do not read. To set what is not read is a mistake.
READ_BY: dict[str, tuple[str, ...]] = {
    "labels": fields.LABELLED,
    "finetune": fields.LABELLED,
    "distill": ("distill",),
}

# Groups that some methods of pretraining read and others do not. No other stage reads them, but the
# head.
READ_BY_METHODS = ("loss", "memory", "head")


def validate(config: ConfigDict, devices: int, before: Mapping[str, Any] | None = None) -> None:
    """Check everything that can be known before data is read or a model built.

    Args:
      config: a recipe; fields of `OPEN` that are None are left for later.
      devices: over which the batch is to be spread.
      before: the record of a run that is resumed. What it has of fields that nothing reads stands,
        for it was begun before they were refused.

    Raises:
      UserError: naming the first field found wrong, its value and what would be right.
    """
    c, known = config, fields.known(config)
    fields.check_values(c)
    fields.check_paths(c)
    if c.data.split == c.data.eval_split:
        raise UserError(
            f'data.eval_split is "{c.data.eval_split}", the split that is trained on: name another'
        )
    if int(64 * c.model.width) < 1:
        raise UserError(f"model.width is {c.model.width}: 64 * width must be 1 channel or more")
    if c.model.sk_ratio > 0 and c.model.stem == "imagenet" and int(64 * c.model.width) < 2:
        raise UserError(
            f"model.width is {c.model.width}: the stem of selective kernels halves 64 * width, "
            "which must be 2 channels or more"
        )
    if c.model.sk_ratio > 0 and c.model.variant == "torchvision":
        raise UserError(
            f"model.sk_ratio is {c.model.sk_ratio}, but model.variant=torchvision has no selective "
            "kernels, nor their stem and shortcuts: set --config.model.sk_ratio=0.0, or "
            "--config.model.variant=official"
        )
    begun = None if before is None else records.recipe(before)
    _check_unread(c, known, _unread_by_others(c), begun)
    _check_stage(c, known, begun)
    if c.eval.seen and not (c.init.run or c.distill.teacher):
        raise UserError(
            "eval.seen is True, but there is no init.run or teacher that may have trained on what "
            "is scored: leave it at False"
        )
    _check_rate(c)
    view_rules.check_placement(c)
    _check_tap(c, "eval.probe_tap", c.eval.probe_tap)
    _check_tap(c, "finetune.tap", c.finetune.tap)
    if c.train.batch_size is not None:
        _check_batch(c.train.batch_size, devices)
        _check_groups(c.bn.groups, c.train.batch_size, devices)
        _check_parts(c.train.accumulate, c.bn.groups, c.train.batch_size, devices)
    for name in ("log.every_steps", "checkpoint.every_steps"):
        steps, call = get(c, name), c.train.steps_per_call
        if steps % call:
            near = max(call, round(steps / call) * call)
            raise UserError(
                f"{name} is {steps}, no multiple of train.steps_per_call={call}: "
                f"set --config.{name}={near}"
            )
    if c.train.reduce_dtype == "bfloat16" and c.train.dtype == "float64":
        raise UserError(
            "train.reduce_dtype is bfloat16, but train.dtype is float64, of which it would leave "
            "8 of 53 bits: set --config.train.reduce_dtype=float32"
        )
    for name in ("train.dtype", "distill.teacher_dtype"):
        if get(c, name) == "float64" and not _x64():
            raise UserError(f"{name} is float64: set the environment variable JAX_ENABLE_X64=1")


def stored(record: Mapping[str, Any]) -> ConfigDict:
    """Return the recipe in the record of a run that is there, each field by itself checked.

    What fields may be together is the matter of who trains by them.

    Raises:
      UserError: naming a field that recipes do not have, or that has a value it cannot have.
    """
    config = records.recipe(record)
    if "converted" in record:  # its stage is none that trains
        _check_converted(record["converted"])
        with (checked := recipes.copied(config)).unlocked():
            checked.stage = fields.CHOICES["stage"][0]
    else:
        checked = config
    fields.check_values(checked)
    segments.of_record(record)
    return config


def _check_converted(said: Any) -> None:
    """Check what a converted checkpoint says of itself, as far as anybody reads it."""
    tap = said.get("classifier_tap", "") if isinstance(said, Mapping) else ""
    if not (tap is None or type(tap) is int):
        raise UserError(
            f"converted is {str(said)[:80]}: it must be a group of fields, and classifier_tap in "
            "it a whole number or null"
        )


def _unread_by_others(c: ConfigDict) -> dict[str, Unread]:
    """Return the fields that no method reads because of what another field says.

    Not among them are those that a recipe sets for what one flag then switches off (sizes of a head
    that is none, settings of an evaluation or of an operation on views), nor what is set for
    whatever is chosen (`optim.rate_in_momentum` by an official flavour, `bn.unbiased_moving`).
    """
    found: dict[str, Unread] = {}

    def only(reads: bool, who: str, instead: str, *names: str) -> None:
        if not reads:
            found.update(dict.fromkeys(names, Unread(who, f"--config.{instead}")))

    head, o = f"a head of kind {c.head.kind}", f"optim.name={c.optim.name}"
    if c.stage not in fields.LABELLED:  # which take the head of another run as it is
        only(c.head.kind == "mlp", head, "head.kind=mlp", "head.bias", "head.norm")
    lars = ("rate_after_momentum", "trust_coefficient", "adapt_classifier")
    is_lars, is_sgd = c.optim.name == "lars", c.optim.name == "sgd"
    only(is_lars, o, "optim.name=lars", *(f"optim.{name}" for name in lars))
    only(is_sgd, o, "optim.name=sgd", "optim.nesterov")
    only(is_lars or is_sgd, o, "optim.name=sgd", "optim.momentum")
    starts = bool(c.init.run) or c.init.parts == "none"
    only(starts, "a run that starts from no other", "init.run=RUN", "init.parts")
    cosine = "a rate that falls as a cosine"
    only(bool(c.optim.drops), cosine, "optim.drops=120,160", "optim.drop_factor")
    law = f"augment.crop_law={c.augment.crop_law}"
    # That of local crops is set for the other law by whoever adds them.
    views = [name for name in c.augment.views if name != declaration.LOCAL]
    crops = [f"augment.views.{name}.min_object_covered" for name in views]
    only(c.augment.crop_law == "height", law, "augment.crop_law=height", *crops)
    placed, on_canvas = c.augment.placement, "augment.placement=canvas"
    who = f"augment.placement={placed}"
    only(placed == "canvas", who, on_canvas, "augment.canvas", "augment.jpeg_scaling")
    only(placed != "host", who, on_canvas, "augment.precision", "augment.dtype")
    order, parts = f"data.order={c.data.order}", ("block", "window", "lanes")
    blocks = [f"data.stream_{part}" for part in parts]
    only(c.data.order == "stream", order, "data.order=stream", *blocks)
    return found


def _check_unread(
    c: ConfigDict, known: dict, unread: Mapping[str, Unread], begun: ConfigDict | None
) -> None:
    """Raise `UserError` if one of the fields has neither its method's default nor SimCLR's."""
    common = recipes.base().to_dict()
    for name, (who, instead) in unread.items():
        value, usual = get(c, name), [get(known, name)]
        if name.startswith("optim."):  # a method's default may be of an optimiser left since
            usual.append(get(common, name))
        if begun is not None:
            usual.append(get(begun, name))
        if value not in usual:
            raise UserError(
                f"{name} is {value}, but {who} does not read it: leave it at {usual[0]}, or set "
                f"{instead}"
            )


def _check_rate(c: ConfigDict) -> None:
    """Check that the rate does not fall in two ways."""
    o = c.optim
    if o.drops and o.rate_per != "step":
        raise UserError(
            f"optim.rate_per is {o.rate_per}, of a cosine, but the rate drops at the epochs "
            f"{o.drops}: set --config.optim.rate_per=step"
        )


def _check_stage(c: ConfigDict, known: dict, begun: ConfigDict | None) -> None:
    for group, stages in READ_BY.items():
        if c.stage not in stages:
            _unread(c, known, group, f"stage {c.stage}")
    if c.stage not in fields.LABELLED:
        _check_method(c, known, begun)
        return
    for group in READ_BY_METHODS[:-1]:
        _unread(c, known, group, f"stage {c.stage}")
    if c.method != declaration.DEFAULT:
        raise UserError(
            f"method is {c.method}, but stage {c.stage} does not read it: leave it at "
            f"{declaration.DEFAULT}"
        )
    views = _counted(c)
    if views != {"views": 1}:
        raise UserError(
            f"augment.views has {sum(views.values())} views, stage {c.stage} looks at one: call "
            "simclr_jax.recipes.crop_and_flip in the recipe, or leave one"
        )
    for name in ("probe", "knn"):
        if c.eval[name]:
            raise UserError(
                f"eval.{name} belongs to stage pretrain: set --config.eval.{name}=False"
            )
    if c.stage != "distill":
        return
    if not c.distill.teacher:
        raise UserError("distill.teacher is empty: give --config.distill.teacher=RUN")
    if c.labels.use != "all" and c.distill.alpha == 1 and c.distill.images == "all":
        raise UserError(
            f"labels.use is {c.labels.use}, but distillation of all images with distill.alpha=1 "
            "reads no label: set --config.distill.alpha=0.5, say, or leave it at all"
        )


def _check_method(c: ConfigDict, known: dict, begun: ConfigDict | None) -> None:
    """Check the fields of a method by what it declares."""
    method, name = declaration.find(c.method), declaration.group(c.method)
    for group in READ_BY_METHODS:
        _unread(c, known, group, f"method {c.method}", method.reads)
    for field, said in method.fields.items():
        value = c[name][field]
        if not (said.holds(value) and (type(value) is not float or math.isfinite(value))):
            raise UserError(f"{name}.{field} is {value}: it must be {said.rule}")
    counted = _counted(c)
    for group in counted.keys() - method.views.keys():
        raise UserError(
            f"augment.views has views of the group {group}, at which method {c.method} does not "
            f"look: it knows {', '.join(sorted(method.views))}"
        )
    for group, (fewest, most) in method.views.items():
        count = counted.get(group, 0)
        if count < fewest or (most is not None and count > most):
            wanted = f"{fewest} or more" if most is None else f"{fewest} to {most}"
            wanted = str(fewest) if fewest == most else wanted
            raise UserError(
                f"augment.views has {count} view(s) of the group {group}, method {c.method} looks "
                f"at {wanted}: set so many"
            )
    view_rules.check_local(c)
    _check_unread(c, known, method.unread(c), begun)
    method.check(c)


def _counted(c: ConfigDict) -> dict[str, int]:
    """Return how many views there are of each group."""
    counts: dict[str, int] = {}
    for policy in c.augment.views.values():
        counts[policy.group] = counts.get(policy.group, 0) + policy.copies
    return counts


def _unread(
    c: ConfigDict, known: dict, group: str, reader: str, reads: Collection[str] = ()
) -> None:
    """Raise `UserError` if a field of a group was changed that the reader does not look at.

    `reads` are names of whole groups and of single fields.
    """
    for name, value in c[group].items():
        read = group in reads or f"{group}.{name}" in reads
        if value != known[group][name] and not read:
            raise UserError(
                f"{group}.{name} is {value}, but {reader} does not read it: leave it at "
                f"{known[group][name]}"
            )


def _check_tap(c: ConfigDict, name: str, tap: int) -> None:
    layers = head_layers(c)
    if not -1 <= tap <= layers:
        raise UserError(
            f"{name} is {tap}, but the head has {layers} layer(s): "
            f"set 0 for h, 1 to {layers} for a layer or -1 for the last"
            if layers
            else f"{name} is {tap}, but there is no head: set 0"
        )


def _check_batch(batch: int, devices: int) -> None:
    if batch % devices:
        near = max(devices, round(batch / devices) * devices)
        raise UserError(
            f"train.batch_size is {batch}, which {devices} devices do not divide: "
            f"set --config.train.batch_size={near}"
        )
    if batch < 2:
        raise UserError(f"train.batch_size is {batch}: give 2 images or more")


def _check_groups(groups: int, batch: int, devices: int) -> None:
    """Check that groups of normalisation are of one size, and have statistics."""
    if groups > 1 and (batch % groups or batch < 2 * groups):
        both = math.lcm(groups, devices)
        least = math.ceil(2 * groups / both)
        near = max(least, round(batch / both)) * both
        raise UserError(
            f"bn.groups is {groups}, but train.batch_size={batch} is no {groups} equal groups of 2 "
            f"images or more: set --config.train.batch_size={near}, or other groups"
        )


def _check_parts(parts: int, groups: int, batch: int, devices: int) -> None:
    """Check that parts of a batch are of one size and hold whole groups of normalisation."""
    if parts == 1:
        return
    if groups < 2 or groups % parts:
        near = parts * max(1, round(groups / parts))
        raise UserError(
            f"train.accumulate is {parts}, but bn.groups={groups} is no multiple of it, so that a "
            "part of a batch would be normalised by other images than the batch: set "
            f"--config.bn.groups={near}"
        )
    if batch % (parts * devices):
        unit = math.lcm(groups, parts * devices)
        near = unit * max(1, round(batch / unit))
        raise UserError(
            f"train.accumulate is {parts}, which does not divide the {batch // devices} images of "
            f"each of {devices} device(s): set --config.train.batch_size={near}, or fewer parts"
        )


def _x64() -> bool:
    import jax

    return jax.dtypes.canonicalize_dtype("float64") == "float64"


def smallest_crop(config: ConfigDict, height: int, width: int) -> None:
    """Check that the crop of each view keeps at least one pixel of an image.

    Raises:
      UserError: if a crop of `area_min` and the extreme aspects is less than a pixel high or wide.
    """
    for name, policy in config.augment.views.items():
        area = policy.area_min * height * width
        side = np.sqrt(min(area / policy.aspect_max, area * policy.aspect_min))
        if policy.crop and round(float(side)) < 1:
            raise UserError(
                f"images are {height}x{width} pixels, too small for "
                f"augment.views.{name}.area_min={policy.area_min}: a crop would have no pixel; "
                f"use larger images or --config.augment.views.{name}.crop=False"
            )
