"""Every field of a recipe that makes views, rates and updates reaches them, and no other does."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import noisy
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.stages import build, pretrain, views
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables

# Of a view: a value unlike its default and unlike every other, and the field of the policy it sets.
PLAIN = {
    "crop": False,
    "min_object_covered": 0.31,
    "flip": 0.32,
    "jitter": 0.33,
    "grayscale": 0.34,
    "blur": 0.35,
    "solarize": 0.36,
    "solarize_threshold": 0.37,
    "grayscale_first": True,
    "size": 24,
}
PAIRS = {
    "area": ("area_min", "area_max", 0.41, 0.42),
    "aspect": ("aspect_min", "aspect_max", 0.43, 0.44),
    "blur_sigma": ("blur_sigma_min", "blur_sigma_max", 0.45, 0.46),
}
STRENGTHS = {"brightness": 0.51, "contrast": 0.52, "saturation": 0.53, "hue": 0.54}


@pytest.mark.parametrize("name", ["first", "second"])
def test_each_field_of_a_view_reaches_its_own_policy(name):
    c = recipes.base()
    c.data.image_size, c.augment.grid, c.augment.brightness_mode = 32, "half_pixel", "add"
    c.augment.crop_law, c.augment.clip_resized = "area_cut", True
    view = c.augment.views[name]
    view.update(PLAIN | STRENGTHS | {"strength": 0.7})
    for low, high, least, most in PAIRS.values():
        view.update({low: least, high: most})
    made = dict(zip(("first", "second"), build.policies(c)["views"], strict=True))
    changed, (other,) = made.pop(name), made.values()
    for field, value in PLAIN.items():
        assert getattr(changed, field) == value, field
    for field, (_, _, least, most) in PAIRS.items():
        assert getattr(changed, field) == (least, most), field
    for field, value in STRENGTHS.items():
        assert getattr(changed, field) == pytest.approx(0.7 * value), field
    for policy in (changed, other):
        assert (policy.grid, policy.brightness_mode) == ("half_pixel", "add")
        assert (policy.crop_law, policy.clip_resized) == ("area_cut", True)
    assert (other.size, other.area, other.aspect, other.hue) == (
        32,
        (0.08, 1.0),
        (3 / 4, 4 / 3),
        0.2,
    )
    assert (other.crop, other.flip, other.jitter, other.blur) == (True, 0.5, 0.8, 0.5)


# Views --------------------------------------------------------------------------------------------


def batch(count=6, start=100):
    position = np.stack([np.zeros(count), start + np.arange(count)], 1).astype(np.uint32)
    first = np.tile(np.array([[0, start]], np.uint32), (count, 1))
    image = noisy.pixels(np.arange(count) % 4, 5, side=8)
    return {"image": image, "position": position, "start": first}


def still(**fields):
    """Return a recipe whose views are their images: nothing is drawn that shows."""
    c = tiny.recipe(**fields)
    for view in c.augment.views.values():
        view.update(crop=False, flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
    return c


def made(config, of=None):
    return np.asarray(jax.jit(views.view_maker(config))(of or batch())["views"], np.float32)


def test_the_first_view_is_that_of_the_first_policy():
    c = still()
    c.augment.views.second.flip = 1.0
    shown, images = made(c), batch()["image"] / 255
    np.testing.assert_allclose(shown[:, 0], images, atol=1e-6)
    np.testing.assert_allclose(shown[:, 1], images[:, :, ::-1], atol=1e-6)


def test_strength_is_how_far_colours_are_changed():
    """With brightness alone, factors lie in 1 - s to 1 + s, and reach far into it."""
    factors = {}
    for strength in (0.25, 0.5, 1.0):
        c = still()
        for view in c.augment.views.values():
            view.update(jitter=1.0, strength=strength, contrast=0.0, saturation=0.0, hue=0.0)
        gray = batch(200) | {"image": np.full((200, 8, 8, 3), 80, np.uint8)}
        factors[strength] = made(c, gray)[:, :, 0, 0, 0] * 255 / 80
        most = 0.8 * strength
        assert np.abs(factors[strength] - 1).max() == pytest.approx(most, rel=0.05)
        assert np.abs(factors[strength] - 1).max() <= most + 1e-5
        assert np.std(factors[strength]) == pytest.approx(most / np.sqrt(3), rel=0.1)


def test_draws_are_of_the_seed_and_of_the_position_in_the_run():
    c = tiny.recipe()
    want, moved = made(c), batch(start=103)
    np.testing.assert_array_equal(made(tiny.recipe()), want)
    assert np.abs(made(tiny.recipe(seed=1)) - want).max() > 0.1
    # The same images three positions on: what was drawn there for others.
    later = batch(9)
    later["image"][3:] = batch()["image"]
    np.testing.assert_allclose(made(c, moved), made(c, later)[3:], atol=1e-6)
    assert np.abs(want[:, 0] - want[:, 1]).max() > 0.1  # nor are the two views alike


def test_the_width_of_a_blur_may_be_shared_by_a_batch():
    def widths(per):
        c = still(augment__sigma_per=per)
        c.augment.views.first.update(blur=1.0, blur_sigma_min=0.3, blur_sigma_max=2.0, size=32)
        c.augment.views.second.size = 32
        spot = np.zeros((6, 32, 32, 3), np.uint8)
        spot[:, 16, 16] = 255
        return made(c, batch() | {"image": spot})[:, 0, 16, 16, 0]

    assert np.ptp(widths("batch")) < 1e-6 < 0.02 < np.ptp(widths("image"))


# Rates and updates --------------------------------------------------------------------------------


def test_the_rate_rises_to_its_peak_and_falls_as_a_cosine():
    timetable = timetables.make(
        tiny.recipe(
            train__steps=50, optim__warmup_epochs=4.0, optim__base_lr=0.7, optim__lr_scaling="sqrt"
        ),
        examples=40,
    )
    assert timetable.warmup_steps == 10 and timetable.peak_rate == pytest.approx(0.7 * 4)
    rate = build.schedule(timetable)
    for step in (0, 3, 10, 17, 30, 49):
        cosine = (1 + np.cos(np.pi * (step - 10) / 40)) / 2
        want = 2.8 * (step / 10 if step < 10 else cosine)
        assert float(rate(step)) == pytest.approx(want, abs=1e-6), step


WEIGHTS = {
    "encoder": {"stem_conv": {"conv": {"kernel": np.array([3.0, -4.0])}}},
    "classifier": {"dense": {"kernel": np.array([1.0, 2.0]), "bias": np.array([0.5])}},
}
GRADIENTS = {
    "encoder": {"stem_conv": {"conv": {"kernel": np.array([0.6, 0.2])}}},
    "classifier": {"dense": {"kernel": np.array([-0.4, 0.1]), "bias": np.array([0.3])}},
}


def updated(rates, learns=None, own=None, **fields):
    """Return weights after an update at each rate, all with the same gradients."""
    c = tiny.recipe(**{f"optim__{name}": value for name, value in fields.items()})
    each = jnp.asarray(rates)
    optimizer = build.optimizer(c, lambda step: each[step], learns=learns, rates=own)
    weights = jax.tree.map(np.float32, WEIGHTS)
    state = optimizer.init(weights)
    for _ in rates:
        moves, state = optimizer.update(jax.tree.map(np.float32, GRADIENTS), state, weights)
        weights = jax.tree.map(np.add, weights, moves)
    return weights


def lars(w, g, rates, decay, momentum, trust, adapted, late):
    v = np.zeros_like(w)
    for rate in rates:
        d = g + decay * w
        if adapted:
            d = d * trust * np.linalg.norm(w) / np.linalg.norm(d)
        v = momentum * v + (d if late else rate * d)
        w = w - (rate * v if late else v)
    return w


def sgd(w, g, rates, decay, momentum, inside):
    v = np.zeros_like(w)
    for rate in rates:
        d = (g + decay * w) * (rate if inside else 1)
        v = momentum * v + d
        w = w - (1 if inside else rate) * (d + momentum * v)  # Nesterov's
    return w


RATES = (0.2, 0.5, 0.1)


def leaves(tree):
    dense = tree["classifier"]["dense"]
    return tree["encoder"]["stem_conv"]["conv"]["kernel"], dense["kernel"], dense["bias"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("adapt", [False, True])
def test_lars_has_the_settings_of_the_recipe(late, adapt):
    fields = {"momentum": 0.7, "weight_decay": 0.03, "trust_coefficient": 0.02}
    found = updated(RATES, name="lars", adapt_classifier=adapt, rate_after_momentum=late, **fields)
    # Kernels decay, biases do not; of the classifier the kernel is adapted only if asked for.
    kinds = ((0.03, True), (0.03, adapt), (0.0, False))
    for w, g, after, (decay, adapted) in zip(
        leaves(WEIGHTS), leaves(GRADIENTS), leaves(found), kinds, strict=True
    ):
        want = lars(w, g, RATES, decay, 0.7, 0.02, adapted, late)
        np.testing.assert_allclose(after, want, rtol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_sgd_has_the_settings_of_the_recipe(inside):
    found = updated(RATES, name="sgd", momentum=0.7, weight_decay=0.03, rate_in_momentum=inside)
    w, g, after = (leaves(tree)[0] for tree in (WEIGHTS, GRADIENTS, found))
    np.testing.assert_allclose(after, sgd(w, g, RATES, 0.03, 0.7, inside), rtol=1e-5)


@pytest.mark.parametrize("name", ["lars", "sgd", "adam", "adamw"])
def test_what_does_not_learn_stays_and_a_part_may_have_a_rate_of_its_own(name):
    fixed = updated(RATES, learns=lambda path: path[0] == "classifier", name=name)
    np.testing.assert_array_equal(leaves(fixed)[0], leaves(WEIGHTS)[0])
    assert all((a != b).all() for a, b in zip(leaves(fixed)[1:], leaves(WEIGHTS)[1:], strict=True))
    own = updated(RATES, own={"encoder": lambda step: 0.0 * step}, name=name)
    np.testing.assert_array_equal(leaves(own)[0], leaves(WEIGHTS)[0])
    plain = updated(RATES, name=name)
    for i in (1, 2):
        np.testing.assert_allclose(leaves(own)[i], leaves(plain)[i], rtol=1e-6)
        np.testing.assert_allclose(leaves(fixed)[i], leaves(plain)[i], rtol=1e-6)


# The probe that watches ---------------------------------------------------------------------------


@functools.cache
def pretraining(tap):
    c, source = tiny.recipe(eval__probe_tap=tap), noisy.split(1).images
    timetable = timetables.make(c, len(source))
    mesh = parallel.make_mesh(1)
    return pretrain.make_stage(c, timetable, Inputs(c, source, source), mesh)


@pytest.mark.parametrize("tap", [1, -1])
def test_the_probe_is_taught_both_views_of_each_image_with_its_label(tap):
    stage = pretraining(tap)
    state = tiny.perturbed(stage.init())
    one = next(stage.batches(0, 1))[1]
    one = {name: x[0] for name, x in one.items()} | {"row": np.arange(tiny.BATCH)}

    def forward(batch):
        return stage.forward(state.params, state.batch_stats, {}, batch, 0)[0]

    outputs = jax.jit(jax.vmap(forward, axis_name=parallel.AXIS))(
        {name: x[None] for name, x in one.items()}
    )
    of = jax.vmap(lambda o: stage.objective(o, {}, 0, parallel.AXIS), axis_name=parallel.AXIS)
    loss, metrics = jax.tree.map(lambda x: float(x[0]), jax.jit(of)(outputs))
    logits = np.asarray(outputs["probe"]["logits"][0], np.float64)  # [n, v, classes]
    y = np.asarray(one["label"])
    assert logits.shape == (tiny.BATCH, 2, noisy.CLASSES) and len(np.unique(y)) > 2
    each = [noisy.cross_entropy(logits[:, view], y) for view in (0, 1)]
    assert metrics["probe_loss"] == pytest.approx(np.mean(each), rel=1e-5)
    right = [logits[:, view].argmax(1) == y for view in (0, 1)]
    assert metrics["train_probe_accuracy"] == pytest.approx(np.mean(right))
    assert metrics["loss"] + metrics["probe_loss"] == pytest.approx(loss, rel=1e-6)
    if tap == -1:
        dense = state.params["probe"]["dense"]
        z = np.asarray(outputs["z"][0], np.float64)
        want = z @ np.float64(dense["kernel"]) + dense["bias"]
        np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)
