"""The non-linear probe: step by step in NumPy, and beside scikit-learn's MLPClassifier."""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from simclr_jax.errors import UserError
from simclr_jax.evaluate import linear_probe, mlp_probe, sgd_probe

SEED, WIDTH, CLASSES = 5, 6, 3
RATE, DECAY, EPOCHS = 0.05, 0.02, 6.0
RANDOM = np.random.RandomState(0)
# Features as an encoder may give them: far from 0, and in units of their own.
X = (40 + 7 * RANDOM.normal(size=(300, 4))).astype(np.float32)
Y = (np.digitize(X[:, 0] + X[:, 1], [75, 85])).astype(np.int32)


def normalised(x, scale, bias):
    """Return a hidden layer of `[b, d]`, what its backward pass needs, and the batch's moments."""
    mean, variance = x.mean(0), x.var(0)
    spread = np.sqrt(variance + 1e-5)
    unit = (x - mean) / spread
    out = unit * scale + bias
    return np.maximum(out, 0), (unit, spread, out > 0), (mean, variance)


def backward(slope, kept, scale):
    """Return the slope at the layer's input, of its scale and of its bias."""
    unit, spread, on = kept
    slope = slope * on
    of_unit = slope * scale
    rest = of_unit - of_unit.mean(0) - unit * (of_unit * unit).mean(0)
    return rest / spread, (slope * unit).sum(0), slope.sum(0)


def by_hand(x, labels, rate, decay, epochs=EPOCHS, size=mlp_probe.BATCH):
    """Train in float64 from the same values on the same batches; return what answers."""
    x = x.astype(np.float64)
    origin, unit = x.mean(0), np.sqrt(np.mean((x - x.mean(0)) ** 2))
    layers = mlp_probe.first_layers(x.shape[1], WIDTH, CLASSES, SEED)
    w = [np.asarray(p, np.float64) for p in (*layers.first, *layers.second, *layers.last)]
    momentum, moving = [0 * p for p in w], [[0.0, 1.0], [0.0, 1.0]]
    size = min(size, len(x))
    steps = round(epochs * len(x) / size)
    stream = sgd_probe.shuffled((x - origin) / unit, labels, size, steps, SEED)
    for step, (a, truth) in enumerate(stream):
        k1, s1, b1, k2, s2, b2, k3, b3 = w
        h1, kept1, seen1 = normalised(a @ k1, s1, b1)
        h2, kept2, seen2 = normalised(h1 @ k2, s2, b2)
        out = h2 @ k3 + b3
        likely = np.exp(out - out.max(1, keepdims=True))
        error = (likely / likely.sum(1, keepdims=True) - np.eye(CLASSES)[truth]) / len(a)
        d2, ds2, db2 = backward(error @ k3.T, kept2, s2)
        d1, ds1, db1 = backward(d2 @ k2.T, kept1, s1)
        slopes = [a.T @ d1, ds1, db1, h1.T @ d2, ds2, db2, h2.T @ error, error.sum(0)]
        slopes = [g + decay * p for g, p in zip(slopes, w, strict=True)]
        momentum = [0.9 * m + g for m, g in zip(momentum, slopes, strict=True)]
        now = rate * 0.2 ** sum(step >= part * steps for part in (0.4, 0.8, 0.9))
        w = [p - now * (g + 0.9 * m) for p, g, m in zip(w, slopes, momentum, strict=True)]
        for old, seen in zip(moving, (seen1, seen2), strict=True):
            old[:] = [0.9 * o + 0.1 * s for o, s in zip(old, seen, strict=True)]

    def answer(new):
        h = (new - origin) / unit
        for kernel, scale, bias, (mean, variance) in ((*w[:3], moving[0]), (*w[3:6], moving[1])):
            h = np.maximum((h @ kernel - mean) / np.sqrt(variance + 1e-5) * scale + bias, 0)
        return h @ w[6] + w[7]

    return answer


@functools.cache
def whole(rate=RATE, decay=DECAY):
    splits = linear_probe.splits(Y, seed=0)
    return mlp_probe.fit(
        *(X, Y, CLASSES, splits, linear_probe.accuracy, (rate,), (decay,)),
        epochs=EPOCHS,
        hidden=WIDTH,
        seed=SEED,
    )


def answered(probe, x):
    return np.asarray(mlp_probe.outputs(probe.layers, probe.moments, x))


def test_training_is_that_of_numpy_step_by_step():
    """On features as given, though it trained on centred ones; three rates are seen."""
    new = (40 + 7 * np.random.RandomState(1).normal(size=(50, 4))).astype(np.float32)
    want = by_hand(X, Y, RATE, DECAY)(new)
    np.testing.assert_allclose(answered(whole(), new), want, atol=2e-3 * np.abs(want).max())
    assert whole().scores == {} and (whole().rate, whole().decay) == (RATE, DECAY)
    for other in (by_hand(X, Y, RATE, 0.0), by_hand(X, Y, 1.2 * RATE, DECAY)):
        assert np.abs(other(new) - want).max() > 2e-2 * np.abs(want).max()


