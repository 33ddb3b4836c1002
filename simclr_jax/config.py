"""Every field of a recipe: its name, type, default and what values it may take.

A recipe in `configs/` starts from `base()` and changes some fields; the command line may change any
(`--config.train.batch_size=512`). Fractions and numbers that may be fractional are floats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from simclr_jax.errors import UserError, choose, nearest

# What a field may be. The modules that act on a choice know it by the same name
# (tests/test_config.py builds every one of them).
CHOICES: dict[str, tuple] = {
    "stage": ("pretrain",),
    "data.source": ("digits", "memory", "folder", "tfds"),
    "augment.placement": ("device", "split", "host"),
    "augment.grid": ("corner", "half_pixel", "antialias", "opencv"),
    "augment.brightness_mode": ("multiply", "add"),
    "augment.sigma_per": ("image", "batch"),
    "model.depth": (10, 18, 34, 50, 101, 152, 200),
    "model.stem": ("cifar", "imagenet"),
    "head.kind": ("none", "linear", "nonlinear"),
    "loss.scale": ("sum", "mean"),
    "optim.name": ("lars", "sgd", "adamw"),
    "optim.lr_scaling": ("linear", "sqrt", "none"),
    "train.dtype": ("float32", "bfloat16", "float64"),
}

# What numbers must hold: the fields, the rule in words, the rule.
RULES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (
        (
            *("loss.temperature", "model.width", "optim.base_lr", "bn.epsilon"),
            *("eval.knn_temperature", "optim.trust_coefficient"),
        ),
        "greater than 0",
        lambda value: value > 0,
    ),
    (
        (
            *("train.batch_size", "train.steps_per_call", "head.layers", "head.dim"),
            *("data.image_size", "log.every_steps", "checkpoint.every_steps"),
            *("checkpoint.keep", "eval.knn_k", "eval.few_labels"),
        ),
        "1 or more",
        lambda value: value >= 1,
    ),
    (
        ("optim.weight_decay", "optim.warmup_epochs", "eval.every_epochs"),
        "0 or more",
        lambda value: value >= 0,
    ),
    (("seed",), "in [0, 2^63)", lambda value: 0 <= value < 2**63),
    (("bn.momentum", "optim.momentum"), "in [0, 1)", lambda value: 0 <= value < 1),
    (("data.holdout_fraction",), "between 0 and 1", lambda value: 0 < value < 1),
    (("data.max_bad_fraction",), "in [0, 1)", lambda value: 0 <= value < 1),
    (("model.sk_ratio", "model.se_ratio"), "in [0, 1]", lambda value: 0 <= value <= 1),
)

# A recipe may leave these open (a placeholder, None): `stages.adapt` chooses them for the data.
OPEN = (
    *("data.image_size", "model.depth", "model.stem", "train.batch_size", "train.epochs"),
    *("eval.probe", "eval.knn", "eval.every_epochs"),
)


def view() -> ConfigDict:
    """Return the augmentation of one view: SimCLR's for ImageNet (paper, appendix A)."""
    return ConfigDict(
        {
            "crop": True,  # random crop and resize; False resizes the whole image
            "area_min": 0.08,  # smallest and largest share of the image's area
            "area_max": 1.0,
            "min_object_covered": 0.1,  # smaller crops are drawn again: officially 0.1, above 0.08
            "aspect_min": 3 / 4,  # width / height of the crop
            "aspect_max": 4 / 3,
            "flip": 0.5,  # probability of each operation; 0 switches it off
            "jitter": 0.8,
            "grayscale": 0.2,
            "blur": 0.5,
            "strength": 1.0,  # multiplies the four maximum strengths of the jitter
            "brightness": 0.8,
            "contrast": 0.8,
            "saturation": 0.8,
            "hue": 0.2,
            "blur_sigma_min": 0.1,  # pixels
            "blur_sigma_max": 2.0,
        }
    )


