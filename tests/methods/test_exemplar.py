"""Exemplar: its classes and its triplets by hand, on eight devices, and what it refuses."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
import smallest
from frame import toys
from train import tiny

from simclr_jax import declaration, parallel, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.methods import exemplar
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

IMAGES = tiny.BATCH * tiny.STEPS
TRIPLET = {"exemplar__form": "triplet", "exemplar__dim": 5}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(**fields):
    fixed = {"train__dtype": "float64", "augment__views__first__copies": 3, "optim__base_lr": 0.01}
    return toys.recipe("exemplar", **{**fixed, **fields})


@pytest.mark.parametrize(
    "fields", [{}, TRIPLET, {**TRIPLET, "exemplar__normalize": "batch"}], ids=str
)
def test_eight_devices_do_what_one_does(fields):
    c = recipe(**fields)
    _, metrics = toys.both(c)
    found = declaration.find("exemplar").chance(c, IMAGES)
    assert found == (0.5 if fields else pytest.approx(math.log(IMAGES)))
    assert metrics[0]["loss"] == pytest.approx(found, rel=0.2)
    assert all(0 <= m["exemplar_accuracy"] <= 1 for m in metrics)


def embedded(c):
    """Return metrics of a step, what the linear layer makes `[v, n, d]`, and numbers of images."""
    stage, mesh = tiny.make_stage(c, 1)
    state, (_, batch) = tiny.perturbed(stage.init()), next(stage.batches(0, 1))
    _, metrics = make_step(stage, mesh)(parallel.replicate(mesh, state), batch)
    views = np.asarray(jax.jit(stage.look)({k: rows[0] for k, rows in batch.items()})["views"])
    encoder = toys.Small(functools.partial(modules.norm(c), axis_name=None))
    variables = {kind: getattr(state, kind)["encoder"] for kind in ("params", "batch_stats")}
    apply = jax.jit(functools.partial(encoder.apply, train=True, mutable=["batch_stats"]))
    rows = np.moveaxis(views, 1, 0).reshape(-1, *views.shape[2:])
    h = np.asarray(apply(variables, rows)[0]["h"])
    dense = state.params["exemplar"]["dense"]
    found = h @ dense["kernel"] + dense["bias"]
    return metrics, found.reshape(3, len(views), -1), np.asarray(batch["example"][0])


def test_a_class_is_the_number_of_the_image():
    metrics, logits, example = embedded(recipe(bn__groups=1))
    assert logits.shape == (3, tiny.BATCH, IMAGES) and len(set(example)) == tiny.BATCH
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = log_p[:, np.arange(tiny.BATCH), example]
    np.testing.assert_allclose(metrics["loss"][0], -own.mean(), rtol=1e-10)
    right = (logits.argmax(-1) == example).mean()
    np.testing.assert_allclose(metrics["exemplar_accuracy"][0], right, rtol=1e-12)


@pytest.mark.parametrize("normalize, axis", [("rows", 1), ("batch", 0)])
def test_triplets_one_by_one(normalize, axis):
    """The nearest negative beyond the positive, else the farthest; squared distances."""
    metrics, z, _ = embedded(recipe(bn__groups=1, exemplar__normalize=normalize, **TRIPLET))
    rows, label = z.reshape(-1, 5), np.tile(np.arange(tiny.BATCH), 3)
    rows = rows / np.linalg.norm(rows, axis=axis, keepdims=True)
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    costs = []
    for a in range(len(rows)):
        negatives = apart[a][label != label[a]]
        for p in np.flatnonzero(label == label[a]):
            if p != a:
                beyond = negatives[negatives > apart[a, p]]
                far = beyond.min() if len(beyond) else negatives.max()
                costs.append(max(0, 0.5 + apart[a, p] - far))
    np.testing.assert_allclose(metrics["loss"][0], np.mean(costs), rtol=1e-9)
    in_order = np.mean(np.array(costs) == 0)
    np.testing.assert_allclose(metrics["exemplar_accuracy"][0], in_order, atol=1e-12)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"exemplar__margin": 0.7}, "exemplar.form=classes does not read it"),
        ({"exemplar__form": "softmax"}, "exemplar.form"),
        ({**TRIPLET, "augment__views__first__copies": 1}, r"has 1 view\(s\), which is nearer to"),
        ({"head__dim": 9}, "head.dim"),
    ],
)
def test_what_does_not_go_together_is_named(fields, message):
    c = recipes.base("exemplar")
    tiny.shrink(c)
    c.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    with pytest.raises(UserError, match=message):
        validation.validate(c, 1)


def test_more_images_than_classes_are_refused_in_one_line_and_triplets_take_them():
    setting = smallest.setting(exemplar.MOST_CLASSES + 1, 0, 16)
    with pytest.raises(UserError, match=r"100001 images.*at most 100000.*form=triplet") as found:
        exemplar.make(recipe(), setting)
    assert "\n" not in str(found.value)
    exemplar.make(recipe(), setting._replace(examples=exemplar.MOST_CLASSES))
    exemplar.make(recipe(**TRIPLET), setting)


@pytest.mark.parametrize("fields, asked", [({}, f"which of {IMAGES}"), (TRIPLET, "nearer")])
def test_the_picture_says_what_is_asked(fields, asked):
    stage, _ = tiny.make_stage(recipe(**fields), 1)
    batch = {name: rows[0] for name, rows in next(stage.batches(0, 1))[1].items()}
    seen = stage.show(jax.jit(stage.look)(batch), batch)
    assert seen.pictures["views"].shape[1] == 3
    assert len(seen.answers) == tiny.BATCH and all(asked in text for text in seen.answers)
