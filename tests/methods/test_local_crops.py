"""Local crops: who can use them, who refuses them, how they pass, what losses make of them."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from jax import lax
from recipes.freeze import resolved
from train import tiny

from simclr_jax import declaration, parallel, recipes, validation
from simclr_jax.declaration import LOCAL
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.planning import plan
from simclr_jax.stages import build

x64 = pytest.mark.x64
CAN = [case.removesuffix(smallest.LOCAL) for case in smallest.WITH_LOCAL]


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


@pytest.mark.parametrize("method", declaration.known())
def test_who_does_not_look_at_local_crops_refuses_them_by_name(method):
    """Rather than to draw them and pay for them; other views of the method stay as they are."""
    c = recipes.base(method)
    validation.validate(c, 1)
    recipes.local_crops(c, 6)
    if method in CAN:
        validation.validate(c, 1)
        return
    with pytest.raises(UserError) as refused:
        validation.validate(c, 1)
    said = f"views of the group local, at which method {method} does not look: it knows"
    assert said in str(refused.value)


def test_these_can_use_them():
    assert CAN == ["byol", "contrastive", "moco", "simclr", "simsiam", "supcon"]


@pytest.mark.parametrize(
    "name, argument, size, area",
    [
        ("imagenet", "local=6", 96, (0.05, 0.14)),
        ("cifar10", "local=6", 18, (0.3, 0.75)),
        ("digits", "local=6", 18, (0.3, 0.5)),
    ],
)
def test_a_recipe_has_them_by_one_argument(name, argument, size, area):
    """Cut as published: nothing that a global crop shows is less than what a local one may."""
    c = resolved(name, argument)
    validation.validate(c, 8)
    groups = build.policies(c)
    assert [len(groups[group]) for group in ("views", LOCAL)] == [2, 6]
    assert {(p.size, p.area, p.crop) for p in groups[LOCAL]} == {(size, area, True)}
    for one in groups["views"]:
        assert one.size == c.data.image_size and one.area == (area[1], 1.0)
    (local,) = set(groups[LOCAL])
    # With the law of TensorFlow a smaller crop than this would be drawn again.
    assert local.min_object_covered <= local.area[0]
    recipes.local_crops(c, 0)
    assert LOCAL not in c.augment.views


def test_the_law_of_pytorch_keeps_the_limit_that_it_does_not_read():
    c = recipes.base()
    c.augment.crop_law = "area"
    recipes.local_crops(c, 2)
    validation.validate(c, 1)


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            {"size": 224},
            "local.size is 224, but .* smaller .* 224 pixels: set .*local.size=96, say",
        ),
        ({"size": 0}, "local.size is 0: it must be 1 or more"),
        ({"copies": 0}, "local.copies is 0: it must be 1 or more"),
        (
            {"area_max": 0.09, "min_object_covered": 0.1},
            "area_max is 0.09, below its min_object_covered=0.1, .* the whole image: set "
            ".*min_object_covered=0.05",
        ),
    ],
)
def test_crops_that_are_none_are_refused(fields, words):
    c = recipes.base()
    recipes.local_crops(c, 4)
    c.augment.views.local.update(fields)
    with pytest.raises(UserError, match=words):
        validation.validate(c, 1)


def test_without_a_size_of_images_one_has_to_be_given():
    c = resolved("folder")
    with pytest.raises(UserError, match=r"data.image_size is left open.*give .* a size"):
        recipes.local_crops(c, 4)
    recipes.local_crops(c, 4, size=96)
    validation.validate(c, 1)
    assert c.augment.views.local.size == 96


@x64
def test_they_pass_by_themselves_after_the_others_on_eight_devices_as_on_one(small):
    """Statistics are of the pass: the averages move by global crops, and then by local ones."""
    fields = {"train__dtype": "float64", "bn__groups": 1, "memory__size": 0, "train__steps": 2}
    config = smallest.recipe("simclr" + smallest.LOCAL, **fields)
    states, metrics = toys.both(config, steps=2)
    stage, _ = tiny.make_stage(config, 1)
    assert stage.views_per_image == 5
    _, batch = next(stage.batches(0, 1))
    views = stage.look({name: jnp.asarray(value[0]) for name, value in batch.items()})
    assert {name: v.shape[1:] for name, v in views.items()} == {
        "views": (2, 8, 8, 3),
        LOCAL: (3, 5, 5, 3),
    }
    local = np.asarray(views[LOCAL])
    assert all(np.abs(local[:, 0] - local[:, k]).max() > 0.01 for k in (1, 2))  # drawn one by one

    kernel = states[0].params["encoder"]["conv"]["kernel"]
    mean, var = (states[0].batch_stats["encoder"]["bn"][name] for name in ("mean", "var"))
    for group in ("views", LOCAL):
        rows = np.asarray(views[group]).reshape(-1, *views[group].shape[2:])
        x = jax.lax.conv_general_dilated(
            rows, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean = 0.9 * mean + 0.1 * np.mean(x, (0, 1, 2))
        var = 0.9 * var + 0.1 * np.var(x, (0, 1, 2))
    moved = states[1].batch_stats["encoder"]["bn"]
    np.testing.assert_allclose(moved["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(moved["var"], var, rtol=1e-12)
    assert all(np.isfinite(m["loss"][0]) for m in metrics)


def outputs_of(method, made):
    """Return what a method's `forward` and `watch` would return of these embeddings `[n, v, d]`."""
    whole, local = made[:, :2], made[:, 2:]
    row = np.arange(len(made))
    return {
        "z": [whole[:, 0], whole[:, 1]] if method == "simsiam" else whole,
        "prediction": [whole[:, 0], whole[:, 1]],
        "target": [whole[:, 0], whole[:, 1]],
        "query": whole[:, 0],
        "key": whole[:, 1],
        "label": row % 4,
        "kept": {"example": row},
        LOCAL: local,
    }


