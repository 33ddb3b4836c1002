"""Recipes: every choice is one that the code knows, every rule refuses what it should."""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import recipes, records, validation
from simclr_jax.data import sources
from simclr_jax.data.sources import Images
from simclr_jax.data.sources.layout import choose_layout
from simclr_jax.data.stream import Stream
from simclr_jax.errors import UserError
from simclr_jax.fields import CHOICES, LABELLED, RULES
from simclr_jax.frame import modules
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.parallel import AXIS
from simclr_jax.stages import build, run, views
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import step
from simclr_jax.train import timetable as timetables


def small():
    c = recipes.base()
    c.data.image_size, c.model.width, c.train.batch_size = 32, 0.25, 64
    return c


def change(c, **fields):
    """Set fields given as `group__field=value`."""
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def labelled(stage):
    """Return a small recipe of a stage that learns from labels."""
    c = small()
    recipes.crop_and_flip(c)
    c.stage, c.eval.probe, c.eval.knn = stage, False, False
    if stage == "distill":
        c.distill.teacher = "runs/teacher"
    return c


def small_with(name, choice):
    """Return the small recipe in which a choice may stand."""
    if name == "stage" and choice in LABELLED:
        return labelled(choice)
    if name in ("head.bias", "head.norm"):
        return change(small(), head__kind="mlp")
    group = name.partition(".")[0]
    stages = validation.READ_BY.get(group, ("pretrain",))
    return small() if "pretrain" in stages else labelled(stages[0])


def _encoder(c):
    images = jnp.zeros((1, 32, 32, 3), c.train.dtype)
    encoder = modules.encoder(c)
    h = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), images, train=False))
    channels = 2048 if c.model.depth >= 50 else 512
    assert h[0]["h"].shape == (1, channels * c.model.width)


def _head(c):
    h = jnp.zeros((2, 16))
    head = modules.projection_head(c)
    outputs, _ = jax.eval_shape(lambda: head.init_with_output(jax.random.key(0), h, train=False))
    layers = {"none": 0, "linear": 1, "nonlinear": 3, "mlp": 3}[c.head.kind]
    assert len(outputs) == layers + 1 and outputs[-1].shape == (2, c.head.dim if layers else 16)


def _views(c):
    source = Images(np.zeros((8, 32, 32, 3), np.uint8), None, 0)
    batch = Inputs(c, source, source).first(4)
    made = jax.eval_shape(views.view_maker(c), batch)["views"]
    assert made.shape == (4, 2, 32, 32, 3) and made.dtype == c.train.dtype
    assert {policy.grid for policy in build.policies(c)["views"]} == {c.augment.grid}


def _optimizer(c):
    schedule = build.schedule(timetables.make(c, examples=6400))
    made = build.optimizer(c, schedule)
    params = {"encoder": {"conv": {"kernel": jnp.ones((3, 2))}}}
    jax.eval_shape(lambda: made.update(params, made.init(params), params))
    # 10 epochs of 100 steps of warm-up, after which the rate is the scaled one.
    factor = {"linear": 64 / 256, "sqrt": 8.0, "none": 1.0}[c.optim.lr_scaling]
    assert schedule(1000) == pytest.approx(c.optim.base_lr * factor)


def _loss(c):
    z = jnp.ones((4, 8))
    loss = jax.vmap(
        lambda a, b: nt_xent(a, b, temperature=0.1, scale=c.loss.scale, axis_name=AXIS)[0],
        axis_name=AXIS,
    )
    # All embeddings equal: log(2N - 1) for each direction.
    expected = {"sum": 2.0, "mean": 1.0}[c.loss.scale] * np.log(7)
    assert float(jnp.sum(loss(z[None], z[None]))) == pytest.approx(expected, rel=1e-5)


def _source(c):
    assert c.data.source in sources.OPENERS


def _order(c):
    source = Images(np.zeros((8, 32, 32, 3), np.uint8), None, 0)
    reader = Inputs(c, source, source)._loading("train").reader
    assert sorted(reader.order(np.arange(8))) == list(range(8))
    assert isinstance(reader.order, Stream) == (c.data.order == "stream")


def _layout(c):
    """Both directories are called like splits."""
    found = choose_layout(c.data, Path("data"), {"train": 2, "test": 1})
    whole = {"train": ""}
    assert found.roots == (
        whole if c.data.layout == "classes" else {"test": "test", "train": "train"}
    )


def _if_changed(c):
    """What a resumed run does with it is tested in `data/test_changed_files.py`."""
    assert "data.if_changed" in records.FREE


def _is_read(c):
    """What a stage does with it is tested where the stage is."""
    assert c.stage in LABELLED


def _sent(c):
    stage = types.SimpleNamespace(reduce_dtype=c.train.reduce_dtype)
    send = jax.vmap(lambda gradients: step._sent(gradients, stage), axis_name=AXIS)
    assert jax.eval_shape(send, jnp.ones((2, 3))).dtype == c.train.reduce_dtype


