"""NT-Xent against the official loss: value, gradient, metrics, on one device and on several."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import parallel
from simclr_jax.losses.nt_xent import nt_xent


def hidden(recording: golden.Recording) -> np.ndarray:
    """Make the embeddings `[replicas, 2n, d]`: a replica's first views, then its second views."""
    settings = recording.settings
    if recording.tf1:
        replicas, n = settings["replicas"], settings["batch_per_replica"]
        names = [f"hidden/{r}" if replicas > 1 else "hidden" for r in range(replicas)]
        x = [recording.fill(name, (2 * n, settings["dim"]), "normal") for name in names]
        x = np.float32(settings["scale"]) * np.stack(x)
        if settings["zero_row"] is not None:
            x[:, settings["zero_row"]] = 0
        return x
    how, n = settings["hidden"], settings["n"]
    assert how["shape"] == [2 * n, settings["dim"]], f"{recording.name}: shape = {how['shape']}"
    names = [how["name"].format(r=r) for r in range(settings["num_replicas"])]
    x = np.stack([recording.fill(name, how["shape"], how["law"]) for name in names])
    x *= np.float32(how["scale"])
    if how["rule"] == "correlated":
        x[:, n:] = x[:, :n] + np.float32(0.3) * x[:, n:]
    elif how["rule"] == "identical":
        x[:, n:] = x[:, :n]
    elif how["rule"] == "zero_row":
        x[:, 1] = 0
    elif how["rule"] == "collapsed":
        x[:] = x[:, :1]
    else:
        assert how["rule"] == "independent", how["rule"]
    return x


def run(recording: golden.Recording, x: np.ndarray):
    """Return local losses `[r]`, local metrics `[r]` and the gradient of the mean of the losses."""
    settings, replicas, rows = recording.settings, x.shape[0], x.shape[1] // 2
    axis = parallel.AXIS if replicas > 1 else None
    weights = settings.get("weights")
    if weights is not None:
        weights = jnp.broadcast_to(jnp.asarray(weights, x.dtype), (rows,))

    def share(z):  # [2n, d] on each device
        return nt_xent(
            z[:rows],
            z[rows:],
            temperature=settings["temperature"],
            normalize=settings["hidden_norm"],
            weights=weights,
            axis_name=axis,
        )

    def local(z):
        (loss, metrics), grad = jax.value_and_grad(share, has_aux=True)(z)
        return jax.tree.map(lambda s: replicas * s[None], (loss, metrics)), grad

    if axis:
        P = jax.P(axis)
        local = jax.shard_map(local, mesh=parallel.make_mesh(replicas), in_specs=P, out_specs=P)
    (loss, metrics), grad = jax.jit(local)(x.reshape(-1, x.shape[-1]))
    return loss, metrics, np.asarray(grad).reshape(x.shape)


def gradient_error(recording, x, got, want) -> float:
    """Return the largest error of a row relative to that row, or to the terms that cancel in it.

    A row of the gradient is a difference of embeddings weighted by probabilities, divided by
    temperature, batch and, if normalised, by the length of the row.
    """
    settings = recording.settings
    length = np.linalg.norm(np.asarray(x, np.float64), axis=-1)
    terms = 1 / np.maximum(length, 1e-6) if settings["hidden_norm"] else np.max(length)
    terms = terms / (settings["temperature"] * x.shape[0] * x.shape[1] / 2)
    scale = np.maximum(np.linalg.norm(np.asarray(want, np.float64), axis=-1), terms)
    return float(np.max(np.linalg.norm(got - np.asarray(want, np.float64), axis=-1) / scale))


def official_metrics(recording: golden.Recording):
    """Return accuracy, the share of rows where rounding decides it, and entropy, per replica."""
    logits = recording.arrays["logits"].astype(np.float64)
    logits = logits.reshape(-1, *logits.shape[-2:])  # [r, n, N] first against second views
    labels = recording.arrays["labels"].reshape(*logits.shape[:2], -1)[..., : logits.shape[-1]]
    partner = np.max(np.where(labels == 1, logits, -np.inf), -1)
    others = np.max(np.where(labels == 1, -np.inf, logits), -1)
    undecided = np.abs(partner - others) <= 16 * golden.EPS32 * np.max(np.abs(logits))
    shifted = np.exp(logits - np.max(logits, -1, keepdims=True))
    p = shifted / np.sum(shifted, -1, keepdims=True)
    entropy = -np.sum(p * np.log(p + 1e-8), -1)
    return np.mean(partner > others, -1), np.mean(undecided, -1), np.mean(entropy, -1)


def tolerance(recording: golden.Recording, eps: float) -> float:
    """Return 8 roundings of the largest logit: what the softmax turns into relative errors."""
    return 8 * eps * (1 + float(np.max(np.abs(recording.arrays["logits"]))))


@pytest.mark.parametrize("recording", golden.cases("ntxent"))
def test_loss_gradient_and_metrics_are_the_official_ones(recording, record_parity):
    x, arrays = hidden(recording), recording.arrays
    if "hidden" in arrays:
        np.testing.assert_array_equal(x.reshape(arrays["hidden"].shape), arrays["hidden"])
    loss, metrics, grad = run(recording, x)
    accuracy, undecided, entropy = official_metrics(recording)
    limit = tolerance(recording, golden.EPS32)

    def check(error, limit=limit):
        record_parity("ntxent", recording.name, error, limit)

    check(golden.error(loss, arrays["loss"].reshape(-1), floor=1.0))
    key = "grad_mean" if "grad_mean" in arrays else "grad"
    check(gradient_error(recording, x, grad, arrays[key].reshape(x.shape)))
    check(golden.error(metrics["contrast_entropy"], entropy, floor=1.0))
    got = np.asarray(metrics["contrast_accuracy"])
    check(float(np.max(np.abs(got - accuracy) - undecided)))
    if not np.any(undecided) and "contrast_acc" in arrays:
        check(golden.error(got, arrays["contrast_acc"].reshape(-1)))


@pytest.mark.x64
@pytest.mark.parametrize("recording", golden.cases("ntxent"))
def test_loss_and_gradient_are_the_official_ones_in_float64(recording, record_parity):
    x, arrays = hidden(recording).astype(np.float64), recording.arrays
    loss, _, grad = run(recording, x)
    exact = tolerance(recording, golden.EPS64)
    wanted = {"loss64": loss, "loss_float64": loss, "loss64_global": np.mean(loss)}
    for key in wanted.keys() & arrays.keys():
        error = golden.error(wanted[key], arrays[key].reshape(np.shape(wanted[key])), floor=1.0)
        # TensorFlow 1 averages losses in float32, also in a float64 graph.
        limit = 4 * golden.EPS32 if recording.tf1 else exact
        record_parity("ntxent", recording.name, error, limit, "float64")
    if "grad64" in arrays:
        error = gradient_error(recording, x, grad, arrays["grad64"].reshape(x.shape))
        record_parity("ntxent", recording.name, error, exact, "float64")