def loss_of(config, made):
    """Return the loss of a method for these embeddings, and for those without local crops."""
    make = declaration.module(config.method).make
    method = make(config, smallest.setting(48, 4, len(made)))
    alike = jnp.ones((24, made.shape[-1])) / math.sqrt(made.shape[-1])
    extra = {"queue": alike} if config.method == "moco" else {}
    mesh = parallel.make_mesh(1)

    def loss(outputs):
        keys = Keys(0, jnp.zeros((), jnp.int32))
        return lax.psum(method.loss(outputs, extra, keys, parallel.AXIS)[0], parallel.AXIS)

    of = jax.shard_map(loss, mesh=mesh, in_specs=jax.P(parallel.AXIS), out_specs=jax.P())
    asked = outputs_of(config.method, made)
    plain = {name: x for name, x in asked.items() if name != LOCAL}
    return jax.jit(lambda asked, plain: (of(asked), of(plain)))(asked, plain)


def recipe(method, **fields):
    c = recipes.base(method)
    c.train.batch_size = 8
    if method == "moco":
        c.moco.queue = 24
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    recipes.local_crops(c, 3)
    return c


@x64
@pytest.mark.parametrize("method", ["simclr", "contrastive", "moco", "supcon"])
def test_chance_is_that_of_embeddings_that_are_equal(method):
    config = recipe(method)
    asked, plain = loss_of(config, np.ones((8, 5, 4)))
    assert asked == pytest.approx(declaration.find(method).chance(config), rel=1e-12)
    if method == "supcon":  # a local crop has one candidate more
        recipes.local_crops(config, 0)
        assert plain == pytest.approx(declaration.find(method).chance(config), rel=1e-12)
        assert plain < asked
    else:
        assert plain == pytest.approx(asked, rel=1e-12)


@x64
@pytest.mark.parametrize("method, factor", [("byol", 2), ("simsiam", 1)])
def test_predictions_of_local_crops_meet_both_targets(method, factor):
    """By hand, pair by pair: what predicts is any crop, what is predicted the others of the two."""
    made = np.random.default_rng(0).normal(size=(8, 5, 4))
    unit = made / np.linalg.norm(made, axis=-1, keepdims=True)

    def mean(pairs):
        cosines = [unit[i, c] @ unit[i, t] for c, t in pairs for i in range(8)]
        return np.mean(2 - 2 * np.array(cosines) if method == "byol" else -np.array(cosines))

    both = [(0, 1), (1, 0)]
    asked, plain = loss_of(recipe(method), made)
    more = [(c, t) for c in (2, 3, 4) for t in (0, 1)]
    assert plain == pytest.approx(factor * mean(both), rel=1e-12)
    assert asked == pytest.approx(factor * mean(both + more), rel=1e-12)


@pytest.mark.slow
def test_the_plan_counts_them(small, tmp_path, capsys, monkeypatch):
    """Their work and memory; and says of what sides views are."""
    monkeypatch.setattr(plan, "CHANGES", ())  # of the recipe as it is
    found = {}
    for case in ("simclr", "simclr" + smallest.LOCAL):
        c = smallest.recipe(case, data__source="folder", data__path="nowhere")
        c.data.image_size = 10
        path = tmp_path / "plan.json"
        plan.run(c, plan.Asked("h100", 1, images=48, classes=4), str(path))
        found[case] = json.loads(path.read_text())
    said = capsys.readouterr().out
    assert "views of 10 pixels" in said and "views of 10 (2) and 5 (3) pixels" in said
    assert f"({2 * tiny.BATCH} views)" in said and f"({5 * tiny.BATCH} views)" in said
    without, with_local = (found[case] for case in ("simclr", "simclr" + smallest.LOCAL))
    assert with_local["state"] == without["state"]
    # Convolutions of 3 crops of 3x3 beside 2 views of 5x5 outputs, and more queries of the loss.
    assert 1.3 < with_local["flops"] / without["flops"] < 3
    assert with_local["estimated"]["peak"] > without["estimated"]["peak"]
