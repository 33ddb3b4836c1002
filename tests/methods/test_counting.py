"""Counting: what it looks at, its loss from tiles one by one, its neighbours on eight devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frame import toys
from losses import over_devices
from PIL import Image
from train import tiny

from simclr_jax import parallel, recipes, validation
from simclr_jax.augment import tiles
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.losses.counting import counting, of_image_before
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(**fields):
    fixed = {"train__dtype": "float64", "head__hidden": 30, "head__layers": 2, "head__dim": 20}
    return toys.recipe("counting", **{**fixed, "counting__margin": 0.3, **fields})


def test_eight_devices_do_what_one_does():
    """Also where the image before lies on another device, and with the margin in reach."""
    _, metrics = toys.both(recipe(optim__base_lr=0.01))
    assert all(0 < m["count_gap"] < m["loss"] for m in metrics), metrics


def test_quarters_are_cut_row_by_row():
    x = RANDOM.uniform(size=(2, 6, 4, 3))
    found = tiles.quarters(x)
    want = [x[:, :3, :2], x[:, :3, 2:], x[:, 3:, :2], x[:, 3:, 2:]]
    np.testing.assert_array_equal(found, np.stack(want, 1))
    with pytest.raises(ValueError, match="5x4 pixels"):
        tiles.quarters(x[:, :5])


@pytest.mark.parametrize(
    "kernel, peer",
    [("area", "BOX"), ("linear", "BILINEAR"), ("cubic", "BICUBIC"), ("lanczos3", "LANCZOS")],
)
def test_halves_are_those_of_pillow(kernel, peer):
    """Which has the same kernels, widened as far; its bicubic is a little sharper or blunter."""
    x = RANDOM.uniform(0.2, 0.8, size=(20, 12)).astype(np.float32)
    found = tiles.halved(x[None, :, :, None], kernel)[0, :, :, 0]
    want = np.asarray(Image.fromarray(x).resize((6, 10), Image.Resampling[peer]))
    np.testing.assert_allclose(found, want, atol=2e-6)


def test_each_image_is_halved_by_a_kernel_of_its_own():
    images = jnp.asarray(RANDOM.uniform(size=(40, 6, 6, 1)))
    keys = jax.random.split(jax.random.key(0), 40)
    found = tiles.halved_at_random(images, keys)
    each = np.stack([tiles.halved(images, kernel) for kernel in tiles.KERNELS])
    same = np.isclose(each, found).all(axis=(2, 3, 4))  # [kernels, 40]
    np.testing.assert_array_equal(same.sum(axis=0), np.ones(40))
    assert (same.sum(axis=1) > 3).all()
    np.testing.assert_array_equal(tiles.halved_at_random(images[5:], keys[5:]), found[5:])


@pytest.mark.parametrize("form", ["length", "elementwise"])
def test_the_loss_is_that_of_tiles_one_by_one(form):
    """By NumPy, from the pixels on: head with ReLU on the end, another image, both metrics."""
    fields = {"counting__downsampling": "area", "counting__form": form, "bn__groups": 1}
    c = recipe(**fields, augment__views__first__flip=0.0)
    stage, mesh = tiny.make_stage(c, 1)
    state, (_, batch) = tiny.perturbed(stage.init()), next(stage.batches(0, 1))
    _, metrics = make_step(stage, mesh)(parallel.replicate(mesh, state), batch)

    five = np.asarray(jax.jit(stage.look)({k: rows[0] for k, rows in batch.items()})["views"])
    half, cut = five[:, 0], five[:, 1:]  # [n, 4, 4, 3] and [n, 4, 4, 4, 3]
    whole = np.concatenate([np.concatenate([cut[:, 0], cut[:, 1]], 2),
                            np.concatenate([cut[:, 2], cut[:, 3]], 2)], 1)  # fmt: skip
    np.testing.assert_allclose(half, whole.reshape(-1, 4, 2, 4, 2, 3).mean((2, 4)), atol=1e-12)

    encoder = toys.Small(functools.partial(modules.norm(c), axis_name=None))
    variables = {kind: getattr(state, kind)["encoder"] for kind in ("params", "batch_stats")}
    apply = jax.jit(functools.partial(encoder.apply, train=True, mutable=["batch_stats"]))
    x = np.asarray(apply(variables, np.moveaxis(five, 1, 0).reshape(-1, 4, 4, 3))[0]["h"])
    head = state.params["head"]
    x = np.maximum(x @ head["dense1"]["kernel"] + head["dense1"]["bias"], 0)
    x = np.maximum(x @ head["dense2"]["kernel"] + head["dense2"]["bias"], 0)
    counts = x.reshape(5, len(five), -1)
    added, own = counts[1:].sum(0), counts[0]
    near, far = (own - added) ** 2, (np.roll(own, 1, 0) - added) ** 2
    each = np.mean(near + np.maximum(0, 0.3 - far))
    near, far = near.sum(1), far.sum(1)
    want = each if form == "elementwise" else np.mean(near + np.maximum(0, 0.3 - far))
    np.testing.assert_allclose(metrics["loss"][0], want, rtol=1e-10)
    if form == "elementwise":
        return
    np.testing.assert_allclose(metrics["count_gap"][0], near.mean(), rtol=1e-10)
    np.testing.assert_allclose(metrics["counting_accuracy"][0], np.mean(near < far), rtol=1e-12)
    assert counts.min() == 0 < counts.max()


@pytest.mark.parametrize("form", ["length", "elementwise"])
def test_the_image_before_may_be_on_another_device(form):
    """Value and gradient, which returns to that device; twins have no second term."""
    z = RANDOM.normal(size=(5, 16, 3))
    example = np.arange(16) // 2 * np.where(np.arange(16) < 4, 1, 2)  # twins are neighbours

    def loss(views, example, axis_name=None):
        whole, cut = views[0], jnp.stack(views[1:], 1)
        apart = example != of_image_before(example, axis_name)
        other = of_image_before(whole, axis_name)
        how = {"margin": 9.0, "form": form, "axis_name": axis_name}
        return counting(whole, cut, other, apart=apart, **how)

    want = over_devices.on_one(loss, z, example)
    found = over_devices.on_eight(functools.partial(loss, axis_name=parallel.AXIS), z, example)
    over_devices.assert_equal(found, want)
    added, other = z[1:].sum(0), np.roll(z[0], 1, 0)
    apart = example != np.roll(example, 1)
    assert 4 < apart.sum() < 12
    gap, far = (z[0] - added) ** 2, (other - added) ** 2
    each = {
        "length": gap.sum(1) + apart * np.maximum(0, 9 - far.sum(1)),
        "elementwise": gap.mean(1) + apart * np.maximum(0, 9 - far).mean(1),
    }
    np.testing.assert_allclose(want[0], each[form].mean(), rtol=1e-12)


def test_counts_of_nothing_cost_the_margin():
    nothing = jnp.zeros((4, 3))
    for form in ("length", "elementwise"):
        found, _ = counting(nothing, jnp.zeros((4, 4, 3)), nothing, margin=7.0, form=form)
        assert found == 7.0


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data__image_size": 9}, r"data.image_size is 9, .* four equal tiles.*=10"),
        ({"augment__views__first__size": 7}, r"augment.views.first.size is 7, .*first.size=8"),
        ({"head__kind": "none"}, "head.kind is none, but counting"),
        ({"counting__margin": 0.0}, "counting.margin"),
        ({"counting__form": "paper"}, "counting.form"),
        ({"augment__views__first__copies": 2}, "method counting looks at 1"),
    ],
)
def test_what_cannot_be_counted_is_named(fields, message):
    c = recipes.base("counting")
    tiny.shrink(c)
    c.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    with pytest.raises(UserError, match=message):
        validation.validate(c, 1)


def test_the_picture_asks_of_half_and_tiles():
    stage, _ = tiny.make_stage(recipe(), 1)
    batch = {name: rows[0] for name, rows in next(stage.batches(0, 1))[1].items()}
    views = jax.jit(stage.look)(batch)
    seen = stage.show(views, batch)
    assert [seen.pictures[k].shape[1] for k in ("half", "tiles")] == [1, 4]
    assert len(seen.answers) == tiny.BATCH and "four tiles" in seen.answers[0]
    assert all(np.min(p) >= 0 and np.max(p) <= 1 for p in seen.pictures.values())
