"""Every field of a recipe: its name, type and default.

A recipe in `configs/` starts from `base()` and changes some fields; the command line may change any
(`--config.train.batch_size=512`). Fractions and numbers that may be fractional are floats. What
values each may have is in `fields.py`, what they may be together in `validation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from simclr_jax import declaration
from simclr_jax.errors import UserError, choose

# A recipe may leave these open (a placeholder, None): `stages.adapt` chooses them for the data.
OPEN = (
    "data.image_size",
    "model.depth",
    "model.stem",
    "train.batch_size",
    "train.epochs",
    "optim.warmup_epochs",
    "eval.probe",
    "eval.knn",
    "eval.knn_k",
    "eval.every_epochs",
)

# A recipe that starts from another run may leave these open: they are then as in that run
# (`stages.inherit`). Without `data.source` all of `data` is.
INHERITED = (
    "data.source",
    "data.image_size",
    "data.white_level",
    "bn.epsilon",
    "head.kind",
    "head.layers",
    "head.hidden",
    "head.dim",
    "head.bias",
    "head.norm",
    "model.depth",
    "model.width",
    "model.stem",
    "model.sk_ratio",
    "model.se_ratio",
    "model.variant",
    "model.input",
    "augment.placement",
    "augment.grid",
    "augment.crop_law",
)
# Likewise in each view of the recipe, from the first view of that run.
INHERITED_CROP = (
    "crop",
    "area_min",
    "area_max",
    "min_object_covered",
    "aspect_min",
    "aspect_max",
    "flip",
)


def view() -> ConfigDict:
    """Return the augmentation of one view: SimCLR's for ImageNet (paper, appendix A)."""
    return ConfigDict(
        {
            "crop": True,  # random crop and resize; False resizes the whole image
            "area_min": 0.08,  # smallest share of the image's area
            "area_max": 1.0,  # largest share
            "min_object_covered": 0.1,  # smaller crops are drawn again: officially 0.1, above 0.08
            "aspect_min": 3 / 4,  # smallest width / height of the crop
            "aspect_max": 4 / 3,  # largest
            "flip": 0.5,  # probability of this operation; 0 switches it off
            "jitter": 0.8,  # probability
            "grayscale": 0.2,  # probability
            "blur": 0.5,  # probability
            "solarize": 0.0,  # probability
            "strength": 1.0,  # multiplies the four maximum strengths of the jitter
            "brightness": 0.8,  # largest change by the jitter
            "contrast": 0.8,  # likewise
            "saturation": 0.8,  # likewise
            "hue": 0.2,  # likewise, in turns of the colour circle
            "blur_sigma_min": 0.1,  # smallest width of the blur, pixels
            "blur_sigma_max": 2.0,  # largest, pixels
            "solarize_threshold": 0.5,  # values from here on are inverted, in [0, 1]
            "grayscale_first": False,  # before the jitter (InstDisc, MoCo v1), not after it
            "copies": 1,  # views drawn by this policy
            "size": placeholder(int),  # side in pixels; None: data.image_size
            "group": "views",  # views of a group have one size and go through the network together
        }
    )


