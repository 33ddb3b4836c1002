"""The distillation loss against the official notebook's, and against the paper's equation 2."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import pytest

from simclr_jax.losses.distillation import distillation


def cases() -> list:
    return golden.cases("distill", lambda r: "loss" in r.arrays)


def values(recording: golden.Recording, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the official loss, its gradient for the student's logits, and the paper's loss."""
    settings = recording.settings
    shape, scale = (settings["batch"], settings["classes"]), settings["scale"]
    logits = [
        jnp.asarray(scale * recording.fill(f"{of}_logits", shape, "normal"), dtype)
        for of in ("student", "teacher")
    ]

    @jax.jit
    def evaluate(student, teacher):
        def loss(student, squared):
            return distillation(
                student,
                teacher,
                temperature=settings["temperature"],
                times_squared_temperature=squared,
            )[0]

        return *jax.value_and_grad(loss)(student, True), loss(student, False)

    return evaluate(*logits)


def compare(recording: golden.Recording, dtype, record_parity) -> None:
    arrays, sensitivity = recording.arrays, recording.spec["sensitivity"]
    loss, gradient, paper = values(recording, dtype)
    assert loss.dtype == gradient.dtype == paper.dtype == dtype

    def check(got, key, limit, precision="float32"):
        error = golden.error(got, arrays[key])
        record_parity("distill", recording.name, error, limit, precision)

    noise = golden.float32_tolerance(sensitivity["loss"])
    check(loss, "loss", noise)
    check(gradient, "grad_student", golden.float32_tolerance(sensitivity["grad"]))
    if dtype == jnp.float32:
        check(paper, "paper_eq2_mean", noise)
        return
    check(paper, "paper_eq2_mean", 64 * golden.EPS64, "float64")
    check(loss, "loss_float64", 4 * golden.EPS32)  # TensorFlow 1 averages in float32


@pytest.mark.parametrize("recording", cases())
def test_loss_and_gradient_are_the_official_ones(recording, record_parity):
    compare(recording, jnp.float32, record_parity)


@pytest.mark.x64
@pytest.mark.parametrize("recording", cases())
def test_loss_and_gradient_are_the_official_ones_in_float64(recording, record_parity):
    compare(recording, jnp.float64, record_parity)
