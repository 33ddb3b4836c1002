"""Tasks that answer with a picture: colours, holes and noise against recordings, all in float64."""

from __future__ import annotations

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.augment.corruption import masked, noisy, with_holes
from simclr_jax.augment.lab import rgb_to_lab
from simclr_jax.losses import colour_bins
from simclr_jax.losses.batch import mean
from simclr_jax.losses.reconstruction import squared_error
from simclr_jax.methods import context_encoder

pytestmark = pytest.mark.x64

EXACT = 1e-12  # of values and gradients, relative to the largest


@functools.cache
def official_prior():
    """Return the published frequencies of colours: of the folders, or those of the tests."""
    found = [r for r in golden.recordings() if r.spec["kind"] == "colour_bins"]
    found = found or [golden.read(golden._OWN / "colour_bins-numpy-official.npz")]
    return found[0].arrays["prior"]


def agree(recording, record_parity, **found):
    for name, got in found.items():
        error = golden.error(got, recording.arrays[name])
        record_parity(recording.spec["kind"], recording.name, error, EXACT, "float64")


@pytest.mark.parametrize("recording", golden.cases("rgb2lab"))
def test_lab(recording, record_parity):
    lab = jax.jit(rgb_to_lab)(recording.arrays["image"])
    agree(recording, record_parity, lab=lab)


@pytest.mark.parametrize("recording", golden.cases("colour_bins"))
def test_bins(recording, record_parity):
    """In the official order; the weights that follow from their prior have a mean of 1."""
    official, prior = recording.arrays["bins"], recording.arrays["prior"]
    assert colour_bins.BINS.shape == official.shape
    wrong = np.abs(colour_bins.BINS - official).max()
    record_parity("colour_bins", recording.name, wrong, 0.0, "float64")
    weights = colour_bins.rebalancing(jnp.asarray(prior))
    record_parity("colour_bins", recording.name, abs(float(prior @ weights) - 1), EXACT, "float64")


@pytest.mark.parametrize("recording", golden.cases("colourisation"))
def test_colours(recording, record_parity):
    """The gradient is that of the official program, whose weight is on the gradient alone."""
    s = recording.settings
    n, ab = s["n"], recording.arrays["ab"]
    name = s["logits"].partition("'")[2].partition("'")[0]
    logits = golden.fill(name, (n, len(colour_bins.BINS)), s["seed"], "normal")
    assert ab.shape == (n, 2), recording.name
    weights = colour_bins.rebalancing(
        jnp.asarray(official_prior()), alpha=s["alpha"], uniform=s["gamma"]
    )
    found = colour_bins.soft_encoded(jnp.asarray(ab), neighbours=s["neighbours"], sigma=s["sigma"])
    np.testing.assert_array_equal(found.bins, recording.arrays["bin_order"])

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        each = colour_bins.weight_of(found, weights) * colour_bins.cross_entropy(logits, found)
        return mean(each)

    value, gradient = loss(logits.astype(np.float64))
    agree(
        recording,
        record_parity,
        soft_nonzero=jnp.sort(found.share, -1),
        weight=colour_bins.weight_of(found, weights),
        loss=value,
        grad_head=gradient[:, : recording.arrays["grad_head"].shape[1]],
        grad_norm=jnp.linalg.norm(gradient),
    )


def with_gradient(recording, record_parity, wanted, weight=None):
    """Compare the mean squared error of `out` with what is recorded, and its gradient."""
    loss = jax.jit(jax.value_and_grad(lambda made: mean(squared_error(made, wanted, weight))))
    out = recording.arrays["out"]
    assert list(out.shape) == recording.settings["shape"], recording.name
    value, gradient = loss(jnp.asarray(out))
    agree(recording, record_parity, loss=value, grad_out=gradient)


@pytest.mark.parametrize("recording", golden.cases("context_encoder"))
def test_holes(recording, record_parity):
    """Images are recorded in [-1, 1], and `cut` of the method says where and how much."""
    full, wanted = recording.arrays["full"], recording.arrays["target"]
    n, side, _, channels = full.shape
    hole, first = wanted.shape[1], (side - wanted.shape[1]) // 2
    corner = jnp.full((n, 2), first)
    overlap, usual = recording.settings["overlap"], context_encoder.DECLARATION.fields
    erased, weight = context_encoder.cut(
        side, corner, hole, overlap, usual["border_weight"].default, jnp.float64
    )
    colour = context_encoder.colour(usual["fill"].default, channels)
    given = 2 * with_holes(jnp.asarray((full + 1) / 2), erased, jnp.asarray(colour)) - 1
    inside = slice(first, first + hole)
    np.testing.assert_array_equal(full[:, inside, inside], wanted)
    agree(recording, record_parity, context=given)
    with_gradient(recording, record_parity, wanted, weight[:, inside, inside])


@pytest.mark.parametrize("recording", golden.cases("autoencoder"))
def test_reconstruction(recording, record_parity):
    with_gradient(recording, record_parity, recording.arrays["image"])


@pytest.mark.parametrize("recording", golden.cases("denoising_autoencoder"))
def test_noise(recording, record_parity):
    """Masking and Gaussian noise, each by itself, and the error against the clean image."""
    s, image = recording.settings, recording.arrays["image"]
    noise = golden.fill(f"{recording.spec['case']}/noise", image.shape, s["seed"], "normal")
    draw = recording.arrays["draw"]
    agree(
        recording,
        record_parity,
        masked=masked(jnp.asarray(image), jnp.asarray(draw), s["mask_rate"]),
        gaussian=noisy(jnp.asarray(image), jnp.asarray(noise), s["sigma"]),
    )
    with_gradient(recording, record_parity, image)
