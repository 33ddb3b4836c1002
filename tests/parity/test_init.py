"""Initial values against the official ones: the same law for every single variable."""

from __future__ import annotations

import golden
import jax
import numpy as np
import pytest
import sections

from simclr_jax.interop import official_names as official


@pytest.mark.parametrize("recording", golden.deep_ones_slow(golden.cases("init")))
def test_initial_values_follow_the_official_law(recording, record_parity):
    names = sections.names(recording, "encoder", "head", "classifier")
    assert list(names) == list(recording.variables)
    key = jax.random.key(recording.spec["seed"])
    ours = official.from_tree(jax.jit(lambda key: sections.init(recording, key))(key), names)
    for i, name in enumerate(names):
        x = np.asarray(ours[name], np.float64)
        assert x.shape == recording.variables[name][0]
        mean, std, largest = (float(recording.arrays[key][i]) for key in ("mean", "std", "maxabs"))
        if std == 0:
            error = golden.error(x, np.full(x.shape, mean))
            record_parity("init", recording.name, error, golden.EPS32)
            continue
        # Two samples of n values: 5 standard deviations of what differs by chance. Kurtosis is at
        # most the normal one, whose sample deviation has error 1/sqrt(2n).
        chance = 5 * np.sqrt(2 / x.size)
        record_parity("init", recording.name, abs(x.mean() - mean) / std, chance)
        record_parity("init", recording.name, abs(x.std() / std - 1), chance / np.sqrt(2))
        # 2.28 = 2 / 0.8796 standard deviations is where the truncated law ends.
        # A normal law of 1000 values exceeds 2.5 deviations all but surely, the truncated one of
        # the kernels ends at 2 / 0.88.
        if x.size > 1000:
            assert (np.max(np.abs(x)) < 2.5 * std) == (largest < 2.5 * std), name