def base(method: str = declaration.DEFAULT) -> ConfigDict:
    """Return all fields with the defaults of SimCLR and SimCLRv2 on ImageNet.

    Another method adds fields of its own, as the group of its name, and changes the defaults in
    which it differs: `recipes.base("byol").byol.momentum`.

    Raises:
      UserError: if there is no such method.
    """
    config = ConfigDict()
    config.seed = 0  # of initial values, data order and augmentation
    config.stage = "pretrain"  # pretrain | finetune | distill
    config.method = method  # of pretraining: a file of methods/, or a module of your own
    config.data = ConfigDict(
        {
            "source": "digits",  # what kind of data set
            "name": "",  # digits: which; tfds: the data set, such as cifar10; parquet: the labels
            "path": "",  # memory: the .npz; tfds: data_dir, or a builder's; others: the directory
            "split": "train",  # to learn from
            "eval_split": "test",  # held out, to be scored on
            "layout": "auto",  # folder: subdirectories are splits | classes | auto, by their names
            "labels": True,  # use labels, where there are any; folder: the first subdirectory
            "image_size": 224,  # side of a view, in pixels
            "holdout_fraction": 0.1,  # of the training split, where there is no eval_split
            "max_bad_fraction": 0.01,  # of unreadable images in a split; more stop the run
            "if_changed": "say",  # say | refuse: a resumed run whose files were replaced meanwhile
            "max_megapixels": 128.0,  # of an image; a larger one counts as unreadable
            # White in images of more than 8 bits: full (65535; 1 of floats) | range (of each image
            # its largest value, and black its smallest) | a number, such as 4095
            "white_level": "full",
            "threads": placeholder(int),  # that decode; None: one for each core
            "eval_gigabytes": 1.0,  # of prepared evaluation images; what is beyond is read again
            "resident": False,  # placement device: keep all images in each device's memory
            "order": "random",  # random | stream: by large parts, for records in a bucket
            "stream_block": 32,  # records that are read together
            "stream_window": 512,  # records among which each lane is shuffled
            "stream_lanes": 32,  # parts of a batch; hosts whose number divides it share little
            "index": "",  # where offsets in TFRecord and tar files are kept; "": the user's cache
        }
    )
    config.augment = ConfigDict(
        {
            "placement": "device",  # device | canvas | split | host: see data/placements
            "canvas": 512,  # placement canvas: side in pixels; images beyond it are scaled down
            "jpeg_scaling": False,  # placement canvas: decode JPEGs beyond it at 1/2, 3/8, ... 1/8
            # Of products (crop, blur) on the device: float32 | bfloat16_3x (16 bits) | bfloat16
            "precision": "float32",
            "dtype": "float32",  # of images between operations on the device: float32 | bfloat16
            "grid": "corner",  # corner (TF1) | half_pixel (TF2) | antialias (torchvision) | opencv
            # How crops are drawn: height (TensorFlow's law, uniform in it) | area (torchvision's,
            # uniform in area) | area_cut (BYOL's, likewise, cut to the image)
            "crop_law": "height",
            "clip_resized": False,  # to [0, 1] before the first colour operation (BYOL)
            "brightness_mode": "multiply",  # multiply (the code) | add (the v1 paper)
            "sigma_per": "image",  # one blur width per image | batch
            "views": {"first": view(), "second": view()},
        }
    )
    config.model = ConfigDict(
        {
            "depth": 50,  # of the ResNet
            "width": 1.0,  # multiplies the channels of all layers
            "stem": "imagenet",  # imagenet: 7x7 with stride 2, and pooling | cifar: 3x3, none
            "sk_ratio": 0.0,  # selective kernels and ResNet-D: 0.0625 in SimCLRv2 | 0: without
            "se_ratio": 0.0,  # squeeze-excitation | 0: without
            "variant": "official",  # official | torchvision: max-pool and shortcuts as there
            # What the encoder makes of an image first: rgb (it is left as it is, in [0, 1]) |
            # standardised (each image by itself) | normalised (by ImageNet's mean and deviation) |
            # lightness (L of CIE Lab)
            "input": "rgb",
        }
    )
    config.bn = ConfigDict(
        {
            "momentum": 0.9,  # of the moving statistics: the share that stays in a step
            "epsilon": 1e-5,  # added to variances
            "groups": 1,  # of images, each with its own statistics | 0: each device by its images
            "unbiased_moving": False,  # but with 1 group: n/(n-1) times the variance, as TF1
        }
    )
    config.head = ConfigDict(
        {
            "kind": "nonlinear",  # nonlinear | linear | none (SimCLR) | mlp (most others)
            "layers": 3,  # nonlinear and mlp
            "hidden": 0,  # width of all layers but the last; 0: that of h
            "dim": 128,  # of z, which the loss sees
            # Which layers of an mlp have a bias: hidden (all but the last) | last | all | none
            "bias": "hidden",
            # Which are normalised: hidden | all | all_plain (all; the last without scale and bias)
            # | none
            "norm": "hidden",
        }
    )
    config.loss = ConfigDict(
        {
            "temperature": 0.1,  # that similarities are divided by
            "scale": "sum",  # of the two directions, as officially | mean, as the paper
            "normalize": True,  # embeddings to length 1: similarities are cosines
        }
    )
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
            "base_lr": 0.3,  # of which lr_scaling makes the peak of the learning rate
            "lr_scaling": "linear",  # linear: base * batch/256 | sqrt: base * sqrt(batch) | none
            "momentum": 0.9,  # lars and sgd
            "nesterov": True,  # sgd: look ahead, as officially; what PyTorch calls SGD does not
            "rate_in_momentum": False,  # sgd: momentum of updates (TF2), or of gradients (TF1)
            "rate_after_momentum": False,  # lars: as BYOL; officially the momentum is of updates
            "weight_decay": 1e-4,  # strength
            "decayed": "usual",  # what it acts on: usual (as optim/masks.py says) | all parameters
            "warmup_epochs": 10.0,  # in which the rate rises from 0 to its peak
            "rate_per": "step",  # after the warm-up the rate falls with each step | epoch
            "drops": "",  # not as a cosine but by drop_factor at these epochs, such as 120,160
            "drop_factor": 0.1,  # that the rate is multiplied by at each of drops
            "trust_coefficient": 0.001,  # lars: rate of a layer per its norm over its gradient's
            "adapt_classifier": False,  # lars: the classifier's rate too (the official notebook)
        }
    )
    config.train = ConfigDict(
        {
            "batch_size": 4096,  # source images in a step, over all devices
            "epochs": 100.0,  # length of the run; fractions are allowed
            "steps": placeholder(int),  # overrides epochs
            "dtype": "float32",  # what the encoder computes in
            # What gradients cross devices in: float32 (or what parameters are in) | bfloat16
            "reduce_dtype": "float32",
            "deterministic": False,  # GPUs repeat a run to the bit, slower: docs/interruptions.md
            "remat": "none",  # block: less memory for a little more work, see docs/planning.md
            # Parts of a batch that pass one after the other, with whole groups of bn.groups: less
            # memory for a second forward pass, the same result. See docs/planning.md
            "accumulate": 1,
            # Scanned on the device between returns to Python; a last, shorter chunk is compiled too
            "steps_per_call": 1,
        }
    )
    config.init = ConfigDict(
        {
            "run": "",  # start from the weights of this run: a workdir, or WORKDIR@STEP
            "parts": "encoder,head",  # which of them; also probe, classifier | average | none
        }
    )
    config.eval = ConfigDict(
        {
            "every_epochs": 10.0,  # between evaluations on held-out images
            "probe": True,  # train a linear probe on the side, behind a stop-gradient
            "probe_tap": 0,  # on h: 0 | after layer k of the head: k | on z: -1
            "knn": True,  # score nearest neighbours of held-out images
            "knn_k": 200,  # how many
            "knn_temperature": 0.1,  # of the weights of their votes
            "compare": True,  # at the end, score raw pixels, untrained and trained encoder alike
            "few_labels": 10,  # labels per class of the small probe in that comparison
            "seen": False,  # score also images that init.run or the teacher may have trained on
        }
    )
    config.log = ConfigDict(
        {
            "every_steps": 100,  # between lines of metrics, each the mean since the one before
            # Where numbers are shown beside metrics.jsonl: tensorboard, wandb, mlflow, trackio,
            # several with commas between them | "": nowhere
            "to": "tensorboard",
            "project": "simclr",  # in which the runs of a service stand side by side
        }
    )
    config.checkpoint = ConfigDict(
        {
            "every_steps": 1000,  # between saves
            "keep": 3,  # the newest so many
            "keep_period": placeholder(int),  # and for good each whose step is a multiple of this
        }
    )
    if method != declaration.DEFAULT:
        _declared(config, method)
    return config.lock()  # a misspelt field in a recipe is an error, not a new field


