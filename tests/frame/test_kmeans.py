"""K-means: clusters that are there are found, on any number of devices; concentrations; draws."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

from simclr_jax import parallel
from simclr_jax.errors import UserError
from simclr_jax.frame import clusters


def points(groups, each, spread=0.01):
    """Return points around some unit vectors, `[groups * each, 4]`, and which each belongs to."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(groups, 4))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    of = np.tile(np.arange(groups), each)
    x = centres[of] + spread * random.normal(size=(len(of), 4))
    return x.astype(np.float32), of


def test_it_is_lloyds_algorithm_on_any_number_of_devices(monkeypatch):
    """From its own starts, against scikit-learn's; to the same bits on one device and on eight."""
    monkeypatch.setattr(clusters, "ROWS", 7)  # 9 tiles, of which the last is not full
    clusters._compiled.cache_clear()
    x, key = points(6, 10, spread=0.5)[0], jax.random.key(3)
    one, eight = (
        clusters.kmeans(x, 6, key, parallel.make_mesh(n), iterations=30, starts=3) for n in (1, 8)
    )
    clusters._compiled.cache_clear()
    np.testing.assert_array_equal(one, eight)
    fits = []
    for start in jax.random.split(key, 3):
        first = x[np.asarray(jax.random.permutation(start, len(x))[:6])]
        fits.append(KMeans(6, init=first, n_init=1, max_iter=30, tol=0, algorithm="lloyd").fit(x))
    best = min(fits, key=lambda fit: fit.inertia_)
    assert len({round(fit.inertia_, 4) for fit in fits}) > 1  # starts that end elsewhere
    np.testing.assert_allclose(one, best.cluster_centers_, atol=1e-5)
    assigned, distances = clusters.nearest(x, one, parallel.make_mesh(8))
    np.testing.assert_array_equal(assigned, best.labels_)
    assert np.sum(distances**2) == pytest.approx(best.inertia_, rel=1e-5)


def test_no_cluster_stays_empty_where_there_are_points_enough():
    """Half of the points are one and the same, so that starts have the same centroid often."""
    x, _ = points(8, 1)
    x = np.concatenate([x, np.repeat(x[:1], 30, 0)])
    centroids = clusters.kmeans(
        x, 8, jax.random.key(0), parallel.make_mesh(2), iterations=9, starts=1
    )
    assigned, distances = clusters.nearest(x, centroids, parallel.make_mesh(1))
    assert len(set(assigned.tolist())) == 8
    np.testing.assert_allclose(distances, 0, atol=1e-6)


def test_what_cannot_be_clustered_is_said():
    mesh, x = parallel.make_mesh(1), np.ones((3, 2), np.float32)
    with pytest.raises(UserError, match="4 clusters are asked of 3 images: choose 1 to 3"):
        clusters.kmeans(x, 4, jax.random.key(0), mesh)
    x[1, 1] = np.nan
    with pytest.raises(UserError, match="features are not all finite"):
        clusters.kmeans(x, 2, jax.random.key(0), mesh)


def test_clusters_of_one_point_have_the_temperature_for_concentration():
    assigned = np.array([0, 0, 1, 3])
    found = clusters.concentration(np.zeros(4), assigned, 4, 0.2)
    np.testing.assert_array_equal(found, np.full(4, 0.2))


def test_others_are_drawn_evenly_and_never_twice():
    taken = np.array([1, 4, 4, 7])
    draw = jax.jit(jax.vmap(lambda key: clusters.draw_others(key, taken, 9, 4)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 600)))
    assert drawn.dtype == np.int32 and all(len(set(row)) == 4 for row in drawn)
    counts = np.bincount(drawn.ravel(), minlength=9)
    assert not counts[[1, 4, 7]].any()
    expected = 600 * 4 / 6
    spread = np.sum((counts[[0, 2, 3, 5, 6, 8]] - expected) ** 2 / expected)
    assert spread < 15  # less than that of 5 degrees of freedom, for rows have no row twice


def test_its_memory_is_that_declared():
    """What XLA gives the program on one device: features, and what is compared with them."""
    mesh, (n, d, k) = parallel.make_mesh(1), (20_000, 32, 300)
    fixed = (("clusters", k), ("iterations", 3), ("starts", 2))
    program = clusters._compiled(clusters._kmeans, mesh, fixed)
    shapes = parallel.describe(mesh, (np.zeros((n, d), np.float32), np.zeros(2, np.uint32)))
    found = program.lower(*shapes).compile().memory_analysis()
    given = found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes
    assert 0.7 * given < clusters.held(n, d, k) < 1.3 * given
