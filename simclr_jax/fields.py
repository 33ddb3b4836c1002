"""What each field of a recipe may be by itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from ml_collections import ConfigDict

from simclr_jax import buckets, declaration, flag_kinds
from simclr_jax.errors import UserError, choose, nearest, number
from simclr_jax.recipes import OPEN, base, get, view

LABELLED = ("finetune", "distill")  # stages that train a classifier
MOST_MEGAPIXELS = 178.0  # of an image that Pillow opens

# What a field may be. The modules that act on a choice know it by the same name
# (tests/test_recipes.py builds every one of them).
CHOICES: dict[str, tuple] = {
    "stage": ("pretrain", *LABELLED),
    "data.source": (
        "digits",
        "memory",
        "folder",
        "tfds",
        "tfrecord",
        "webdataset",
        "parquet",
        "packed",
    ),
    "data.order": ("random", "stream"),
    "data.layout": ("auto", "splits", "classes"),
    "data.if_changed": ("say", "refuse"),
    "augment.placement": ("device", "canvas", "split", "host"),
    "augment.precision": ("float32", "bfloat16_3x", "bfloat16"),
    "augment.dtype": ("float32", "bfloat16"),
    "augment.grid": ("corner", "half_pixel", "antialias", "opencv"),
    "augment.crop_law": ("height", "area", "area_cut"),
    "augment.brightness_mode": ("multiply", "add"),
    "augment.sigma_per": ("image", "batch"),
    "model.depth": (10, 18, 34, 50, 101, 152, 200),
    "model.stem": ("cifar", "imagenet"),
    "model.variant": ("official", "torchvision"),
    "model.input": ("rgb", "standardised", "normalised", "lightness"),
    "head.kind": ("none", "linear", "nonlinear", "mlp"),
    "head.bias": ("hidden", "last", "all", "none"),
    "head.norm": ("hidden", "all", "all_plain", "none"),
    "loss.scale": ("sum", "mean"),
    "finetune.encoder_bn": ("batch", "moving"),
    "distill.images": ("all", "labelled"),
    "distill.teacher_dtype": ("float32", "bfloat16", "float64"),
    "optim.name": ("lars", "sgd", "adam", "adamw"),
    "optim.lr_scaling": ("linear", "sqrt", "none"),
    "optim.decayed": ("usual", "all"),
    "optim.rate_per": ("step", "epoch"),
    "train.dtype": ("float32", "bfloat16", "float64"),
    "train.reduce_dtype": ("float32", "bfloat16"),
    "train.remat": ("none", "block"),
}

# Files and directories, or words that stand for one; each may begin with `~`.
PATHS = ("data.path", "data.index", "init.run", "distill.teacher", "labels.use")

LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")  # of `log.to`

# What numbers must hold: the fields, the rule in words, the rule.
RULES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (
        ("optim.base_lr", "bn.epsilon", "optim.trust_coefficient"),
        "greater than 0",
        lambda value: value > 0,
    ),
    (
        ("model.width",),
        "greater than 0 and at most 64, which is 4096 channels in the first layer",
        lambda value: 0 < value <= 64,
    ),
    (
        ("loss.temperature", "eval.knn_temperature", "distill.temperature"),
        "1e-6 or more: less would magnify the rounding of similarities, 6e-8, above all else",
        lambda value: value >= 1e-6,
    ),
    (
        (
            "train.batch_size",
            "train.steps_per_call",
            "train.accumulate",
            "head.layers",
            "head.dim",
            "log.every_steps",
            "checkpoint.every_steps",
            "checkpoint.keep",
            "eval.knn_k",
            "eval.few_labels",
            "data.stream_block",
            "data.stream_window",
            "data.stream_lanes",
        ),
        "1 or more",
        lambda value: value >= 1,
    ),
    (("data.image_size",), "1 to 16384", lambda value: 1 <= value <= 2**14),
    (
        ("augment.canvas",),
        "a multiple of 8, 8 to 16384",
        lambda value: 8 <= value <= 2**14 and value % 8 == 0,
    ),
    (
        ("optim.weight_decay", "optim.warmup_epochs", "eval.every_epochs", "data.eval_gigabytes"),
        "0 or more",
        lambda value: value >= 0,
    ),
    (("bn.groups", "head.hidden"), "a whole number, 0 or more", lambda value: value >= 0),
    (("seed",), "in [0, 2^63)", lambda value: 0 <= value < 2**63),
    (("memory.size",), "0, for none, or more", lambda value: value >= 0),
    (("labels.seed",), "in [0, 2^32)", lambda value: 0 <= value < 2**32),
    (("finetune.train_from_block",), "0 to 5", lambda value: 0 <= value <= 5),
    (
        ("distill.alpha",),
        "greater than 0 and at most 1 (labels alone are stage finetune)",
        lambda value: 0 < value <= 1,
    ),
    (
        ("bn.momentum", "optim.momentum", "memory.momentum"),
        "in [0, 1)",
        lambda value: 0 <= value < 1,
    ),
    (("optim.drop_factor",), "greater than 0 and at most 1", lambda value: 0 < value <= 1),
    (("data.holdout_fraction",), "between 0 and 1", lambda value: 0 < value < 1),
    (("data.max_bad_fraction",), "in [0, 1)", lambda value: 0 <= value < 1),
    (
        ("data.max_megapixels",),
        f"greater than 0 and at most {MOST_MEGAPIXELS}, Pillow's own limit",
        lambda value: 0 < value <= MOST_MEGAPIXELS,
    ),
    (("model.sk_ratio", "model.se_ratio"), "in [0, 1]", lambda value: 0 <= value <= 1),
)


def known(config: ConfigDict) -> dict:
    """Return the defaults of the fields of a recipe; raise `UserError` if it has others."""
    fields = config.to_dict()
    known = base(fields.get("method", declaration.DEFAULT)).to_dict()
    views = fields.get("augment", {}).get("views", known["augment"]["views"])
    known["augment"]["views"] = {name: view().to_dict() for name in views}
    _check_fields(fields, known)
    return known


def _check_fields(fields: dict, known: dict, prefix: str = "") -> None:
    for key in fields.keys() - known.keys():
        raise UserError(f'recipe has no field "{prefix}{key}"{nearest(key, known)}: remove it')
    for key, value in known.items():
        name = f"{prefix}{key}"
        if key not in fields:
            if not prefix and key == declaration.group(fields.get("method", "")):
                raise UserError(
                    f"recipe lacks the fields of method {fields['method']}: take a recipe of that "
                    f'method, or start from simclr_jax.recipes.base("{fields["method"]}")'
                )
            raise UserError(f'recipe lacks "{name}": start from simclr_jax.recipes.base()')
        if isinstance(value, dict) != isinstance(fields[key], dict):
            raise UserError(f"{name} is {fields[key]}: see simclr_jax.recipes.base() for its shape")
        if isinstance(value, dict):
            _check_fields(fields[key], value, f"{name}.")


def check_values(c: ConfigDict) -> None:
    """Check what each field may be by itself; those of `OPEN` may be None.

    Raises:
      UserError: naming a field, its value and what it may be.
    """
    for name, choices in CHOICES.items():
        if not _is_open(c, name):
            choose(name, get(c, name), choices)
    for names, words, holds in RULES:
        for name in names:
            _require(c, name, holds, words)
    _require(c, "train.epochs", lambda value: value > 0, "greater than 0")
    if c.train.steps is not None:
        _require(c, "train.steps", lambda value: value >= 1, "1 or more")
    if not _is_white_level(c.data.white_level):
        raise UserError(
            f"data.white_level is {c.data.white_level}: choose full, range, or a number greater "
            "than 0, the value that is white in images of more than 8 bits"
        )
    drop_epochs(c)
    loggers(c.log.to)
    if not c.log.project.strip():
        raise UserError("log.project is empty: give a name, such as --config.log.project=simclr")
    if c.data.threads is not None:
        _require(c, "data.threads", lambda value: value >= 1, "1 or more")
    for name in c.augment.views:
        _check_view(c, f"augment.views.{name}.")


def loggers(to: str) -> list[str]:
    """Return the names in the field `log.to`.

    Raises:
      UserError: if one is unknown, or there twice.
    """
    found = [name for name in to.split(",") if to]
    for name in found:
        choose("log.to", name, LOGGERS)
    if len(set(found)) < len(found):
        raise UserError(f"log.to is {to}, which names one twice: name each once")
    return found


def drop_epochs(c: ConfigDict) -> tuple[float, ...]:
    """Return the epochs at which the learning rate drops, of the field `optim.drops`.

    Raises:
      UserError: if they are no rising numbers above 0.
    """
    text = c.optim.drops
    found = tuple(number("optim.drops", part, above=0) for part in text.split(",") if text)
    if list(found) != sorted(set(found)):
        raise UserError(f"optim.drops is {text[:80]}: give epochs that rise, such as 120,160")
    return found


def check_paths(c: ConfigDict) -> None:
    """Check that each path has a home, where it names one, or a bucket that is known.

    Raises:
      UserError: if `~` or `~NAME` is nobody's, or of another scheme.
    """
    for name in PATHS:
        _check_home(name, get(c, name))


def _is_open(config: ConfigDict, name: str) -> bool:
    return name in OPEN and get(config, name) is None


def _require(config: ConfigDict, name: str, holds: Callable[[float], bool], rule: str) -> None:
    value = get(config, name)
    if _is_open(config, name):
        return
    if not (_is_finite(value) and holds(value)):
        raise UserError(f"{name} is {str(value)[:80]}: it must be {rule}")


def _is_finite(value: float) -> bool:
    """Tell whether a number is one that a float can be near: a whole one may be too large."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_home(name: str, path: str | None) -> None:
    try:
        flag_kinds.at_home(path or "")
    except ValueError as error:
        raise UserError(f"{name} is {path}, but {error}") from error
    scheme, colon, _ = (path or "").partition("://")
    if colon and scheme not in buckets.PACKAGES:
        known = ", ".join(f"{one}://" for one in buckets.PACKAGES)
        raise UserError(f"{name} is {path}, but {scheme}:// is no bucket that is known ({known})")


