"""The loss of distillation against its definition, on one device or eight."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from simclr_jax import parallel
from simclr_jax.losses.distillation import distillation

DEVICES = 8
ROWS, CLASSES = 2 * DEVICES, 5


def softmax(row):
    return np.exp(row) / sum(np.exp(row))


def definition(student, teacher, temperature):
    """Return SimCLRv2's eq. 2 as a mean over rows, and the student's gradient, row by row."""
    total, gradient = 0.0, np.zeros_like(student)
    for i in range(len(student)):
        p, q = softmax(teacher[i] / temperature), softmax(student[i] / temperature)
        total -= sum(p[c] * math.log(q[c]) for c in range(len(p)))
        gradient[i] = (q - p) / temperature
    return total / len(student), gradient / len(student)


def draw(dtype=np.float64):
    """Return logits of a student and of a teacher."""
    student, teacher = np.random.default_rng(0).normal(size=(2, ROWS, CLASSES)).astype(dtype)
    return student, teacher


@pytest.mark.x64
@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("squared", [False, True])
def test_definition(temperature, squared):
    student, teacher = draw()
    options = {"temperature": temperature, "times_squared_temperature": squared}
    (loss, agreement), gradient = jax.value_and_grad(distillation, has_aux=True)(
        student, teacher, **options
    )
    factor = temperature**2 if squared else 1
    want, want_gradient = definition(student, teacher, temperature)
    np.testing.assert_allclose(loss, factor * want, rtol=1e-13)
    np.testing.assert_allclose(gradient, factor * want_gradient, rtol=1e-11, atol=1e-15)
    chosen = [np.argmax(logits, axis=1) for logits in (student, teacher)]
    same = np.sum(chosen[0] == chosen[1])
    assert 0 < same < ROWS and agreement == same / ROWS


@pytest.mark.x64
def test_eight_devices_give_the_value_and_gradient_of_one():
    def local(student, teacher):
        shares, gradient = jax.value_and_grad(
            lambda x: distillation(x, teacher, temperature=0.5, axis_name=parallel.AXIS),
            has_aux=True,
        )(student)
        return lax.psum(shares, parallel.AXIS), gradient

    P, mesh = jax.P, parallel.make_mesh(DEVICES)
    specs = {"in_specs": P(parallel.AXIS), "out_specs": (P(), P(parallel.AXIS))}
    (loss, agreement), gradient = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(*draw())
    want, want_gradient = definition(*draw(), 0.5)
    np.testing.assert_allclose(loss, want, rtol=1e-13)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-11, atol=1e-15)
    assert agreement == distillation(*draw())[1]


def test_the_teacher_gets_no_gradient():
    student, teacher = draw(np.float32)
    gradient = jax.grad(lambda teacher: distillation(student, teacher)[0])(teacher)
    assert not np.any(gradient)


def test_who_says_the_same_as_the_teacher_pays_its_entropy_and_rests():
    _, teacher = draw(np.float32)
    rows = [softmax(row / 0.5) for row in teacher]
    entropy = np.mean([-sum(p * np.log(p)) for p in rows])
    (loss, agreement), gradient = jax.value_and_grad(distillation, has_aux=True)(
        teacher + 7.0, teacher, temperature=0.5
    )
    np.testing.assert_allclose(loss, entropy, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    assert agreement == 1


def test_confident_logits_at_a_low_temperature_stay_finite():
    student = jnp.asarray([[0.0, 90.0], [90.0, 0.0]])
    teacher = jnp.asarray([[0.0, 90.0], [0.0, 90.0]])
    (loss, _), gradient = jax.value_and_grad(distillation, has_aux=True)(
        student, teacher, temperature=0.1
    )
    assert float(loss) == pytest.approx(900 / 2) and np.all(np.isfinite(gradient))


def test_bfloat16_is_reduced_in_float32():
    student, teacher = (jnp.asarray(logits, jnp.bfloat16) for logits in draw())
    loss, _ = distillation(student, teacher, temperature=0.1)
    assert loss.dtype == jnp.float32
    wide = (np.asarray(logits, np.float64) for logits in (student, teacher))
    np.testing.assert_allclose(loss, definition(*wide, 0.1)[0], rtol=1e-5)
