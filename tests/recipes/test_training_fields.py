"""Fields of length, rate, optimiser and loss, each against its closed form in float64 NumPy."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.stages import build
from simclr_jax.train import timetable as timetables

# Length and rate ----------------------------------------------------------------------------------

EXAMPLES = 1000
LENGTH = {
    "train.batch_size": 64,
    "train.epochs": 4.0,
    "optim.warmup_epochs": 1.0,
    "optim.base_lr": 0.3,
    "optim.lr_scaling": "linear",
    "eval.every_epochs": 2.0,
    "log.every_steps": 10,
    "checkpoint.every_steps": 20,
    "train.steps_per_call": 1,
}
# Steps, warm-up and peak rate of 1000 images: with nothing changed, and with one field.
RATES = [
    ({}, (63, 15, 0.3 / 4)),
    ({"train.batch_size": 32}, (126, 31, 0.3 / 8)),
    ({"train.epochs": 2.5}, (40, 15, 0.3 / 4)),
    ({"train.steps": 50}, (50, 15, 0.3 / 4)),
    ({"optim.base_lr": 0.5}, (63, 15, 0.5 / 4)),
    ({"optim.lr_scaling": "sqrt"}, (63, 15, 0.3 * 8)),
    ({"optim.lr_scaling": "none"}, (63, 15, 0.3)),
    ({"optim.warmup_epochs": 0.5}, (63, 7, 0.3 / 4)),
    ({"optim.warmup_epochs": 0.0}, (63, 0, 0.3 / 4)),
]


def changed(fields, c=None):
    c = c or recipes.base()
    for name, value in fields.items():
        recipes.put(c, name, value)
    return c


@pytest.mark.parametrize("fields, expected", RATES)
def test_the_rate_of_every_step(fields, expected):
    total, warmup, peak = expected
    schedule = build.schedule(timetables.make(changed({**LENGTH, **fields}), EXAMPLES))
    found = jax.vmap(schedule)(np.arange(total + 1))
    want = [
        peak * k / warmup
        if k < warmup
        else peak * (1 + math.cos(math.pi * (k - warmup) / (total - warmup))) / 2
        for k in range(total + 1)
    ]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6 * peak)


def test_a_rate_may_fall_by_the_epoch():
    """In epochs of 15.6 steps: the epochs asked for, or those that the steps come to."""
    for fields, epochs, total in (({}, 4.0, 63), ({"train.steps": 50}, 50 * 64 / EXAMPLES, 50)):
        fields = {**LENGTH, "optim.warmup_epochs": 1.0, "optim.rate_per": "epoch", **fields}
        schedule = build.schedule(timetables.make(changed(fields), EXAMPLES))
        found, want = jax.vmap(schedule)(np.arange(total)), []
        for k in range(total):
            epoch = max(k * 64 // EXAMPLES, 1)
            falls = (1 + math.cos(math.pi * (epoch - 1) / (epochs - 1))) / 2
            want.append(0.3 / 4 * (k / 15 if k < 15 else falls))
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)


DUE = [
    ({}, (31, 10, 20)),
    ({"eval.every_epochs": 1.0}, (16, 10, 20)),
    ({"eval.every_epochs": 0.0}, (0, 10, 20)),
    ({"log.every_steps": 5}, (31, 5, 20)),
    ({"checkpoint.every_steps": 40}, (31, 10, 40)),
    ({"train.steps_per_call": 10}, (30, 10, 20)),
]


@pytest.mark.parametrize("fields, expected", DUE)
def test_what_is_due_and_when(fields, expected):
    t = timetables.make(changed({**LENGTH, **fields}), EXAMPLES)
    assert (t.evaluate_every, t.log_every, t.save_every) == expected


# The optimiser ------------------------------------------------------------------------------------

SCHEDULE = np.array([0.5, 0.2, 0.3])
_random = np.random.default_rng(0)
PARAMS = {
    "encoder": {
        "conv": {"kernel": _random.normal(size=(3, 2))},
        "bn": {"scale": _random.normal(size=2), "bias": _random.normal(size=2)},
    },
    "head": {"dense1": {"kernel": _random.normal(size=(2, 4)), "bias": _random.normal(size=4)}},
    "classifier": {
        "dense": {"kernel": _random.normal(size=(4, 3)), "bias": _random.normal(size=3)}
    },
}
GRADIENTS = [
    jax.tree.map(lambda w: _random.normal(size=w.shape), PARAMS) for _ in range(len(SCHEDULE))
]


def follow(o, path, w):
    """Return a parameter after the steps of the optimiser that the group `optim` names."""
    norm, kernel = path[-2] == "bn", path[-1] == "kernel"
    decayed = (not norm and (kernel or o.name in ("sgd", "adam"))) or o.decayed == "all"
    adapted = kernel and (path[0] != "classifier" or o.adapt_classifier)
    buffer = second = 0.0
    for step, (rate, tree) in enumerate(zip(SCHEDULE, GRADIENTS, strict=True), start=1):
        g = functools.reduce(lambda found, name: found[name], path, tree)
        slope = g + o.weight_decay * w if decayed and o.name != "adamw" else g
        if o.name == "lars":
            trust = o.trust_coefficient * np.linalg.norm(w) / np.linalg.norm(slope)
            slope = slope * (trust if adapted else 1.0)
            inside = 1.0 if o.rate_after_momentum else rate
            buffer = o.momentum * buffer + inside * slope
            w = w - buffer * (rate if o.rate_after_momentum else 1.0)
        elif o.name == "sgd":
            inside = rate if o.rate_in_momentum else 1.0
            buffer = o.momentum * buffer + inside * slope
            ahead = inside * slope + o.momentum * buffer if o.nesterov else buffer
            w = w - ahead * (rate / inside)
        else:
            buffer, second = 0.9 * buffer + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            move = buffer / (1 - 0.9**step) / np.sqrt(second / (1 - 0.999**step))
            if o.name == "adamw":
                move = move + o.weight_decay * w * decayed
            w = w - rate * move
    return w


OPTIMISERS = {
    "lars": (
        {},
        {"momentum": 0.5},
        {"weight_decay": 0.2},
        {"trust_coefficient": 0.01},
        {"rate_after_momentum": True},
        {"adapt_classifier": True},
        {"weight_decay": 0.2, "decayed": "all"},
    ),
    "sgd": (
        {},
        {"momentum": 0.5},
        {"weight_decay": 0.2},
        {"rate_in_momentum": True},
        {"nesterov": False},
        {"weight_decay": 0.2, "decayed": "all"},
    ),
    "adam": ({}, {"weight_decay": 0.2}, {"weight_decay": 0.2, "decayed": "all"}),
    "adamw": ({}, {"weight_decay": 0.2}, {"weight_decay": 0.2, "decayed": "all"}),
}
UPDATES = [(name, fields) for name, several in OPTIMISERS.items() for fields in several]


@functools.cache
def updated(name, **fields):
    """Return the group `optim`, and the parameters after three steps."""
    c = changed({f"optim.{field}": value for field, value in {"name": name, **fields}.items()})
    optimizer = build.optimizer(c, lambda count: jnp.asarray(SCHEDULE, jnp.float32)[count])
    params, gradients = jax.tree.map(jnp.float32, (PARAMS, GRADIENTS))

    @jax.jit
    def steps(params):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return c.optim, steps(params)


@pytest.mark.parametrize("name, fields", UPDATES)
def test_the_optimiser_is_that_of_the_recipe(name, fields):
    o, found = updated(name, **fields)

    def check(path, got, w):
        want = follow(o, [key.key for key in path], w)
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-5, err_msg=str(path))

    jax.tree_util.tree_map_with_path(check, found, PARAMS)
    if fields:
        plain = updated(name)[1]
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, plain)
        assert max(jax.tree.leaves(moved)) > 1e-3


# The loss -----------------------------------------------------------------------------------------

Z = np.random.default_rng(1).normal(size=(6, 2, 5)).astype(np.float32)
LOGITS = np.random.default_rng(2).normal(size=(6, 2, tiny.CLASSES)).astype(np.float32)
LABEL = np.array([0, 1, 2, 3, 1, 0], np.int32)


def contrast(temperature=0.1, scale="sum", normalize=True):
    """Write NT-Xent out: minus the log of the share of the partner among all others."""
    z = np.float64(Z)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True) if normalize else z
    rows = np.concatenate([z[:, 0], z[:, 1]])
    losses = []
    for i, anchor in enumerate(rows):
        others = {k: anchor @ rows[k] / temperature for k in range(len(rows)) if k != i}
        partner = others[(i + len(Z)) % len(rows)]
        losses.append(np.logaddexp.reduce(list(others.values())) - partner)
    return np.mean(losses) * {"sum": 2, "mean": 1}[scale]


def objective(outputs, **fields):
    """Return the metrics of one device, whose rows are all rows."""
    stage, _ = tiny.make_stage(tiny.recipe(eval__knn=False, **fields), 1)
    outputs = jax.tree.map(lambda x: x[None], outputs)
    loss, metrics = jax.vmap(
        lambda o: stage.objective(o, {}, jnp.int32(0), parallel.AXIS), axis_name=parallel.AXIS
    )(outputs)
    return {"total": loss[0]} | {name: value[0] for name, value in metrics.items()}


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.5}, {"scale": "mean"}, {"normalize": False}]
)
def test_the_loss_is_that_of_the_recipe(fields):
    named = {f"loss__{name}": value for name, value in fields.items()}
    found = objective({"z": Z}, eval__probe=False, **named)
    assert found["total"] == found["loss"]
    np.testing.assert_allclose(found["loss"], contrast(**fields), rtol=1e-5)
    assert not fields or abs(contrast(**fields) - contrast()) > 0.1
    assert "probe_loss" not in found


def test_a_probe_has_a_loss_of_its_own():
    found = objective({"z": Z, "probe": {"logits": LOGITS, "label": LABEL}}, eval__probe=True)
    logits = np.float64(LOGITS)
    of_label = np.take_along_axis(logits, LABEL[:, None, None], 2)[..., 0]
    want = np.mean(np.log(np.exp(logits).sum(2)) - of_label)
    np.testing.assert_allclose(found["probe_loss"], want, rtol=1e-5)
    np.testing.assert_allclose(found["total"], contrast() + want, rtol=1e-5)
    right = np.mean(logits.argmax(2) == LABEL[:, None])
    np.testing.assert_allclose(found["train_probe_accuracy"], right, rtol=1e-6)
