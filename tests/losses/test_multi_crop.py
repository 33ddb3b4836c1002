"""Losses with local crops: their definition pair by pair in NumPy, on eight devices, by chance.

Each loss is asked with two views and three local crops of each image. Definitions are written from
the law, a crop and its target at a time, in float64; no loss of ours is used in them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from losses.by_hand import joined, unit

from simclr_jax import parallel
from simclr_jax.losses.debiased import debiased
from simclr_jax.losses.decoupled import decoupled
from simclr_jax.losses.info_nce import info_nce
from simclr_jax.losses.margin import margin_loss
from simclr_jax.losses.nt_logistic import nt_logistic
from simclr_jax.losses.nt_xent import NO_IMAGE, nt_xent
from simclr_jax.losses.queue_contrast import queue_contrast
from simclr_jax.losses.supervised_contrastive import supervised_contrastive

pytestmark = pytest.mark.x64

DEVICES, IMAGES, LOCAL, DIM = 8, 16, 3, 4
T = 0.3


def draw(seed=0):
    """Return `[2 + LOCAL, n, d]`: two views and the local crops, with something in common."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(1, IMAGES, DIM)) + rng.normal(size=(2 + LOCAL, IMAGES, DIM))


LABELS = np.random.default_rng(2).integers(-1, 4, IMAGES)
QUEUE = unit(np.random.default_rng(3).normal(size=(11, DIM)))
OF_QUEUE = np.array([NO_IMAGE, 3, 5, 3, 0, NO_IMAGE, 9, 1, 2, 7, 15])  # images kept in a memory


def pairs(z, of_pair):
    """Return the mean of `of_pair(crop, target, image)` over all pairs of each image, and images.

    `crop` and `target` are places in `z`, of which the first two are global.
    """
    means = [
        np.mean([of_pair(c, t, i) for c in range(len(z)) for t in (0, 1) if c != t])
        for i in range(IMAGES)
    ]
    return float(np.mean(means))


def others(z, crop, image):
    """Return the similarities of a crop with both views of all other images."""
    return [z[crop, image] @ z[v, j] for v in (0, 1) for j in range(IMAGES) if j != image]


def of_similarities(term, z):
    """Return the mean over pairs of `term(positive, negatives)`."""
    z = unit(z)
    return pairs(z, lambda c, t, i: term(z[c, i] @ z[t, i], others(z, c, i)))


def by_hand_nt_xent(z, memory=False):
    z = unit(z)

    def of_pair(crop, target, image):
        negatives = others(z, crop, image)
        if memory:
            kept = [k for k, of in enumerate(OF_QUEUE) if of not in (NO_IMAGE, image)]
            negatives += [z[crop, image] @ QUEUE[k] for k in kept]
        right = math.exp(z[crop, image] @ z[target, image] / T)
        return -math.log(right / (right + sum(math.exp(s / T) for s in negatives)))

    return pairs(z, of_pair)


def by_hand_info_nce(z):
    """To first views and to second ones, each crop among the views of the target's kind."""
    z = unit(z)

    def of_pair(crop, target, image):
        scores = [math.exp(z[crop, image] @ key / T) for key in z[target]]
        return -math.log(scores[image] / sum(scores))

    return pairs(z, of_pair)


def by_hand_decoupled(z, sigma=None):
    z = unit(z)

    def weight(crop, target, image):
        if sigma is None:
            return 1.0
        scores = np.exp(np.sum(z[crop] * z[target], axis=1) / sigma)
        return 2 - IMAGES * scores[image] / np.sum(scores)

    def of_pair(crop, target, image):
        spread = math.log(sum(math.exp(s / T) for s in others(z, crop, image)))
        return spread - weight(crop, target, image) * (z[crop, image] @ z[target, image]) / T

    return pairs(z, of_pair)


def by_hand_debiased(z, tau=0.2, beta=0.0):
    def term(positive, negatives):
        scores = np.exp(np.array(negatives) / T)
        hard, count = scores**beta, len(scores)
        right = math.exp(positive / T)
        estimate = np.sum(hard / np.mean(hard) * scores) - tau * count * right
        estimate = max(estimate / (1 - tau), count * math.exp(-1 / T))
        return -math.log(right / (right + estimate))

    return of_similarities(term, z)


def by_hand_margin(z, negatives="mean", margin=0.5):
    def term(positive, found):
        one = lambda s: max(s - positive + margin, 0.0)  # noqa: E731
        return joined(one, positive, found, negatives, margin)

    return of_similarities(term, z)


def by_hand_nt_logistic(z, negatives="sum", margin=None):
    def term(positive, found):
        one = lambda s: math.log1p(math.exp(s / T))  # noqa: E731
        return math.log1p(math.exp(-positive / T)) + joined(one, positive, found, negatives, margin)

    return of_similarities(term, z)


def by_hand_queue(z):
    """The first view and the local crops ask for the second view, and never the second one."""
    z, losses = unit(z), []
    for crop in (0, *range(2, len(z))):
        for i in range(IMAGES):
            right = math.exp(z[crop, i] @ z[1, i] / T)
            wrong = sum(math.exp(z[crop, i] @ row / T) for row in QUEUE)
            losses.append(-math.log(right / (right + wrong)))
    return float(np.mean(losses))


def by_hand_supervised(z, anchors="all"):
    """The mean over anchors; both views of all images are candidates, local crops are none."""
    z, losses = unit(z), []
    whole = (0, 1) if anchors == "all" else (0,)
    for crop in (*whole, *range(2, len(z))):
        for i in range(IMAGES):
            seen = [(v, j) for v in (0, 1) for j in range(IMAGES) if (v, j) != (crop, i)]
            logits = {who: z[crop, i] @ z[who] / T for who in seen}
            every = math.log(sum(map(math.exp, logits.values())))
            friends = [j == i or LABELS[i] == LABELS[j] != -1 for _, j in seen]
            found = [
                every - logit for logit, own in zip(logits.values(), friends, strict=True) if own
            ]
            losses.append(T / 0.07 * np.mean(found))
    return float(np.mean(losses))


