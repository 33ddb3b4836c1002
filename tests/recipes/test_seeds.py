"""Seeds: another one draws otherwise, the same one the same, and no two consumers draw alike."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frame import toys
from recipes import shown
from stages import taught
from train import tiny

from simclr_jax import recipes
from simclr_jax.data import order
from simclr_jax.data.sources import Images
from simclr_jax.evaluate import linear_probe, subsets
from simclr_jax.frame import modules
from simclr_jax.frame.drop import drop
from simclr_jax.frame.keys import Keys, root
from simclr_jax.frame.net import Rows, part_key
from simclr_jax.stages import build, labels
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.views import view_maker

SEEDS = (0, 1)


def alike(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def by_chance(a, b):
    """Of 64 pairs of coins, as many agree as of coins that know nothing of one another."""
    assert 14 <= np.sum(np.asarray(a) == np.asarray(b)) <= 50


# What the seed of a run decides -------------------------------------------------------------------


@functools.cache
def flips(seed=0, images="train", first=0):
    """Return whether each of 64 images, which are all the same, is mirrored in its two views."""
    c = shown.recipe(first__flip=0.5, second__flip=0.5)
    c.seed = seed
    source = Images(shown.RAMP[:, :, :24][:, :24].copy(), None, 0)
    inputs = Inputs(c, source, source)
    batch = inputs.first(64) if images == "train" else inputs.held_out(64)
    batch["position"][:, 1] += first
    made = np.asarray(maker(seed)(batch)["views"])
    return made[:, :, 0, 0, 1] > 0  # the columns run backwards


@functools.cache
def maker(seed):
    c = shown.recipe(first__flip=0.5, second__flip=0.5)
    c.seed = seed
    return jax.jit(view_maker(c))


def in_order(seed):
    c = tiny.recipe()
    c.seed = seed
    images = tiny.sorted_images()
    return Inputs(c, images, images).first(48)["example"]


def first_values(seed, method="simclr"):
    c = recipes.base(method)
    tiny.shrink(c)
    c.seed = seed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))
        return jax.jit(lambda: build.first_parts(c, 3, ("probe", 0, 4)))()["params"]


def shuffled(seed, step=0):
    key = Keys(seed, jnp.int32(step)).of_batch("groups")
    return Rows(jnp.arange(16), 2).shuffled(key, 16)


def dropped(seed, first=0):
    position = jnp.stack([jnp.zeros(64, int), first + jnp.arange(64)], 1).astype(jnp.uint32)
    keys = Keys(seed, jnp.int32(0), position).of_rows("dropout")
    return np.asarray(drop(jnp.ones((64, 1)), keys, 0.5))[:, 0] > 0


DRAWN = {
    "data order": in_order,
    "augmentation": flips,
    "first values": first_values,
    "shuffled groups": shuffled,
    "dropout": dropped,
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_the_seed_decides_each_draw(draw):
    one, other = (draw(seed) for seed in SEEDS)
    assert not alike(one, other)
    flips.cache_clear()
    assert alike(draw(0), one)


def test_every_kernel_has_first_values_of_its_own():
    one, other = (first_values(seed) for seed in SEEDS)
    kernels = [
        np.asarray(leaf).ravel()
        for tree in (one, other)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if path[-1].key == "kernel"
    ]
    assert len(kernels) == 8  # of one convolution, two layers and a probe, by two seeds
    for a, b in itertools.combinations(kernels, 2):
        n = min(len(a), len(b))
        assert abs(np.corrcoef(a[:n], b[:n])[0, 1]) < 5 / n**0.5


# No two consumers of a seed draw alike ------------------------------------------------------------


def test_views_of_an_image_and_epochs_of_a_view_draw_apart():
    first, second = flips().T
    by_chance(first, second)
    by_chance(first, flips(first=64)[:, 0])
    by_chance(first, flips(images="held out")[:, 0])
    by_chance(second, flips(seed=1)[:, 0])
    by_chance(first, flips(seed=1)[:, 1])


def test_augmentation_knows_nothing_of_the_order_nor_of_other_draws():
    first = flips()[:, 0]
    place = np.argsort(order.examples(0, np.arange(64), 64))
    by_chance(first, place % 2)
    by_chance(first, place < 32)
    by_chance(first, dropped(0))
    by_chance(dropped(0), dropped(0, first=64))


def test_no_key_is_used_twice():
    start, position = jax.random.key(0), jnp.stack([jnp.zeros(8, int), jnp.arange(8)], 1)
    keys = [start, *(part_key(start, name) for name in ("encoder", "head", "probe", "turn"))]
    keys += [root(0, purpose) for purpose in ("first:", "average:target", "average:other")]
    for step, purpose in itertools.product(range(4), ("groups", "drop")):
        keys.append(Keys(0, jnp.int32(step)).of_batch(purpose))
    for purpose in ("groups", "drop"):
        keys += list(Keys(0, jnp.int32(0), position.astype(jnp.uint32)).of_rows(purpose))
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == len(keys) == 5 + 3 + 8 + 16


def test_another_start_of_an_average_is_another_draw():
    """BYOL's target begins elsewhere than the network, and elsewhere again by another seed."""
    starts = []
    for seed in SEEDS:
        c = recipes.base("byol")
        tiny.shrink(c)
        c.seed, c.byol.hidden, c.head.hidden = seed, 6, 7
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))
            state = tiny.make_stage(c, 1)[0].init()
        target = state.extra["target"]["params"]
        starts += [tree["encoder"]["conv"]["kernel"] for tree in (state.params, target)]
    for a, b in itertools.combinations(map(np.ravel, starts), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5


# The seed of labels -------------------------------------------------------------------------------

KNOWN = np.arange(400, dtype=np.int32) % 4
NUMBERED = np.stack(np.divmod(np.arange(400), 256), 1).astype(np.uint8)[:, None, None]


def chosen(**fields):
    """Return the rows of the images whose labels a stage may use."""
    c = taught.recipe(labels__use="25%", **fields)
    high, low = labels.restrict(c, Images(NUMBERED, KNOWN, 4)).pixels[:, 0, 0].astype(int).T
    return 256 * high + low


def test_labels_are_drawn_by_a_seed_of_their_own():
    one = chosen()
    assert len(one) == 100 and alike(one, chosen()) and alike(one, chosen(seed=1))
    assert not alike(one, chosen(labels__seed=1))


def test_draws_of_rows_by_one_number_are_not_the_same_rows():
    """Order, labels, few labels of the probe and its split: 100 of 400 rows share 25 by chance."""
    draws = {
        "order": order.examples(0, np.arange(100), 400),
        "labels": chosen(),
        "split": linear_probe.splits(KNOWN, seed=0)[0][1],
        "split by another seed": linear_probe.splits(KNOWN, seed=1)[0][1],
        "labels by another seed": chosen(labels__seed=1),
    }
    for (a, rows), (b, others) in itertools.combinations(draws.items(), 2):
        shared = len(np.intersect1d(rows, others)) / min(len(rows), len(others))
        assert 0.08 < shared < 0.45, (a, b)
    assert alike(subsets.few_labels(KNOWN, 25, 0), subsets.few_labels(KNOWN, 25, 0))
    assert not alike(subsets.few_labels(KNOWN, 25, 0), subsets.few_labels(KNOWN, 25, 1))
