"""Every field of a recipe: its name, type and default.

A recipe in `configs/` starts from `base()` and changes some fields; the command line may change any
(`--config.train.batch_size=512`). Fractions and numbers that may be fractional are floats. What
values a field may take is in `validation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from simclr_jax.errors import UserError, choose

# A recipe may leave these open (a placeholder, None): `stages.adapt` chooses them for the data.
OPEN = (
    *("data.image_size", "model.depth", "model.stem", "train.batch_size", "train.epochs"),
    *("eval.probe", "eval.knn", "eval.every_epochs"),
)

# A recipe that starts from another run may leave these open: they are then as in that run
# (`stages.inherit`). Without `data.source` all of `data` is.
INHERITED = (
    *("data.source", "data.image_size", "bn.epsilon", "head.kind", "head.layers", "head.dim"),
    *("model.depth", "model.width", "model.stem", "model.sk_ratio", "model.se_ratio"),
    *("augment.placement", "augment.grid"),
)
# Likewise, in each view: of the first view there.
INHERITED_CROP = (
    *("crop", "area_min", "area_max", "min_object_covered", "aspect_min", "aspect_max", "flip"),
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
            "solarize": 0.0,
            "strength": 1.0,  # multiplies the four maximum strengths of the jitter
            "brightness": 0.8,
            "contrast": 0.8,
            "saturation": 0.8,
            "hue": 0.2,
            "blur_sigma_min": 0.1,  # pixels
            "blur_sigma_max": 2.0,
            "solarize_threshold": 0.5,  # values from here on are inverted, in [0, 1]
            "grayscale_first": False,  # before the jitter (InstDisc, MoCo v1), not after it
            "copies": 1,  # views drawn by this policy
            "size": placeholder(int),  # side in pixels; None: data.image_size
            "group": "views",  # views of a group have one size and go through the network together
        }
    )


def base() -> ConfigDict:
    """Return all fields with the defaults of SimCLR and SimCLRv2 on ImageNet."""
    config = ConfigDict()
    config.seed = 0  # of initial values, data order and augmentation
    config.stage = "pretrain"
    config.data = ConfigDict(
        {
            "source": "digits",  # digits | memory | folder | tfds | tfrecord
            "name": "",  # digits: which; tfds: the data set, such as cifar10 or imagenet2012
            "path": "",  # memory: the .npz; tfds: data_dir, or a builder's; others: the directory
            "split": "train",
            "eval_split": "test",
            "labels": True,  # use labels, where there are any; folder: the first subdirectory
            "image_size": 224,  # side of a view, in pixels
            "holdout_fraction": 0.1,  # of the training split, where there is no eval_split
            "max_bad_fraction": 0.01,  # of unreadable images in a split; more stop the run
            "threads": placeholder(int),  # that decode; None: one for each core
            "resident": False,  # placement device: keep all images in each device's memory
            "order": "random",  # random | stream: by large parts, for records in a bucket
            "stream_block": 32,  # records that are read together
            "stream_window": 512,  # records among which each lane is shuffled
            "stream_lanes": 32,  # parts of a batch; hosts whose number divides it share little
            "index": "",  # where offsets in TFRecord files are kept; "": the user's cache
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
    config.memory = ConfigDict(
        {
            "size": 0,  # negatives kept from earlier batches: 65536 in SimCLRv2 | 0: without
            "momentum": 0.999,  # of the moving average of weights whose embeddings are kept
        }
    )
    config.labels = ConfigDict(
        {
            "use": "all",  # all | a share, such as 10% | a number for each class | a file of names
            "seed": 0,  # of the draw
        }
    )
    config.finetune = ConfigDict(
        {
            "tap": 0,  # the classifier reads h: 0 | layer k of the head: k | the last: -1
            "train_from_block": 0,  # 0: all | 1 to 4: from this block group on | 5: no encoder
            "train_head": True,  # the layers of the head up to the tap; the official TF1 does not
            "encoder_bn": "batch",  # statistics: batch, and moved | moving, as they are
            "zero_classifier": True,  # start from zeros
        }
    )
    config.distill = ConfigDict(
        {
            "teacher": "",  # run with a classifier: a workdir, or WORKDIR@STEP
            "temperature": 1.0,  # of both: 1.0 into a smaller network, 0.1 into the same
            "alpha": 1.0,  # weight of the teacher; 1 - alpha is that of the labels
            "images": "all",  # all | labelled: those whose labels are used
            "times_squared_temperature": False,  # the official notebook; the paper does not
            "teacher_dtype": "float32",  # what the teacher computes in
        }
    )
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
            "adapt_classifier": False,  # lars: the classifier's rate too (the official notebook)
        }
    )
    config.train = ConfigDict(
        {
            "batch_size": 4096,  # source images in a step, over all devices
            "epochs": 100.0,
            "steps": placeholder(int),  # overrides epochs
            "dtype": "float32",  # what the encoder computes in
            "remat": "none",  # block: less memory for a little more work, see docs/planning.md
            "steps_per_call": 1,  # steps scanned on the device between returns to Python; a last,
            # shorter chunk is compiled apart
        }
    )
    config.init = ConfigDict(
        {
            "run": "",  # start from the weights of this run: a workdir, or WORKDIR@STEP
            "parts": "encoder,head",  # which of them; also probe, or classifier | none
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


def crop_and_flip(config: ConfigDict) -> None:
    """Leave one view, of crop and flip alone, as for labelled images (official `data_util.py`)."""
    with config.unlocked():
        for name in sorted(config.augment.views)[1:]:
            del config.augment.views[name]
    for view in config.augment.views.values():
        for operation in ("jitter", "grayscale", "blur"):
            view[operation] = 0.0


def inherit_all(config: ConfigDict) -> None:
    """Leave open all that may be taken from the run that `init.run` names (`INHERITED`)."""
    for name in INHERITED:
        group, field = name.split(".")
        config[group][field] = placeholder(type(config[group][field]))
    for crop in config.augment.views.values():
        for field in INHERITED_CROP:
            crop[field] = placeholder(type(crop[field]))


def head_layers(config: ConfigDict) -> int:
    """Return how many layers the projection head of a recipe has."""
    return {"none": 0, "linear": 1, "nonlinear": config.head.layers}[config.head.kind]


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
    if config.stage == "pretrain":
        config.eval.probe = not tf1
        return
    config.finetune.train_head = not tf1
    frozen = config.finetune.train_from_block == 5
    config.finetune.encoder_bn = "moving" if tf1 and frozen else "batch"


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


def of_record(record: Mapping[str, Any]) -> ConfigDict:
    """Return the recipe in a run's `config.json`; fields it is too old to have are at defaults."""
    config = base()
    with config.unlocked():
        if (views := record.get("augment", {}).get("views")) is not None:
            config.augment.views = {name: view() for name in views}
        config.update({name: value for name, value in record.items() if name in config})
    return config


# What a resumed run may change: it touches what is written, where things are and what is kept in
# memory, never what is computed. (That the images are the same ones, wherever they lie now, is
# recorded apart.)
FREE = (
    *("log", "checkpoint", "data.path", "data.threads", "data.resident"),
    *("data.max_bad_fraction", "data.index", "train.remat"),
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
