"""A learning rate that drops at given epochs, and what no schedule would read."""

from __future__ import annotations

import jax
import numpy as np
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
    """Return the rate of every step."""
    validation.validate(c, 1)
    t = timetables.make(c, EXAMPLES)
    return np.asarray(jax.jit(jax.vmap(build.schedule(t)))(np.arange(t.total_steps)))


@pytest.mark.parametrize("drops, factor", [("4,8", 0.1), ("2.5", 0.1), ("3,6,9", 0.2)])
def test_the_rate_drops_at_epochs(drops, factor):
    """facebookresearch/moco `main_moco.py: adjust_learning_rate`, called before each epoch."""
    found = rates(recipe(optim__drops=drops, optim__drop_factor=factor))
    epoch = np.arange(len(found)) * BATCH / EXAMPLES
    fallen = sum(epoch >= float(drop) for drop in drops.split(","))
    np.testing.assert_allclose(found, 0.3 * factor**fallen, rtol=1e-5)


def test_a_warmup_goes_before_it():
    found = rates(recipe(optim__warmup_epochs=2.0, optim__drops="5"))
    want = [*(0.3 * np.arange(31) / 31), *[0.3] * (79 - 31)]
    np.testing.assert_allclose(found[:79], want, rtol=1e-5)
    np.testing.assert_allclose(found[79:], 0.03, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"optim__drops": "8,4"}, "optim.drops is 8,4: give epochs that rise"),
        ({"optim__drops": "4,,8"}, 'optim.drops has "", which is no number'),
        ({"optim__drops": "0"}, 'optim.drops has "0": give a finite number, above 0'),
        ({"optim__drop_factor": 0.2}, "drop_factor is 0.2, but a rate that falls as a cosine"),
        ({"optim__drop_factor": 1.5, "optim__drops": "3"}, "greater than 0 and at most 1"),
        ({"optim__drops": "3", "optim__rate_per": "epoch"}, "set --config.optim.rate_per=step"),
    ],
)
def test_what_nothing_would_read_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        validation.validate(recipe(**fields), 1)


def test_a_drop_after_the_end_is_refused():
    c = recipe(optim__drops="4,12.5")
    with pytest.raises(UserError, match=r"epoch 12\.5, but the run of 188 steps is over after 12"):
        timetables.make(c, EXAMPLES)