def base() -> ConfigDict:
    """Return all fields with the defaults of SimCLR and SimCLRv2 on ImageNet."""
    config = ConfigDict()
    config.seed = 0  # of initial values, data order and augmentation
    config.stage = "pretrain"
    config.data = ConfigDict(
        {
            "source": "digits",  # digits | memory | folder | tfds
            "name": "",  # digits: which; tfds: the data set, such as cifar10 or imagenet2012
            "path": "",  # memory: the .npz; folder: the directory; tfds: data_dir, or a builder's
            "split": "train",
            "eval_split": "test",
            "labels": True,  # use labels, where there are any; folder: the first subdirectory
            "image_size": 224,  # side of a view, in pixels
            "holdout_fraction": 0.1,  # of the training split, where there is no eval_split
            "max_bad_fraction": 0.01,  # of unreadable images in a split; more stop the run
            "threads": placeholder(int),  # that decode; None: one for each core
            "resident": False,  # placement device: keep all images in each device's memory
        }
    )
    config.augment = ConfigDict(
        {
            "placement": "device",  # device | split | host: see data/placements
            "grid": "corner",  # corner (TF1) | half_pixel (TF2) | antialias (torchvision) | opencv
            "brightness_mode": "multiply",  # multiply (the code) | add (the v1 paper)
            "sigma_per": "image",  # one blur width per image | batch
            "views": {"first": view(), "second": view()},
        }
    )
    config.model = ConfigDict(
        {
            "depth": 50,
            "width": 1.0,
            "stem": "imagenet",
            "sk_ratio": 0.0,  # selective kernels and ResNet-D: 0.0625 in SimCLRv2 | 0: without
            "se_ratio": 0.0,  # squeeze-excitation | 0: without
        }
    )
    config.bn = ConfigDict(
        {
            "momentum": 0.9,
            "epsilon": 1e-5,
            "sync": True,  # statistics of all devices
            "unbiased_moving": False,  # without sync: n/(n-1) times the variance, as TF1
        }
    )
    config.head = ConfigDict({"kind": "nonlinear", "layers": 3, "dim": 128})
    config.loss = ConfigDict({"temperature": 0.1, "scale": "sum", "normalize": True})
    config.optim = ConfigDict(
        {
            "name": "lars",
            "base_lr": 0.3,
            "lr_scaling": "linear",  # linear: base * batch/256 | sqrt: base * sqrt(batch) | none
            "momentum": 0.9,  # lars and sgd
            "rate_in_momentum": False,  # sgd: momentum of updates (TF2), or of gradients (TF1)
            "weight_decay": 1e-4,
            "warmup_epochs": 10.0,
            "trust_coefficient": 0.001,  # lars
        }
    )
    config.train = ConfigDict(
        {
            "batch_size": 4096,  # source images in a step, over all devices
            "epochs": 100.0,
            "steps": placeholder(int),  # overrides epochs
            "dtype": "float32",  # what the encoder computes in
            "steps_per_call": 1,  # steps scanned on the device between returns to Python; a last,
            # shorter chunk is compiled apart
        }
    )
    config.init = ConfigDict(
        {
            "run": "",  # start from the weights of this run: a workdir, or WORKDIR@STEP
            "parts": "encoder,head",  # which of them
        }
    )
    config.eval = ConfigDict(
        {
            "every_epochs": 10.0,
            "probe": True,  # train a linear probe on the side, behind a stop-gradient
            "probe_tap": 0,  # on h: 0 | after layer k of the head: k | on z: -1
            "knn": True,
            "knn_k": 200,
            "knn_temperature": 0.1,
            "compare": True,  # at the end, score raw pixels, untrained and trained encoder alike
            "few_labels": 10,  # labels per class of the small probe in that comparison
        }
    )
    config.log = ConfigDict({"every_steps": 100})
    config.checkpoint = ConfigDict(
        {"every_steps": 1000, "keep": 3, "keep_period": placeholder(int)}
    )
    return config.lock()  # a misspelt field in a recipe is an error, not a new field


FLAVOURS = ("tf1", "tf2")


def official(config: ConfigDict, flavour: str) -> None:
    """Set every field in which one of the two official programs differs from the defaults.

    The repository root ("tf1") gave the published numbers and the released checkpoints; `tf2/` is
    the port. docs/fidelity.md has the fields row by row. Length, rates, decay and sizes are the
    recipe's: the two have the same commands.

    Args:
      config: a recipe; changed in place.
      flavour: "tf1" or "tf2".

    Raises:
      UserError: for another flavour.
    """
    choose("official", flavour, FLAVOURS)
    tf1 = flavour == "tf1"
    config.augment.grid = "corner" if tf1 else "half_pixel"
    config.augment.sigma_per, config.augment.brightness_mode = "batch", "multiply"
    config.bn.unbiased_moving = tf1
    config.loss.scale = "sum"
    config.optim.rate_in_momentum = not tf1
    config.eval.probe = not tf1


def arguments(text: str, **defaults):
    """Read the argument of a recipe, as in `--config=configs/imagenet.py:width=2,paper`.

    Args:
      text: names with commas; `name=value`, or `name` alone for True.
      **defaults: every name the recipe knows, and its value if it is not given, whose type is
        that of the argument.

    Returns:
      A ConfigDict of all names.

    Raises:
      UserError: for a name the recipe does not know, or a value of another type.
    """
    found = ConfigDict(defaults)
    for item in filter(None, text.split(",")):
        name, given, value = item.partition("=")
        choose("argument of the recipe", name, defaults)
        kind = type(defaults[name])
        if kind is str and not value:
            raise UserError(f'argument "{item}" of the recipe: write {name}=NAME')
        if kind is bool and not given:
            found[name] = True
            continue
        try:
            if kind is bool:
                raise ValueError(value)
            found[name] = kind(value)
        except ValueError:
            want = f"{name}, alone" if kind is bool else f"{name}=NUMBER"
            raise UserError(f'argument "{item}" of the recipe: write {want}') from None
    return found


# What a resumed run may change: it touches what is written and where things are, never what is
# computed. (That the images are the same ones, wherever they lie now, is recorded apart.)
FREE = (
    *("log", "checkpoint", "data.path", "data.threads", "data.resident"),
    "data.max_bad_fraction",
)


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Name the fields in which two resolved recipes differ, as `field: old -> new`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if name in FREE:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {a} -> {b}")
    return found


