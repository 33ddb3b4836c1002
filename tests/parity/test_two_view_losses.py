"""Losses of two views against recordings of public code, or of NumPy where there is none.

They are of float64, so that rounding hides nothing. Where a recording says how exact its numbers
are (`sensitivity`), they are met within that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import golden
import jax
import numpy as np
import pytest

from simclr_jax.losses.debiased import debiased
from simclr_jax.losses.decoupled import decoupled
from simclr_jax.losses.info_nce import cpc, info_nce
from simclr_jax.losses.margin import margin_loss
from simclr_jax.losses.nt_logistic import nt_logistic

pytestmark = pytest.mark.x64


class Told(NamedTuple):
    """What the settings of a recording make of it.

    Attributes:
      loss: a function of the inputs.
      inputs: by name in the file, with the name of the gradient there.
      logit: the largest there can be, or there is.
      normalized: whether the loss normalises its inputs itself; else they are of length 1.
    """

    loss: Callable
    inputs: dict[str, str]
    logit: float
    normalized: bool


def check_shape(recording, **shapes):
    for name, shape in shapes.items():
        assert recording.arrays[name].shape == shape, f"{recording.name}: shape of {name}"


def info_nce_of(recording):
    s = recording.settings
    check_shape(recording, q=(s["n"], s["dim"]), k=(s["n"], s["dim"]))
    loss = functools.partial(info_nce, temperature=s["temperature"])
    return Told(loss, {"q": "grad_q", "k": "grad_k"}, 1 / s["temperature"], True)


def cpc_of(recording):
    s, arrays = recording.settings, recording.arrays
    n, c, d, steps = (s[name] for name in ("n", "context_dim", "dim", "steps"))
    check_shape(recording, context=(n, c), z=(steps, n, d), W=(steps, d, c))
    logits = np.einsum("knd,kdc,mc->knm", arrays["z"], arrays["W"], arrays["context"])
    inputs = {name: f"grad_{name}" for name in ("context", "z", "W")}
    loss = functools.partial(cpc, over=s["over"])
    return Told(loss, inputs, float(np.max(np.abs(logits))), False)


def views_of(recording, loss, logit=1.0, **settings):
    """Return what is told of a loss of `z1` and `z2`, some of which have gradients of other names.

    Args:
      logit: the largest; 1 of a loss of cosines.
    """
    s = recording.settings
    check_shape(recording, z1=(s["n"], s["dim"]), z2=(s["n"], s["dim"]))
    by_network = "grad1" in recording.arrays
    names = ("grad1", "grad2") if by_network else ("grad_z1", "grad_z2")
    partial = functools.partial(loss, **settings)
    return Told(partial, dict(zip(("z1", "z2"), names, strict=True)), logit, not by_network)


def decoupled_of(recording):
    s = recording.settings
    assert s["weight_carries_gradient"] is True, f"{recording.name}: weight_carries_gradient"
    return views_of(
        recording,
        decoupled,
        1 / s["temperature"],
        temperature=s["temperature"],
        sigma=s["sigma"],
        both_directions=s["both_directions"],
        added_to_own=s["own_and_partner_added_to_logits"],
    )


def debiased_of(recording):
    """With `debiased` off, and of the easy estimator, the code reads neither tau nor beta."""
    s = recording.settings
    t, tau = s["temperature"], s["tau_plus"]
    if recording.spec["kind"] == "debiased":
        corrected, beta = s["debiased"], 0.0
    else:
        corrected, beta = {"hard": True, "easy": False}[s["estimator"]], s["beta"]
    some = {"tau_plus": tau, "beta": beta} if corrected else {"tau_plus": 0.0, "beta": 0.0}
    return views_of(recording, debiased, (1 + some["beta"]) / t, temperature=t, **some)


def margin_of(recording):
    s = recording.settings
    return views_of(recording, margin_loss, margin=s["margin"], negatives=s["negatives"])


def nt_logistic_of(recording):
    """The margin is of semi-hard negatives; with others it stands there and means nothing."""
    s = recording.settings
    t, negatives, margin = s["temperature"], s["negatives"], s.get("margin")
    margin = margin if negatives == "semi_hard" else None
    some = {"temperature": t, "margin": margin, "negatives": negatives}
    return views_of(recording, nt_logistic, 1 / t, **some)


KINDS = {
    "infonce": info_nce_of,
    "infonce_cpc": cpc_of,
    "decoupled": decoupled_of,
    "debiased": debiased_of,
    "hard_negative": debiased_of,
    "margin": margin_of,
    "nt_logistic": nt_logistic_of,
}


def values(told, arrays, **settings):
    """Return the loss of a recording, and its gradients by the name of the input."""
    given = [arrays[name] for name in told.inputs]
    places = tuple(range(len(given)))
    loss = lambda *given: told.loss(*given, **settings)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss, places))(*given)
    return value, dict(zip(told.inputs, gradients, strict=True))


def gradient_error(told, x, got, want):
    """Return the largest error of a row relative to that row, or to the terms that cancel in it.

    These are other rows, by the largest logit over the number of images, and by the length of the
    row where that is normalised.
    """
    x, got, want = (np.reshape(a, (-1, a.shape[-1])) for a in (x, np.asarray(got), want))
    terms = max(1.0, told.logit) / len(x)
    length = np.linalg.norm(x, axis=1) if told.normalized else 1.0
    scale = np.maximum(np.linalg.norm(want, axis=1), terms / length)
    return float(np.max(np.linalg.norm(got - want, axis=1) / scale))


@pytest.mark.parametrize("recording", [case for kind in KINDS for case in golden.cases(kind)])
def test_loss_and_gradients(recording, record_parity):
    kind, arrays = recording.spec["kind"], recording.arrays
    told = KINDS[kind](recording)
    sensitivity = recording.spec.get("sensitivity", {})

    def check(error, of="loss"):
        limit = max(32 * golden.EPS64 * (1 + told.logit), 8 * sensitivity.get(of, 0.0))
        record_parity(kind, recording.name, error, limit, "float64")

    two_views = "z1" in told.inputs
    loss, gradients = values(told, arrays, **({"normalize": told.normalized} if two_views else {}))
    check(golden.error(loss, arrays["loss"], floor=1.0))
    for name, key in told.inputs.items():
        check(gradient_error(told, arrays[name], gradients[name], arrays[key]), "grad")
    if two_views and not told.normalized:
        check_normalized(told, arrays, check)


def check_normalized(told, arrays, check):
    """Check the loss that normalises: of unit vectors it is the same, and moves none along itself.

    What is recorded is of code whose network normalises; of an inner product of a vector with
    itself, such as leaks into one recording, the gradient is along it.
    """
    loss, gradients = values(told, arrays)
    check(golden.error(loss, arrays["loss"], floor=1.0))
    for name, key in told.inputs.items():
        unit, slope = arrays[name], arrays[key]
        across = slope - np.sum(slope * unit, axis=1, keepdims=True) * unit
        check(gradient_error(told, unit, gradients[name], across), "grad")