BUILDERS = {
    "stage": lambda c: run.STAGES[c.stage],
    "finetune.encoder_bn": _is_read,
    "distill.images": _is_read,
    "distill.teacher_dtype": _is_read,
    "data.source": _source,
    "data.order": _order,
    "data.layout": _layout,
    "data.if_changed": _if_changed,
    "augment.placement": _views,
    "augment.grid": _views,
    "augment.crop_law": _views,
    "augment.brightness_mode": _views,
    "augment.precision": _views,
    "augment.dtype": _views,
    "augment.sigma_per": _views,
    "model.depth": _encoder,
    "model.stem": _encoder,
    "model.variant": _encoder,
    "model.input": _encoder,
    "head.kind": _head,
    "head.bias": _head,
    "head.norm": _head,
    "loss.scale": _loss,
    "optim.name": _optimizer,
    "optim.lr_scaling": _optimizer,
    "optim.decayed": _optimizer,
    "optim.rate_per": _optimizer,
    "train.dtype": _views,
    "train.reduce_dtype": _sent,
    "train.remat": lambda c: modules.encoder(c),
}
EACH = [(name, choice) for name, choices in CHOICES.items() for choice in choices]


# A choice that is valid only beside another one.
WITH = {
    "split": {"augment.grid": "opencv"},
    "opencv": {"augment.placement": "split"},
    "stream": {"data.source": "tfrecord", "augment.placement": "host"},
}


@pytest.mark.parametrize("name, choice", EACH)
def test_every_choice_is_valid_and_builds(name, choice):
    c = change(small_with(name, choice), **{name: choice}, **WITH.get(choice, {}))
    if choice == "float64":
        with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
            validation.validate(c, devices=8)
        return
    validation.validate(c, devices=8)
    BUILDERS[name](c)


@pytest.mark.parametrize("name", CHOICES)
def test_every_other_choice_is_refused(name):
    wrong = -1 if name == "model.depth" else "nonsense"
    with pytest.raises(UserError, match=f'{name} is "{wrong}".*choose one of'):
        validation.validate(change(small(), **{name: wrong}), devices=8)


REFUSED_BY = {
    "greater than 0 and at most 64, which is 4096 channels in the first layer": (
        0.0,
        -1.0,
        64.5,
        1e9,
        float("nan"),
    ),
    "greater than 0": (0.0, -1.0, float("nan"), float("inf")),
    "1e-6 or more: less would magnify the rounding of similarities, 6e-8, above all else": (
        0.0,
        -1.0,
        1e-39,  # of which 32 bits hold no inverse
        float("nan"),
        float("inf"),
    ),
    "1 or more": (0, -5),
    "0 or more": (-0.5, float("nan")),
    "0, for none, or more": (-1,),
    "a whole number, 0 or more": (-1,),
    "in [0, 1)": (-0.1, 1.0),
    "in [0, 1]": (-0.1, 1.1),
    "in [0, 2^63)": (-1, 2**63, 10**400),
    "in [0, 2^32)": (-1, 2**32),
    "0 to 5": (-1, 6),
    "a multiple of 8, 8 to 16384": (0, -8, 4, 225, 16392),
    "1 to 16384": (0, 16385),
    "greater than 0 and at most 1 (labels alone are stage finetune)": (0.0, 1.1, float("nan")),
    "greater than 0 and at most 1": (0.0, 1.1, float("nan")),
    "between 0 and 1": (0.0, 1.0, 1.5),
    "greater than 0 and at most 178.0, Pillow's own limit": (0.0, 178.1, float("nan")),
}
RULED = [(name, words) for names, words, _ in RULES for name in names]