def _declared(config: ConfigDict, method: str) -> None:
    """Add the fields of a method, and set what it wants otherwise than SimCLR."""
    found, group = declaration.find(method), declaration.group(method)
    if group in config:
        raise UserError(
            f"method is {method}, but recipes have a group {group} already: rename the module"
        )
    config[group] = ConfigDict({name: field.default for name, field in found.fields.items()})
    found.recipe(config)


def get(config: ConfigDict | Mapping[str, Any], name: str) -> Any:
    """Return the field of a recipe, or of its record, that has a dotted name: `train.batch_size`.

    Raises:
      KeyError: if there is no such field.
    """
    found: Any = config
    for part in name.split("."):
        found = found[part]
    return found


def put(config: ConfigDict, name: str, value: Any) -> None:
    """Set the field of a recipe that has a dotted name, see `get`.

    Raises:
      KeyError: if there is no such field.
      TypeError: if it holds another type.
    """
    group, _, field = name.rpartition(".")
    (get(config, group) if group else config)[field] = value


def copied(config: ConfigDict) -> ConfigDict:
    """Return a copy that may be changed of a recipe or a group of it, which may be frozen.

    The copy shares nothing with the original: not even fields that follow one another (references)
    still do, they have the values they had.
    """
    return ConfigDict(config).copy_and_resolve_references()


