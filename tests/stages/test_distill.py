"""Distillation: one teacher, frozen, looked at once a step, and which labels reach the loss."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import taught, written
from train import tiny

import simclr_jax
from simclr_jax import parallel
from simclr_jax.stages.teacher import Teacher
from simclr_jax.train import saved
from simclr_jax.train.step import make_step

DEVICES = 8
EXACT = 1e-10  # float64, relative to the largest number of an array, after three updates
STUDENT = 13  # convolutions of a ResNet-10
TEACHER = 21  # of a ResNet-18


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A deeper run whose every weight is random, its probe on h being the classifier."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    return str(written.write_run(workdir, seed=5, model__depth=18))


def recipe(teacher, **fields):
    return taught.recipe("distill", distill__teacher=teacher, **fields)


# The teacher --------------------------------------------------------------------------------------


def assert_one_teacher(stage, mesh):
    """Of the student: forward, by kernel, and by input but for the images; of the teacher: once."""
    found = taught.convolutions(taught.lowered(stage, mesh))
    assert found == 3 * STUDENT - 1 + TEACHER, "convolutions"


def test_the_teacher_looks_at_a_batch_once_and_is_not_differentiated(teacher):
    stage, mesh = taught.make_stage(recipe(teacher))
    assert_one_teacher(stage, mesh)

    def forward(params, stats, extra, batch, step):
        """Look twice, as if the teacher had views of its own."""
        outputs, moved = stage.forward(params, stats, extra, batch, step)
        flipped = batch | {"image": jnp.flip(batch["image"], 2)}
        again, _ = stage.forward(params, stats, extra, flipped, step)
        return outputs | {"teacher": outputs["teacher"] + again["teacher"]}, moved

    with pytest.raises(AssertionError, match="convolutions"):
        assert_one_teacher(dataclasses.replace(stage, forward=forward), mesh)


@pytest.fixture(scope="module")
def classify(teacher):
    """The teacher in a dtype, as a compiled function of images; and its variables."""

    def make(dtype):
        made = Teacher(saved.read(teacher), dtype, parallel.make_mesh(1))
        return functools.partial(jax.jit(made), made.variables)

    return functools.cache(make)


IMAGES = np.random.default_rng(0).random((16, 8, 8, 3)).astype(np.float32)


def test_the_teacher_is_that_of_the_python_api(teacher, classify):
    there = saved.read(teacher).leaves
    kernel, bias = (there[f"params/probe/dense/{name}"] for name in ("kernel", "bias"))
    want = simclr_jax.load(teacher)(IMAGES) @ kernel + bias
    np.testing.assert_allclose(classify("float32")(IMAGES), want, rtol=1e-4, atol=1e-4)


def test_the_teacher_does_not_look_at_batch_mates(classify):
    others = np.concatenate([IMAGES[:1], 1 - IMAGES[1:]])
    alone, among = classify("float32")(IMAGES)[0], classify("float32")(others)[0]
    np.testing.assert_allclose(alone, among, rtol=1e-6)


def test_a_bfloat16_teacher_says_nearly_the_same(classify):
    narrow, wide = classify("bfloat16")(IMAGES), classify("float32")(IMAGES)
    assert narrow.dtype == np.float32
    error = np.max(np.abs(narrow - wide)) / np.max(np.abs(wide))
    assert 1e-5 < error < 0.1


# Labels -------------------------------------------------------------------------------------------

LISTED = range(0, tiny.BATCH * tiny.STEPS, 2)  # images whose labels are used


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "half.txt"
    path.write_text("".join(f"image {i}\n" for i in LISTED))
    return str(path)


@pytest.fixture(scope="module")
def learn(teacher, names):
    """A function from training images to the parameters and metrics after three steps.

    It may be given the arrays of another teacher; the program is the same.
    """
    fields = {"alpha": 0.25, "temperature": 2.0}
    fields = {f"distill__{name}": value for name, value in fields.items()}
    config = recipe(teacher, labels__use=names, **fields)
    stage, mesh = taught.make_stage(config)
    step, frozen = make_step(stage, mesh), jax.device_get(stage.frozen)

    def after(train, teacher=stage.frozen):
        state, metrics = taught.start(stage, mesh), []
        for _, batch in taught.make_stage(config, train=train)[0].batches(0, tiny.STEPS):
            state, found = step(state, batch, teacher)
            metrics.append(jax.device_get(found))
        jax.tree.map(np.testing.assert_array_equal, stage.frozen, frozen)  # as it was
        return jax.device_get(state.params), metrics

    return after


def relabelled(rows):
    """Return the training images with other labels of some."""
    train = tiny.sorted_images()
    labels = train.labels.copy()
    labels[rows] = (labels[rows] + 1) % tiny.CLASSES
    return dataclasses.replace(train, labels=labels)


def test_hidden_labels_change_nothing_and_seen_ones_do(learn):
    want = learn(tiny.sorted_images())
    hidden = np.setdiff1d(np.arange(tiny.BATCH * tiny.STEPS), LISTED)
    jax.tree.map(np.testing.assert_array_equal, learn(relabelled(hidden)), want)
    other = learn(relabelled(np.array(LISTED)))
    assert abs(other[1][0]["label_loss"] - want[1][0]["label_loss"]) > 1e-3
    assert other[1][0]["distillation_loss"] == want[1][0]["distillation_loss"]


def test_the_teacher_is_an_argument_of_the_step_and_no_constant(learn):
    """As a constant it would be copied into the program, and be folded for minutes."""
    train = tiny.sorted_images()
    uniform = learn(train, jax.tree.map(jnp.zeros_like, learn.__defaults__[0]))[1]
    known = learn(train)[1]
    assert uniform[0]["label_loss"] == known[0]["label_loss"]  # the student is the same
    assert abs(uniform[0]["distillation_loss"] - known[0]["distillation_loss"]) > 1e-2


def test_alpha_is_the_weight_of_the_teacher(learn):
    for metrics in learn(tiny.sorted_images())[1]:
        want = 0.25 * metrics["distillation_loss"] + 0.75 * metrics["label_loss"]
        np.testing.assert_allclose(metrics["loss"], want, rtol=1e-6)
        assert abs(metrics["distillation_loss"] - metrics["label_loss"]) > 1e-3


def test_the_two_terms_are_sums_over_their_images(teacher, names):
    """The paper's eq. 3, divided by all images; a mean over labelled ones would weigh them more."""
    stage, _ = taught.make_stage(recipe(teacher, labels__use=names, distill__alpha=0.25))
    random = np.random.default_rng(0)
    student, of_teacher = random.normal(size=(2, 8, tiny.CLASSES)).astype(np.float32)
    labels = np.array([1, -1, -1, 0, -1, -1, -1, -1], np.int32)
    outputs = {"logits": student, "teacher": of_teacher, "label": labels}
    outputs = jax.tree.map(lambda x: x[None], outputs)  # of one device
    loss, _ = jax.vmap(lambda o: stage.objective(o, {}, 0, parallel.AXIS), axis_name=parallel.AXIS)(
        outputs
    )
    log_student = np.log(np.exp(student) / np.exp(student).sum(1, keepdims=True))
    probabilities = np.exp(of_teacher) / np.exp(of_teacher).sum(1, keepdims=True)
    taught_by = -np.sum(probabilities * log_student)
    labelled = -(log_student[0, 1] + log_student[3, 0])
    np.testing.assert_allclose(loss[0], (0.25 * taught_by + 0.75 * labelled) / 8, rtol=1e-5)


def test_on_labelled_images_alone_no_other_occurs(teacher, names):
    config = recipe(teacher, distill__images="labelled", labels__use=names)
    stage, _ = taught.make_stage(config)
    seen = {image.tobytes() for _, batch in stage.batches(0, 9) for image in batch["image"][0]}
    assert seen == {image.tobytes() for image in tiny.sorted_images().pixels[::2]}


@pytest.mark.slow
@pytest.mark.x64
def test_result_does_not_depend_on_the_number_of_devices(names, tmp_path):
    """Of which each has another number of labelled images. Little is trained: that compiles."""
    teacher = str(written.write_run(tmp_path / "run", seed=5))
    fields = {"distill__alpha": 0.25, "distill__teacher_dtype": "float64"}
    fields |= {"train__dtype": "float64", "finetune__train_from_block": 5}
    config = recipe(teacher, labels__use=names, **fields)
    one, eight = (
        taught.trained(*taught.make_stage(config, devices), dtype="float64")
        for devices in (1, DEVICES)
    )
    taught.close(eight, one, EXACT)
