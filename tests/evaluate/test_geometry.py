"""Indicators of collapse against float64 NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.errors import UserError
from simclr_jax.evaluate.geometry import alignment, effective_rank, indicators, uniformity


def sphere(seed, rows=40, width=12):
    z = np.random.RandomState(seed).normal(size=(rows, width))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def collapsed(rows=50, width=16):
    return np.tile(sphere(3, 1, width), (rows, 1)).astype(np.float32)


def test_indicators_are_of_directions_and_the_rank_of_the_vectors():
    first, second = (np.random.RandomState(i).normal(size=(30, 8)) for i in range(2))
    first *= np.arange(1, 31)[:, None]
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    squares = np.sum((a[:, None] - a) ** 2, axis=2)[~np.eye(30, dtype=bool)]
    values = np.linalg.svd(first - first.mean(axis=0), compute_uv=False)
    shares = values / values.sum()
    want = {
        "alignment": np.mean(np.sum((a - b) ** 2, axis=1)),
        "uniformity": np.log(np.mean(np.exp(-2 * squares))),
        "effective_rank": np.exp(-np.sum(shares * np.log(shares))),
    }
    found = indicators(first.astype(np.float32), second.astype(np.float32))
    assert found == pytest.approx(want, rel=1e-5) and list(found) == list(want)
    alone = indicators(first.astype(np.float32))
    del want["alignment"]
    assert alone == pytest.approx(want, rel=1e-5)


def test_alignment_equals_numpy():
    z1, z2 = sphere(0), sphere(1)
    expected = np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(z1, z2, strict=True)])
    assert alignment(z1, z2) == pytest.approx(expected, rel=1e-6)
    assert alignment(z1, z1) == 0
    assert alignment(z1, -z1) == pytest.approx(4, rel=1e-6)


def test_uniformity_equals_numpy():
    z = sphere(0)
    terms = [
        np.exp(-2 * np.sum((z[i] - z[j]) ** 2))
        for i in range(len(z))
        for j in range(len(z))
        if i != j
    ]
    assert uniformity(z) == pytest.approx(np.log(np.mean(terms)), rel=1e-5)


def test_uniformity_closed_forms():
    assert uniformity(collapsed()) == pytest.approx(0, abs=1e-5)
    assert uniformity(np.eye(6)) == pytest.approx(-4, rel=1e-6)  # all squared distances are 2
    assert uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8, rel=1e-6)


def test_effective_rank_equals_numpy():
    x = sphere(0) * np.logspace(0, -2, 12) + 3
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert 2 < expected < 10
    assert effective_rank(x) == pytest.approx(expected, rel=1e-4)


def test_effective_rank_of_isotropic_embeddings_is_their_width():
    axes = np.concatenate([np.eye(6), -np.eye(6)])  # centred already
    assert effective_rank(axes) == pytest.approx(6, rel=1e-5)
    assert effective_rank(np.eye(6)) == pytest.approx(5, rel=1e-5)  # centring takes one away


def test_effective_rank_of_collapsed_embeddings_is_one():
    rows = collapsed()
    assert effective_rank(np.zeros((5, 3))) == 1
    assert effective_rank(rows) == pytest.approx(1, abs=1e-6)
    jitter = np.random.RandomState(0).choice([-1, 0, 1], rows.shape)
    rounded = rows + jitter * np.spacing(rows)
    assert effective_rank(rounded) == pytest.approx(1, abs=1e-6)
    line = np.linspace(-1, 1, 50)[:, None] * rows
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)


def test_half_precision_is_widened():
    z = jnp.asarray(sphere(0), jnp.bfloat16)
    for indicator in (uniformity, effective_rank, lambda x: alignment(x, x[::-1])):
        got = indicator(z)
        assert got.dtype == jnp.float32
        assert got == pytest.approx(float(indicator(z.astype(jnp.float32))), rel=1e-6)


def test_inside_another_jit():
    both = jax.jit(lambda z: (alignment(z, z[::-1]), uniformity(z), effective_rank(z)))
    z = jnp.asarray(sphere(0), jnp.float32)
    expected = (alignment(z, z[::-1]), uniformity(z), effective_rank(z))
    np.testing.assert_allclose(both(z), expected, rtol=1e-5)


def test_uniformity_needs_pairs():
    with pytest.raises(UserError, match="got 1 embeddings"):
        uniformity(np.ones((1, 4)))


@pytest.mark.x64
def test_float64_is_kept():
    z = sphere(0)
    squares = ((z[:, None] - z[None]) ** 2).sum(-1)
    mean = np.exp(-2 * squares)[~np.eye(len(z), dtype=bool)].mean()
    assert uniformity(z) == pytest.approx(np.log(mean), rel=1e-12)
    values = np.linalg.svd(z - z.mean(0), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert effective_rank(z) == pytest.approx(expected, rel=1e-12)