def on_digits(config: ConfigDict) -> None:
    """Set data and network of the quick looks: scikit-learn's digits, minutes on a laptop's CPU."""
    config.data.source, config.data.name = "digits", "placed"
    config.data.image_size = 32
    for view in config.augment.views.values():
        view.area_min = 0.5  # a smaller crop would often miss the digit
        view.flip = 0.0  # a mirrored digit is another digit, or none
        view.strength = 0.5
        view.blur = 0.0  # as the official recipe for 32-pixel images
        view.grayscale = 0.0  # there is one channel
    config.model.depth, config.model.width = 10, 0.25
    config.model.input = "rgb"  # as they are: there is one channel
    config.model.stem = "imagenet"  # for speed on a CPU: it works on 8x8 pixels, the other on 32x32
    config.train.batch_size, config.train.epochs = 256, 80.0
    config.optim.warmup_epochs = 5.0
    config.eval.every_epochs, config.eval.knn_k = 20.0, 20
    config.log.every_steps, config.checkpoint.every_steps = 20, 100


def on_cifar10(config: ConfigDict) -> None:
    """Set data and network of CIFAR-10 as the field trains on it: ResNet-18 with the small stem."""
    config.data.source, config.data.name = "tfds", "cifar10"
    config.data.image_size, config.data.resident = 32, True
    for view in config.augment.views.values():
        view.strength = 0.5
        view.blur = 0.0
    config.model.depth, config.model.stem = 18, "cifar"
    config.train.batch_size, config.train.epochs = 512, 1000.0
    config.eval.every_epochs = 20.0
    config.log.every_steps, config.checkpoint.every_steps = 50, 970


def on_imagenet(config: ConfigDict) -> None:
    """Set data and network of ImageNet: ResNet-50, views of 224 pixels made on the device."""
    config.data.source, config.data.name = "tfds", "imagenet2012"
    config.data.eval_split, config.data.image_size = "validation", 224
    config.augment.placement = "canvas"
    config.model.depth, config.model.stem = 50, "imagenet"
    config.train.dtype = "bfloat16"  # of convolutions and hidden layers; the rest: float32
    # The probe watches on the side. Features of 1.3 million images do not fit a host's memory.
    config.eval.knn, config.eval.compare, config.eval.every_epochs = False, False, 10.0
    config.log.every_steps, config.checkpoint.every_steps = 100, 625