def validate(config: ConfigDict, devices: int) -> None:
    """Check everything that can be known before data is read or a model built.

    Args:
      config: a recipe; fields of `OPEN` that are None are left for later.
      devices: over which the batch is to be spread.

    Raises:
      UserError: naming the first field found wrong, its value and what would be right.
    """
    c = config
    _check_fields(c.to_dict(), base().to_dict())
    for name, choices in CHOICES.items():
        if not _is_open(c, name):
            choose(name, _value(c, name), choices)
    for names, words, holds in RULES:
        for name in names:
            _require(c, name, holds, words)
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
    if c.train.steps is None:
        _require(c, "train.epochs", lambda value: value > 0, "greater than 0")
    else:
        _require(c, "train.steps", lambda value: value >= 1, "1 or more")
    for name in c.augment.views:
        _check_view(c, f"augment.views.{name}.")
    _check_placement(c)
    _check_tap(c)
    if c.train.batch_size is not None:
        _check_batch(c.train.batch_size, devices)
    for name in ("log.every_steps", "checkpoint.every_steps"):
        steps, call = _value(c, name), c.train.steps_per_call
        if steps % call:
            near = max(call, round(steps / call) * call)
            raise UserError(
                f"{name} is {steps}, no multiple of train.steps_per_call={call}: "
                f"set --config.{name}={near}"
            )
    if c.train.dtype == "float64" and not _x64():
        raise UserError("train.dtype is float64: set the environment variable JAX_ENABLE_X64=1")


def _check_fields(fields: dict, known: dict, prefix: str = "") -> None:
    for key in fields.keys() - known.keys():
        raise UserError(f'recipe has no field "{prefix}{key}"{nearest(key, known)}: remove it')
    for key, value in known.items():
        name = f"{prefix}{key}"
        if key not in fields:
            raise UserError(f'recipe lacks "{name}": start from simclr_jax.config.base()')
        if isinstance(value, dict) != isinstance(fields[key], dict):
            raise UserError(f"{name} is {fields[key]}: see simclr_jax.config.base() for its shape")
        if isinstance(value, dict):
            _check_fields(fields[key], value, f"{name}.")


def _value(config: ConfigDict, name: str):
    for part in name.split("."):
        config = config[part]
    return config


def _is_open(config: ConfigDict, name: str) -> bool:
    return name in OPEN and _value(config, name) is None


def _require(config: ConfigDict, name: str, holds: Callable[[float], bool], rule: str) -> None:
    value = _value(config, name)
    if _is_open(config, name):
        return
    if not math.isfinite(value) or not holds(value):
        raise UserError(f"{name} is {value}: it must be {rule}")


def _check_view(config: ConfigDict, prefix: str) -> None:
    for name in ("flip", "jitter", "grayscale", "blur", "area_max", "min_object_covered"):
        _require(config, prefix + name, lambda value: 0 <= value <= 1, "in [0, 1]")
    for name in ("strength", "brightness", "contrast", "saturation", "hue"):
        _require(config, prefix + name, lambda value: value >= 0, "0 or more")
    for name in ("area", "aspect", "blur_sigma"):
        largest = _value(config, f"{prefix}{name}_max")
        rule = f"greater than 0 and at most {name}_max={largest}"
        _require(config, f"{prefix}{name}_min", functools.partial(_within, largest), rule)


def _within(largest: float, value: float) -> bool:
    return 0 < value <= largest


def _check_placement(c: ConfigDict) -> None:
    placement, grid = c.augment.placement, c.augment.grid
    if placement == "split" and grid != "opencv":
        raise UserError(
            f"augment.placement=split resizes by OpenCV, not by the grid {grid}: "
            "set --config.augment.grid=opencv, or --config.augment.placement=host"
        )
    if placement != "split" and grid == "opencv":
        raise UserError(
            f"augment.grid=opencv belongs to augment.placement=split, not {placement}: "
            "set --config.augment.grid=corner"
        )
    if c.data.resident and placement != "device":
        raise UserError(
            f"data.resident keeps images for augment.placement=device, not {placement}: "
            "set --config.data.resident=False"
        )
    if c.data.threads is not None:
        _require(c, "data.threads", lambda value: value >= 1, "1 or more")


def _check_tap(c: ConfigDict) -> None:
    layers = {"none": 0, "linear": 1, "nonlinear": c.head.layers}[c.head.kind]
    if not -1 <= c.eval.probe_tap <= layers:
        raise UserError(
            f"eval.probe_tap is {c.eval.probe_tap}, but the head has {layers} layer(s): "
            f"set 0 for h, 1 to {layers} for a layer or -1 for the last"
            if layers
            else f"eval.probe_tap is {c.eval.probe_tap}, but there is no head: set 0"
        )


def _check_batch(batch: int, devices: int) -> None:
    if batch % devices:
        near = max(devices, round(batch / devices) * devices)
        raise UserError(
            f"train.batch_size is {batch}, which {devices} devices do not divide: "
            f"set --config.train.batch_size={near}"
        )
    if batch < 2:
        raise UserError(f"train.batch_size is {batch}: a contrast needs 2 images or more")


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