def rings(count, seed):
    """Return points on three rings around one centre, which no plane tells apart."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % 3
    angle = random.uniform(0, 2 * np.pi, count)
    radius = 1 + labels + 0.25 * random.normal(size=count)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return x.astype(np.float32), labels.astype(np.int32)


def test_it_reads_what_a_linear_probe_cannot_as_well_as_scikit_learn():
    (x, y), (new, truth) = rings(600, 0), rings(300, 1)
    splits = [(np.arange(450), np.arange(450, 600))]
    found = mlp_probe.fit(x, y, 3, splits, linear_probe.accuracy, epochs=30.0)
    got = np.mean(answered(found, new).argmax(1) == truth)
    peer = MLPClassifier((20, 20), solver="lbfgs", max_iter=60, alpha=1.0, random_state=0)
    peer = peer.fit(x, y).score(new, truth)
    plane = LogisticRegression().fit(x, y).score(new, truth)
    assert peer > 0.9 and plane < 0.5 and got > peer - 0.04, (got, peer, plane)
    assert found.layers.first.kernel.shape == (2, mlp_probe.units(3)) == (2, 60)
    assert len(found.scores) == 4  # each rate with each decay


def test_the_pair_is_chosen_on_the_examples_that_choose():
    """All labels of those to fit on are wrong in a way that the others tell."""
    fitting, choosing = np.arange(200), np.arange(200, 300)
    rates, decays = (0.001, 0.05), (0.0, 0.3)
    found = mlp_probe.fit(
        *(X, Y, CLASSES, [(fitting, choosing)], linear_probe.accuracy, rates, decays),
        epochs=EPOCHS,
        hidden=WIDTH,
        seed=SEED,
    )
    for (rate, decay), value in found.scores.items():
        outputs = by_hand(X[fitting], Y[fitting], rate, decay)(X[choosing])
        # Centred by all 300 there, by the 200 here: that decides a few images at most.
        assert value == pytest.approx(linear_probe.accuracy(outputs, Y[choosing]), abs=0.04)
    best = max(found.scores.values())
    equal = [pair for pair, value in found.scores.items() if value == best]
    assert (found.rate, found.decay) == max(equal, key=lambda pair: (pair[1], -pair[0]))
    assert min(found.scores.values()) < best


def test_a_rate_that_is_too_high_is_never_chosen_and_alone_is_named():
    splits = linear_probe.splits(Y, seed=0)
    how = (X, Y, CLASSES, splits, linear_probe.accuracy)
    found = mlp_probe.fit(*how, (0.05, 1e30), (0.01,), epochs=2.0, hidden=WIDTH)
    assert found.rate == 0.05 and found.scores[1e30, 0.01] == -np.inf
    with pytest.raises(UserError, match="not finite at the rate 1e"):
        mlp_probe.fit(*how, (1e30,), (0.01,), epochs=2.0, hidden=WIDTH)
    with pytest.raises(UserError, match="features are not all finite"):
        mlp_probe.fit(np.where(X > 50, np.nan, X), *how[1:], (0.05,), (0.01,))


def test_several_labels_are_learned_one_against_the_rest():
    several = np.stack([X[:, 0] > 40, X[:, 1] > 40], axis=1).astype(np.int8)
    several[::7, 1] = -1

    def both(outputs, labels):
        return np.mean(((outputs > 0) == (labels == 1))[labels >= 0])

    splits = [(np.arange(200), np.arange(200, 300))]
    found = mlp_probe.fit(X, several, 2, splits, both, (0.05,), (0.0005,), epochs=30.0)
    right = (answered(found, X) > 0) == (several == 1)
    assert right[several >= 0].mean() > 0.95


def test_there_is_no_second_copy_of_the_features(monkeypatch):
    """Nor of a part of them; those of ImageNet at a block's map would not fit twice."""
    for module in (mlp_probe, linear_probe):
        monkeypatch.setattr(module, "BLOCK", 1000)
    x = np.random.RandomState(0).normal(size=(60_000, 64)).astype(np.float32)
    y = (np.arange(len(x)) % 2).astype(np.int32)
    splits = [(np.arange(50_000), np.arange(50_000, 60_000))]
    tracemalloc.start()
    try:
        mlp_probe.fit(x, y, 2, splits, linear_probe.accuracy, epochs=0.01, hidden=4)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < x.nbytes / 2, f"{most / x.nbytes:.2f} of the features"