@pytest.mark.parametrize("name, words", RULED)
def test_every_rule_refuses(name, words):
    for value in REFUSED_BY[words]:
        with pytest.raises(UserError) as raised:
            validation.validate(change(small(), **{name: value}), devices=8)
        assert str(raised.value) == f"{name} is {str(value)[:80]}: it must be {words}"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"train.batch_size": 60}, "60, which 8 devices .* --config.train.batch_size=64"),
        ({"train.batch_size": 3}, "3, which 8 devices .* --config.train.batch_size=8"),
        ({"bn.groups": 6}, "groups is 6, .*=64 is no 6 equal .* --config.train.batch_size=72, or"),
        ({"bn.groups": 64}, "groups is 64, .* 2 images or more: set .*train.batch_size=128, or"),
        ({"bn.groups": 48}, "groups is 48, but .* set --config.train.batch_size=96, or"),
        ({"train.steps": 0}, "train.steps is 0"),
        ({"train.epochs": 0.0}, "train.epochs is 0"),
        ({"train.epochs": float("inf")}, "train.epochs is inf"),
        ({"model.width": 0.01}, "model.width is 0.01"),
        ({"init.parts": "encoder"}, "init.parts is encoder, .* or set --config.init.run=RUN"),
        ({"model.width": 1 / 64, "model.sk_ratio": 0.1}, "halves 64 . width.* 2 channels or more"),
        (
            {"model.variant": "torchvision", "model.sk_ratio": 0.1},
            "sk_ratio is 0.1, but model.variant=torchvision .* set --config.model.sk_ratio=0.0, or",
        ),
        ({"train.steps_per_call": 30, "log.every_steps": 100}, "--config.log.every_steps=90"),
        ({"augment.views.second.flip": 1.5}, "views.second.flip is 1.5"),
        ({"augment.views.first.area_min": 0.0}, "views.first.area_min is 0"),
        ({"augment.views.first.area_max": 0.01}, "area_min is 0.08.*area_max=0.01"),
        ({"augment.views.first.hue": -0.1}, "views.first.hue is -0.1"),
        ({"eval.probe_tap": 4}, r"probe_tap is 4, but the head has 3 layer.* 1 to 3 for a layer"),
        ({"eval.probe_tap": -2}, r"probe_tap is -2, but the head has 3 layer"),
        ({"eval.probe_tap": 1, "head.kind": "none"}, "probe_tap is 1, but there is no head: set 0"),
        ({"head.bias": "all"}, "bias is all, but .* nonlinear .* hidden, or set .*head.kind=mlp"),
        ({"head.norm": "none"}, "norm is none, but .* nonlinear .* hidden, or set .*head.kind=mlp"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        validation.validate(change(small(), **fields), devices=8)


@pytest.mark.parametrize("groups", [0, 1, 2, 16, 32])
def test_equal_groups_of_two_images_or_more_are_allowed(groups):
    validation.validate(change(small(), bn__groups=groups), devices=8)


def test_a_batch_of_one_image_is_refused():
    with pytest.raises(UserError, match="2 images or more"):
        validation.validate(change(small(), train__batch_size=1), devices=1)


def test_a_field_unknown_or_missing_is_named():
    with small().unlocked() as c:
        c.head.dimm = 64
    with pytest.raises(UserError, match=r'"head.dimm" .did you mean "dim"'):
        validation.validate(c, devices=8)
    with small().unlocked() as c:
        del c.bn.epsilon
    with pytest.raises(UserError, match=r'lacks "bn.epsilon"'):
        validation.validate(c, devices=8)


def test_a_recipe_cannot_add_a_field_by_misspelling_it():
    with pytest.raises(AttributeError, match="bach_size"):
        recipes.base().train.bach_size = 64


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"augment__placement": "split"}, "OpenCV.*augment.grid=opencv"),
        ({"augment__grid": "opencv"}, "placement=split, not device"),
        ({"augment__placement": "host", "data__resident": True}, "data.resident.*not host"),
        ({"augment__placement": "canvas", "augment__grid": "opencv"}, "split, not canvas"),
        ({"augment__placement": "canvas", "data__resident": True}, "data.resident.*not canvas"),
        (
            {"augment__placement": "canvas", "augment__canvas": 16},
            "augment.canvas is 16, smaller than views of 32 pixels.*augment.canvas=32 or more",
        ),
        (
            {"augment__placement": "canvas", "data__image_size": 1003},
            "augment.canvas is 512, smaller than views of 1003 .*augment.canvas=1008 or more",
        ),
        ({"augment__canvas": 256}, "augment.canvas is 256, but .*device does not read it"),
        ({"augment__jpeg_scaling": True}, "jpeg_scaling is True, but .*device does not read it"),
        (
            {"augment__placement": "host", "augment__precision": "bfloat16"},
            "augment.precision is bfloat16, but .*host does not read it: leave it at float32",
        ),
        (
            {"augment__placement": "host", "augment__dtype": "bfloat16"},
            "augment.dtype is bfloat16, but .*host does not read it",
        ),
        ({"data__threads": 0}, "data.threads is 0"),
    ],
)
def test_placements_and_what_belongs_to_them(fields, message):
    with pytest.raises(UserError, match=message):
        validation.validate(change(small(), **fields), devices=8)


@pytest.mark.parametrize(
    "height, width, fits",
    # area 0.08 and aspect 4:3 leave sqrt(0.06) = 0.245 of a square side: 3 pixels round to 1.
    [(3, 3, True), (2, 2, False), (1, 9, True), (1, 4, False)],
)
def test_smallest_crop(height, width, fits):
    c = small()
    if fits:
        validation.smallest_crop(c, height, width)
        return
    with pytest.raises(UserError, match=f"{height}x{width} pixels.*area_min=0.08"):
        validation.smallest_crop(c, height, width)
    for view in c.augment.views.values():
        view.crop = False
    validation.smallest_crop(c, height, width)