def _check_view(config: ConfigDict, prefix: str) -> None:
    for name in (
        "flip",
        "jitter",
        "grayscale",
        "blur",
        "solarize",
        "solarize_threshold",
        "area_max",
        "min_object_covered",
    ):
        _require(config, prefix + name, lambda value: 0 <= value <= 1, "in [0, 1]")
    for name in ("strength", "brightness", "contrast", "saturation", "hue"):
        _require(config, prefix + name, lambda value: value >= 0, "0 or more")
    for name in ("area", "aspect", "blur_sigma"):
        largest = get(config, f"{prefix}{name}_max")
        _require(config, f"{prefix}{name}_max", lambda value: value > 0, "greater than 0")
        rule = f"greater than 0 and at most {name}_max={largest}"
        _require(config, f"{prefix}{name}_min", functools.partial(_within, largest), rule)
    for name in ("copies", "size"):
        if get(config, prefix + name) is not None:
            _require(config, prefix + name, lambda value: value >= 1, "1 or more")
    _check_group(config, prefix)


def _check_group(c: ConfigDict, prefix: str) -> None:
    """Check that the group of a view can be one, and that its views have one size."""
    view = get(c, prefix.removesuffix("."))
    if not view.group.isidentifier():
        raise UserError(
            f'{prefix}group is "{view.group}": give a name of letters, digits and _, as in views'
        )
    side = _side(c, view)
    for name, other in c.augment.views.items():
        if f"augment.views.{name}." == prefix:
            return  # those that follow are compared in their turn
        theirs = _side(c, other)
        if other.group == view.group and None not in (side, theirs) and side != theirs:
            raise UserError(
                f"{prefix}size is {side}, but augment.views.{name}, which has the same group "
                f"{view.group}, has {theirs}: give both one size, or another --config.{prefix}group"
            )


def _side(c: ConfigDict, view: ConfigDict) -> int | None:
    """Return the side of a view in pixels; None: that of images yet to be found."""
    return c.data.image_size if view.size is None else view.size


def _within(largest: float, value: float) -> bool:
    return 0 < value <= largest


def _is_white_level(text: str) -> bool:
    if text in ("full", "range"):
        return True
    try:
        return math.isfinite(float(text)) and float(text) > 0
    except ValueError:
        return False
