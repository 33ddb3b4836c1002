"""What PCL makes of k-means: prototypes, assignments and concentrations, given the centroids.

The recorded program has its squared distances in float32.
"""

from __future__ import annotations

import golden
import made
import numpy as np
import pytest

from simclr_jax.methods import pcl

SETTINGS = {"n": 30, "dim": 5, "clusters": [9, 4], "temperature": 0.4}
TOLERANCE = 16 * golden.EPS32  # of small distances, which float32 has less exactly


@pytest.mark.parametrize("recording", golden.cases("pcl_density"))
def test_density(recording, record_parity):
    settings, arrays = recording.settings, recording.arrays
    assert arrays["x"].shape == (settings["n"], settings["dim"]), recording.name
    errors = []
    for g, clusters in enumerate(settings["clusters"]):
        centroids = arrays[f"kmeans{g}_centroids"]
        assert centroids.shape == (clusters, settings["dim"]), recording.name
        found = pcl.described(arrays["x"], centroids, settings["temperature"])
        np.testing.assert_array_equal(found["assigned"], arrays[f"assignment{g}"])
        errors.append(golden.error(found["prototypes"], arrays[f"prototypes{g}"]))
        errors.append(golden.error(found["concentration"], arrays[f"density{g}"]))
    assert f"density{len(errors) // 2}" not in arrays, recording.name
    record_parity("pcl_density", recording.name, max(errors), TOLERANCE, "float32")


def recorded(folder):
    """Write what the law says, image by image, with a cluster of one image and one of none."""
    s, random = SETTINGS, np.random.default_rng(0)
    x = random.normal(size=(s["n"], s["dim"])).astype(np.float32)
    arrays = {"x": x}
    for g, clusters in enumerate(s["clusters"]):
        centroids = 0.3 * random.normal(size=(clusters, s["dim"])).astype(np.float32)
        centroids[0], centroids[1] = 50, 1.01 * x[3]
        far = np.linalg.norm(x[:, None].astype(float) - centroids, axis=2)
        phi = []
        for c in range(clusters):
            own = far[far.argmin(1) == c, c]
            phi.append(own.mean() / np.log(len(own) + 10) if len(own) > 1 else -1.0)
        phi = np.where(np.array(phi) < 0, max(phi), phi)
        low, high = (np.quantile(phi, share) for share in (0.1, 0.9))
        phi = np.minimum(np.maximum(phi, low), high)
        arrays |= {
            f"kmeans{g}_centroids": centroids,
            f"prototypes{g}": centroids / np.linalg.norm(centroids, axis=1, keepdims=True),
            f"density{g}": s["temperature"] * phi / np.mean(phi),
            f"assignment{g}": far.argmin(1),
        }
    return made.write(folder, "pcl_density", s, arrays, "torch")


def test_it_is_judged_by_its_own_settings(tmp_path):
    recording = recorded(tmp_path)
    assert made.judge(test_density, recording) == 1
    with pytest.raises(AssertionError, match="above"):
        made.judge(test_density, recording.with_settings(temperature=0.41))
    for wrong in ({"clusters": [9, 5]}, {"clusters": [9]}, {"n": 31}, {"dim": 4}):
        with pytest.raises(AssertionError, match="made"):
            made.judge(test_density, recording.with_settings(**wrong))