def both_ways(z1, z2, **options):
    there, told = info_nce(z1, z2, **options)
    return (there + info_nce(z2, z1, **options)[0]) / 2, told


def with_memory(z1, z2, example, **options):
    memory = jnp.asarray(QUEUE), OF_QUEUE
    return nt_xent(z1, z2, example=example, memory=memory, scale="mean", **options)


def with_queue(z1, z2, **options):
    return queue_contrast(z1, lax.stop_gradient(z2), jnp.asarray(QUEUE), **options)


def with_labels(z1, z2, **options):
    return supervised_contrastive([z1, z2], **options)


# The loss, its definition, settings of the loss, settings of the definition.
MEAN = {"scale": "mean"}
CASES = {
    "nt_xent": (nt_xent, by_hand_nt_xent, {"temperature": T} | MEAN, {}),
    "nt_xent, memory": (with_memory, by_hand_nt_xent, {"temperature": T}, {"memory": True}),
    "info_nce": (both_ways, by_hand_info_nce, {"temperature": T}, {}),
    "decoupled": (decoupled, by_hand_decoupled, {"temperature": T} | MEAN, {}),
    "weighted": (
        decoupled,
        by_hand_decoupled,
        {"temperature": T, "sigma": 0.7} | MEAN,
        {"sigma": 0.7},
    ),
    "debiased": (debiased, by_hand_debiased, {"temperature": T, "tau_plus": 0.2}, {}),
    "hard": (
        debiased,
        by_hand_debiased,
        {"temperature": T, "tau_plus": 0.2, "beta": 1.5},
        {"beta": 1.5},
    ),
    "margin": (margin_loss, by_hand_margin, {"margin": 0.5}, {}),
    "semi-hard": (
        margin_loss,
        by_hand_margin,
        {"margin": 0.5, "negatives": "semi_hard"},
        {"negatives": "semi_hard"},
    ),
    "nt_logistic": (
        nt_logistic,
        by_hand_nt_logistic,
        {"temperature": T, "negatives": "sum"},
        {},
    ),
    "queue": (with_queue, by_hand_queue, {"temperature": T}, {}),
    "supervised": (with_labels, by_hand_supervised, {"temperature": T}, {}),
    "supervised, one": (
        with_labels,
        by_hand_supervised,
        {"temperature": T, "anchors": "one"},
        {"anchors": "one"},
    ),
}


# One of each way in which a loss meets other devices.
GATHERED = ("nt_xent, memory", "info_nce", "weighted", "queue", "supervised")


def each(z, labels, example, names=tuple(CASES), **options):
    """Return of some cases loss and metrics, and the gradient with respect to all crops."""

    def of(loss, settings):
        if loss is with_labels:
            settings = settings | {"labels": labels}
        if loss is with_memory:
            settings = settings | {"example": example}

        def share(z):
            return loss(z[0], z[1], local=list(z[2:]), **options, **settings)

        return jax.value_and_grad(share, has_aux=True)(z)

    return {name: of(CASES[name][0], CASES[name][2]) for name in names}


@functools.cache
def on_one():
    return jax.jit(each)(draw(), LABELS, np.arange(IMAGES))


@functools.cache
def on_eight():
    """Return that of eight devices, each of which compares its two images one after the other."""

    def share(z, labels, example):
        found = each(z, labels, example, GATHERED, axis_name=parallel.AXIS, at_once=1)
        return {name: (lax.psum(s, parallel.AXIS), slope) for name, (s, slope) in found.items()}

    along, rows = jax.P(None, parallel.AXIS), jax.P(parallel.AXIS)
    sharded = jax.shard_map(
        share,
        mesh=parallel.make_mesh(DEVICES),
        in_specs=(along, rows, rows),
        out_specs=dict.fromkeys(GATHERED, (jax.P(), along)),
    )
    return jax.jit(sharded)(draw(), LABELS, np.arange(IMAGES))


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_the_definition(name):
    (loss, _), gradient = on_one()[name]
    _, definition, _, settings = CASES[name]
    wanted = functools.partial(definition, **settings)
    np.testing.assert_allclose(loss, wanted(draw()), rtol=1e-13)
    assert np.abs(gradient[2:]).max() > 0
    way = draw(seed=1) / 10
    if name == "queue":  # keys carry no gradient
        way[1] = 0
    ahead, behind = (wanted(draw() + by * way) for by in (1e-5, -1e-5))
    along = np.sum(gradient * way)
    assert abs(along - (ahead - behind) / 2e-5) < 1e-8 + 1e-7 * np.linalg.norm(gradient)


@pytest.mark.parametrize("name", GATHERED)
def test_eight_devices_and_tiles_give_that_of_one(name):
    (got, metrics), gradient = on_eight()[name]
    (want, wanted), slope = on_one()[name]
    np.testing.assert_allclose(got, want, rtol=1e-13)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-13 * np.abs(slope).max())
    for metric in wanted:
        np.testing.assert_allclose(metrics[metric], wanted[metric], rtol=1e-12, atol=1e-15)


def test_the_scale_sum_is_twice_the_mean():
    z = jnp.asarray(draw())
    for loss in (nt_xent, decoupled, debiased):
        mean, both = (
            loss(z[0], z[1], local=list(z[2:]), temperature=T, scale=scale)[0]
            for scale in ("mean", "sum")
        )
        np.testing.assert_allclose(both, 2 * mean, rtol=1e-14)