def local_crops(
    config: ConfigDict, number: int, size: int = 0, area: tuple[float, float] | None = None
) -> None:
    """Add local crops (multi-crop): small views of parts of an image, which look for the others.

    They are made as the first view, and are the views `local` of the group `local`. As published,
    the other views show no smaller parts of an image than the largest of theirs: `area_min` is
    raised to that. Call it last, once sizes and crops of the recipe are set.

    Args:
      config: a recipe of a method that can use them; changed in place.
      number: local crops of an image; 0: none.
      size: their side in pixels. 0: 3/7 of that of the others, or 9/16 up to 64 pixels.
      area: smallest and largest share of the image's area. None: 0.05 to 0.14, with 96 of 224
        pixels (SwAV, arXiv 2006.09882); up to 64 pixels 0.3 to 0.75, with 18 of 32 (PAWS on
        CIFAR-10, facebookresearch/suncet `src/data_manager.py`).

    Raises:
      UserError: if no size is given, and the recipe leaves that of the others open.
    """
    side, views = config.data.image_size, config.augment.views
    with config.unlocked():
        if declaration.LOCAL in views:
            del views[declaration.LOCAL]
        if not number:
            return
        if side is None and not size:
            raise UserError(
                "data.image_size is left open, so the size of local crops does not follow from it: "
                "give recipes.local_crops a size"
            )
        few = (side or size) <= 64
        low, high = area or ((0.3, 0.75) if few else (0.05, 0.14))
        local = copied(views.first)
        local.group, local.copies, local.crop = declaration.LOCAL, number, True
        local.size = size or round(side * (9 / 16 if few else 3 / 7))
        local.area_min, local.area_max = low, high
        if config.augment.crop_law == "height":  # others read no such limit
            local.min_object_covered = min(local.min_object_covered, low)
        for view in views.values():
            view.area_min = max(view.area_min, high)
        views[declaration.LOCAL] = local


def crop_and_flip(config: ConfigDict) -> None:
    """Leave one view, of crop and flip alone, as for labelled images (official `data_util.py`)."""
    with config.unlocked():
        for name in sorted(config.augment.views)[1:]:
            del config.augment.views[name]
    for left in config.augment.views.values():
        for operation in ("jitter", "grayscale", "blur", "solarize"):
            left[operation] = 0.0
        for field in ("copies", "size", "group"):
            left[field] = view()[field]


def usual_crop_and_flip(config: ConfigDict) -> None:
    """Leave one view, of SimCLR's crop and flip, whatever the views of the recipe are.

    For probes and fine-tuning as the papers have them: views of a pretext task say what that task
    needs, and may be neither cropped nor flipped.
    """
    crop_and_flip(config)
    for left in config.augment.views.values():
        for field in INHERITED_CROP:
            left[field] = view()[field]


def inherit_all(config: ConfigDict) -> None:
    """Leave open all that may be taken from the run that `init.run` names (`INHERITED`)."""
    for name in INHERITED:
        put(config, name, placeholder(type(get(config, name))))
    for crop in config.augment.views.values():
        for field in INHERITED_CROP:
            crop[field] = placeholder(type(crop[field]))


def groups_at_once(config: ConfigDict) -> int:
    """Return how many normalisation groups pass through the network at the same time."""
    groups, parts = config.bn.groups, config.train.accumulate
    return groups // parts if groups > 1 else groups


def head_layers(config: ConfigDict) -> int:
    """Return how many layers the projection head of a recipe has."""
    return layer_count(config.head.kind, config.head.layers)


def layer_count(kind: str, layers: int) -> int:
    """Return how many layers a projection head of a `kind` has; two kinds have no say in it."""
    return {"none": 0, "linear": 1, "nonlinear": layers, "mlp": layers}[kind]


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
