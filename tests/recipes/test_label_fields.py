"""Fields of distillation that decide its loss and what the teacher computes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import taught, written
from train import tiny

from simclr_jax import parallel

random = np.random.default_rng(0)
STUDENT, TEACHER = random.normal(size=(2, 8, tiny.CLASSES)).astype(np.float32)
LABELS = np.array([1, -1, 3, 0, -1, 2, -1, 1], np.int32)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return str(written.write_run(tmp_path_factory.mktemp("teacher") / "run", seed=5))


def stage(teacher, **fields):
    named = {f"distill__{name}": value for name, value in fields.items()}
    return taught.make_stage(taught.recipe("distill", distill__teacher=teacher, **named))


def loss(teacher, **fields):
    made, _ = stage(teacher, **fields)
    outputs = {"logits": STUDENT, "teacher": TEACHER, "label": LABELS}
    outputs = jax.tree.map(lambda x: x[None], outputs)  # of one device
    found, _ = jax.vmap(
        lambda o: made.objective(o, {}, jnp.int32(0), parallel.AXIS), axis_name=parallel.AXIS
    )(outputs)
    return float(found[0])


def by_hand(temperature=1.0, alpha=1.0, times_squared_temperature=False):
    """Write eq. 2 and 3 of SimCLRv2 out, over all images."""

    def log_softmax(logits):
        logits = np.float64(logits)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    target = np.exp(log_softmax(TEACHER / temperature))
    taught_by = -np.sum(target * log_softmax(STUDENT / temperature)) / len(STUDENT)
    taught_by *= temperature**2 if times_squared_temperature else 1
    rows = np.flatnonzero(LABELS >= 0)
    labelled = -np.sum(log_softmax(STUDENT)[rows, LABELS[rows]]) / len(STUDENT)
    return alpha * taught_by + (1 - alpha) * labelled


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 2.5},
        {"alpha": 0.3},
        {"temperature": 2.5, "times_squared_temperature": True},
    ],
)
def test_the_loss_of_distillation_is_that_of_the_recipe(teacher, fields):
    np.testing.assert_allclose(loss(teacher, **fields), by_hand(**fields), rtol=1e-5)
    assert not fields or abs(by_hand(**fields) - by_hand()) > 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_teacher_computes_in_a_dtype_of_its_own(teacher, dtype):
    made, _ = stage(teacher, teacher_dtype=dtype)
    state = jax.eval_shape(made.init)
    _, batch = next(made.batches(0, 1))
    batch = {name: x[0] for name, x in batch.items()} | {"row": jnp.arange(tiny.BATCH)}

    def forward(params, stats, frozen):
        return made.forward(params, stats, frozen, batch, jnp.int32(0))

    program = jax.make_jaxpr(forward, axis_env=[(parallel.AXIS, 1)])(
        state.params, state.batch_stats, made.frozen
    )
    assert ("bf16" in str(program)) == (dtype == "bfloat16")
