"""What pretraining asks of the images, and what a network starts from."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from train import tiny

from simclr_jax import recipes
from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.stages import build


def test_several_labels_are_no_labels_for_probe_and_knn():
    c = recipes.base()
    c.data.image_size = 8
    labels = np.random.RandomState(0).randint(-1, 2, (6, 3)).astype(np.int8)
    images = Images(np.zeros((6, 8, 8, 3), np.uint8), labels, 3)
    c.eval.probe, c.eval.knn = True, False
    with pytest.raises(UserError, match=r"several labels.*eval\.probe.*set --config.eval.probe=F"):
        build.check_images(c, images, images)
    c.eval.probe = False
    build.check_images(c, images, images)  # nor does `eval.compare` look for few labels of each


@pytest.mark.parametrize("shown", ["normalised", "lightness"])
def test_an_input_made_of_colours_needs_them(shown):
    c = recipes.base()
    c.data.image_size, c.model.input, c.eval.few_labels = 8, shown, 1
    gray, coloured = (
        Images(np.zeros((8, 8, 8, channels), np.uint8), np.arange(8, dtype=np.int32) % 2, 2)
        for channels in (1, 3)
    )
    build.check_images(c, coloured, coloured)
    with pytest.raises(UserError, match=rf"model.input is {shown}, .* the images have 1: set"):
        build.check_images(c, gray, gray)


def test_every_drawn_first_value_is_that_of_the_seed():
    """Those that a run starts from, and the untrained encoder that the doors compare with."""
    values, again, others = (
        jax.tree.leaves(build.first_variables(tiny.recipe(seed=seed), 3)["params"])
        for seed in (5, 5, 6)
    )
    kernels = 0
    for one, same, other in zip(values, again, others, strict=True):
        np.testing.assert_array_equal(one, same)
        if np.ndim(one) > 1:  # not a bias or a scale, which no one draws
            assert np.mean(np.equal(one, other)) < 0.01
            kernels += 1
    assert kernels > 8
