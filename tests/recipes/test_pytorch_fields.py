"""Fields by which rate and optimiser follow PyTorch's programs, against their laws in NumPy."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax import recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.stages import build
from simclr_jax.train import timetable as timetables

EXAMPLES, BATCH = 1000, 64  # an epoch is 15.625 steps


def recipe(**fields):
    c = recipes.base()
    c.train.batch_size, c.train.epochs = BATCH, 12.0
    c.optim.base_lr, c.optim.lr_scaling, c.optim.warmup_epochs = 0.3, "none", 0.0
    for name, value in fields.items():
        recipes.put(c, name.replace("__", "."), value)
    return c


def rates(c):
    """Return the rate of every step, and the epoch in which each begins."""
    validation.validate(c, 1)
    t = timetables.make(c, EXAMPLES)
    steps = np.arange(t.total_steps)
    return np.asarray(jax.jit(jax.vmap(build.schedule(t)))(steps)), steps * BATCH // EXAMPLES


def test_a_cosine_by_epoch_is_that_of_moco():
    """facebookresearch/moco `main_moco.py: adjust_learning_rate`, called before each epoch."""
    found, epoch = rates(recipe(optim__rate_per="epoch"))
    want = [0.3 * 0.5 * (1.0 + math.cos(math.pi * e / 12)) for e in epoch]
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert len(set(found.tolist())) == 12
    # A run of so many steps is as long as they take.
    found, epoch = rates(recipe(optim__rate_per="epoch", train__steps=125))
    want = [0.3 * 0.5 * (1.0 + math.cos(math.pi * e / 8)) for e in epoch]
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize("drops, factor", [("4,8", 0.1), ("2.5", 0.1), ("3,6,9", 0.2)])
def test_the_rate_drops_at_epochs(drops, factor):
    found, _ = rates(recipe(optim__drops=drops, optim__drop_factor=factor))
    epoch = np.arange(len(found)) * BATCH / EXAMPLES
    fallen = sum(epoch >= float(drop) for drop in drops.split(","))
    np.testing.assert_allclose(found, 0.3 * factor**fallen, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"optim__rate_per": "epoch"}, {"optim__drops": "5"}])
def test_a_warmup_goes_before_them(fields):
    found, _ = rates(recipe(optim__warmup_epochs=2.0, **fields))
    np.testing.assert_allclose(found[:31], 0.3 * np.arange(31) / 31, rtol=1e-5)
    if "optim__drops" in fields:
        np.testing.assert_allclose(found[31:78], 0.3, rtol=1e-5)
    else:
        assert found[31] == pytest.approx(0.3) and np.unique(found[47:62]).size == 1
        assert found[62] == pytest.approx(0.3 * (1 + math.cos(math.pi * 1 / 10)) / 2, rel=1e-2)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"optim__drops": "8,4"}, "optim.drops is 8,4: give epochs that rise"),
        ({"optim__drops": "4,,8"}, 'optim.drops has "", which is no number'),
        ({"optim__drops": "0"}, 'optim.drops has "0": give a finite number, above 0'),
        ({"optim__drop_factor": 0.2}, "drop_factor is 0.2, but the rate falls as a cosine"),
        ({"optim__drop_factor": 1.5, "optim__drops": "3"}, "greater than 0 and at most 1"),
        ({"optim__drops": "3", "optim__rate_per": "epoch"}, "set --config.optim.rate_per=step"),
        ({"optim__nesterov": False}, "optim.name=lars does not read it: leave it at True"),
    ],
)
def test_what_nothing_would_read_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        validation.validate(recipe(**fields), 1)


def test_a_drop_after_the_end_is_refused():
    c = recipe(optim__drops="4,12.5")
    with pytest.raises(UserError, match=r"epoch 12\.5, but the run of 188 steps is over after 12"):
        timetables.make(c, EXAMPLES)


# The optimiser ------------------------------------------------------------------------------------

SCHEDULE = np.array([0.5, 0.2, 0.3])
PARAMS = {
    "encoder": {
        "conv": {"kernel": np.linspace(-1, 1, 6).reshape(3, 2)},
        "bn": {"scale": np.array([1.5, 0.5]), "bias": np.array([-0.5, 0.25])},
    },
    "head": {"dense1": {"kernel": np.linspace(1, 2, 4).reshape(2, 2), "bias": np.ones(2)}},
}
SLOPES = [jax.tree.map(lambda w, k=k: np.cos(k + 3 * w), PARAMS) for k in range(len(SCHEDULE))]


def updated(**fields):
    """Return the parameters after three steps of given slopes."""
    c = recipe(optim__weight_decay=0.2, **fields)
    optimizer = build.optimizer(c, lambda count: jnp.asarray(SCHEDULE, jnp.float32)[count])

    @jax.jit
    def steps(params):
        state = optimizer.init(params)
        for slope in jax.tree.map(jnp.float32, SLOPES):
            updates, state = optimizer.update(slope, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return steps(jax.tree.map(jnp.float32, PARAMS))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decayed", ["usual", "all"])
def test_sgd_is_that_of_pytorch(nesterov, decayed):
    """`torch.optim.SGD`: all parameters decayed, Nesterov only if asked for."""

    def torch(w, *slopes, decay):
        buffer = 0.0
        for rate, slope in zip(SCHEDULE, slopes, strict=True):
            slope = slope + decay * w
            buffer = 0.9 * buffer + slope
            w = w - rate * (slope + 0.9 * buffer if nesterov else buffer)
        return w

    found = updated(optim__name="sgd", optim__nesterov=nesterov, optim__decayed=decayed)
    want = jax.tree.map(functools.partial(torch, decay=0.2), PARAMS, *SLOPES)
    if decayed == "usual":
        plain = jax.tree.map(functools.partial(torch, decay=0.0), PARAMS, *SLOPES)
        want["encoder"]["bn"] = plain["encoder"]["bn"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, want)


@pytest.mark.parametrize("name", ["lars", "adam", "adamw"])
def test_other_optimisers_decay_all_if_asked(name):
    official, every = (updated(optim__name=name, optim__decayed=d) for d in ("usual", "all"))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), official, every)
    assert min(moved["encoder"]["bn"].values()) > 1e-3
    assert moved["encoder"]["conv"]["kernel"] == 0
