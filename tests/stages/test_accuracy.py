"""Accuracies of classifiers on held-out images, and the steps that train them, without the package.

Of fine-tuning and of distillation, whose teacher is scored beside the student. Some held-out images
have no label and some cannot be read, and their number divides neither batch nor devices.
"""

from __future__ import annotations

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import noisy, taught
from train import tiny

from simclr_jax import documents, parallel
from simclr_jax.data.sources import Images
from simclr_jax.frame import modules
from simclr_jax.stages import build, labels, run, views
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import TrainState

CLASSES = 7  # more than 5, so that there is a top-5; `noisy` draws four of them
TRAIN = noisy.split(1, unlabelled=7, unreadable=5, classes=CLASSES)
TEST = noisy.split(2, (70, 50, 40, 30), unlabelled=9, unreadable=6, classes=CLASSES)


def recipe(stage="finetune", **fields):
    return taught.recipe(stage, data__max_bad_fraction=0.2, **fields)


def perturbed(tree, seed, spread=0.3):
    random = np.random.default_rng(seed)

    def draw(leaf):
        return (np.asarray(leaf) + spread * random.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, tree)


def classified(seed, tap, **fields):
    """Return random weights and statistics, with a classifier that is right now and then."""
    c = recipe(**fields)
    first = build.first_variables(c, 3)
    # Small variances, or so random a network would tell no image from another.
    stats = perturbed(first["batch_stats"], seed + 1, 0.03)
    stats = jax.tree.map(lambda leaf: 0.3 * np.abs(leaf) + 0.03, stats)
    variables = {"params": perturbed(first["params"], seed), "batch_stats": stats}
    rows = TRAIN.counted
    x = noisy.features(c, variables, noisy.evaluation_views(TRAIN, rows))[tap]
    centre, unit = x.mean(0), x.std()
    kernel = noisy.regression((x - centre) / unit, TRAIN.labels[rows] % noisy.CLASSES, 3.0)
    kernel = np.hstack([kernel, perturbed(np.zeros((len(kernel), 3)), seed, 0.2)])
    bias = kernel[-1] - centre @ kernel[:-1] / unit
    dense = {"kernel": np.float32(kernel[:-1] / unit), "bias": np.float32(bias)}
    variables["params"]["classifier"] = {"dense": dense}
    return variables


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A fine-tuned run of another depth with a classifier on tap 1; checkpoints 7 and 9 differ."""
    fields = {"model__depth": 18, "finetune__tap": 1}
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    checkpoints, written = Checkpoints(workdir / "checkpoints"), {}
    for step, seed in ((7, 20), (9, 30)):
        written[step] = classified(seed, 1, **fields)
        # A probe on the side is not the classifier.
        params = written[step]["params"] | {"probe": perturbed({"dense": {"bias": np.zeros(4)}}, 1)}
        stats = written[step]["batch_stats"]
        checkpoints.save(step, TrainState(np.int32(step), params, stats, {}))
    checkpoints.close()
    documents.write(workdir / "config.json", recipe(**fields).to_dict())
    return workdir, written


def make_stage(config, devices=8, train=TRAIN):
    mesh = parallel.make_mesh(devices)
    inputs = Inputs(config, labels.restrict(config, train), TEST)
    timetable = timetables.make(config, len(inputs.train))
    return run.STAGES[config.stage](config, timetable, inputs, mesh), mesh, inputs


def placed(variables, mesh):
    params, stats = variables["params"], variables["batch_stats"]
    return parallel.replicate(mesh, TrainState(np.int32(3), params, stats, {}))


def truth(rows=None):
    rows = TEST.counted if rows is None else rows
    return TEST.labels[rows], noisy.evaluation_views(TEST, rows)


def check_scores(found, logits, y):
    """Compare top-1, top-5, mean per class and their intervals with those of logits."""
    right = np.argmax(logits, axis=1) == y
    each = [right[y == c].mean() for c in np.unique(y)]
    want = {
        "top-1": right.mean(),
        "top-5": noisy.top(logits, y, 5),
        "mean per class": np.mean(each),
    }
    assert {name: score["accuracy"] for name, score in found.items()} == pytest.approx(want)
    assert 0.3 < want["top-1"] < 0.75 and abs(want["mean per class"] - want["top-1"]) > 0.01
    for name in ("top-1", "top-5"):
        error = 1.96 * np.sqrt(want[name] * (1 - want[name]) / len(y))
        for end, sign in (("low", -1), ("high", 1)):
            assert found[name][end] == pytest.approx(want[name] + sign * error, abs=0.025)


@functools.cache
def tuned(tap):
    fields = {"finetune__tap": tap}
    stage, mesh, _ = make_stage(recipe(**fields))
    variables = classified(3, tap % 3, **fields)
    return stage, mesh, variables


@pytest.mark.parametrize("tap", [0, -1])
def test_a_classifier_is_scored_on_readable_labelled_held_out_images(tap):
    stage, mesh, variables = tuned(tap)
    y, images = truth()
    logits = noisy.outputs(recipe(), variables, images, "classifier", tap)
    found = stage.evaluate(placed(variables, mesh))
    assert found["accuracy"] == pytest.approx(noisy.top(logits, y))
    want = noisy.cross_entropy(logits, y).mean()
    assert found["held_out_loss"] == pytest.approx(want, rel=1e-4)
    assert 175 * found["accuracy"] == pytest.approx(round(175 * found["accuracy"]))
    scores = stage.compare(placed(variables, mesh))
    assert list(scores) == ["the commonest class", "classifier"]
    check_scores(scores["classifier"], logits, y)
    level, order = scores["the commonest class"], np.bincount(TRAIN.labels[TRAIN.counted])
    order = np.argsort(-order, kind="stable")
    want = {"top-1": np.mean(y == order[0]), "top-5": np.isin(y, order[:5]).mean()}
    want["mean per class"] = 1 / len(np.unique(y))
    assert {name: score["accuracy"] for name, score in level.items()} == pytest.approx(want)


def test_the_commonest_class_is_that_of_readable_images():
    """With those that cannot be read it would be another one."""
    known = np.repeat(np.arange(3), (38 + 5, 40, 20)).astype(np.int32)
    images = Images(noisy.pixels(known, 5), known, CLASSES)
    stage, mesh, _ = make_stage(recipe(), train=noisy.Noisy(images, unreadable=(0, 1, 2, 3, 4)))
    level = stage.compare(placed(tuned(0)[2], mesh))["the commonest class"]
    assert level["top-1"]["accuracy"] == pytest.approx(np.mean(truth()[0] == 1))


def test_where_the_host_prepares_images_the_same_are_scored():
    """It reads damaged files as it goes, and marks them."""
    stage, mesh, _ = make_stage(recipe(augment__placement="host", finetune__tap=0))
    _, _, variables = tuned(0)
    y, images = truth()
    logits = noisy.outputs(recipe(), variables, images, "classifier")
    found = stage.evaluate(placed(variables, mesh))
    assert found["accuracy"] == pytest.approx(noisy.top(logits, y))
    assert found["held_out_loss"] == pytest.approx(noisy.cross_entropy(logits, y).mean(), rel=1e-4)


def test_the_protocol_says_which_list_of_labels_was_used(tmp_path):
    """As it was then: the run ends long after."""
    few = tmp_path / "few.txt"
    names = "\n".join(TRAIN.name(row) for row in TRAIN.counted[:40])
    few.write_text(names)
    stage, _, _ = make_stage(recipe(labels__use=str(few)))
    few.write_text("others")
    want = f"{few}, crc32 {zlib.crc32(names.encode()):08x} of train, draw 0"
    assert stage.protocol()["labelled"] == want


def test_the_protocol_of_a_classifier_says_what_was_done():
    stage, _, inputs = make_stage(recipe(finetune__tap=-1))
    stage.evaluate(placed(tuned(-1)[2], parallel.make_mesh(8)))
    protocol = stage.protocol()
    assert protocol["classifier"] == "linear on head2, inference mode"
    assert protocol["labelled"] == "all of train, draw 0"
    assert "of the labels learned from" in protocol["the commonest class"]
    assert protocol["held_out_images"] == len(TEST.counted) == 175
    assert (protocol["held_out_without_label"], protocol["held_out_unreadable"]) == (9, 6)
    assert protocol["held_out"] == f"test: {inputs.test.fingerprint()}"
    assert protocol["images"] == f"train: {inputs.train.fingerprint()}"


# Distillation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [7, 9])
def test_the_teacher_is_scored_beside_the_student(teacher, step):
    """By the weights of the step that is named, on the layer that its classifier was taught on."""
    workdir, written = teacher
    at = f"{workdir}@{step}" if step == 7 else str(workdir)
    c = recipe("distill", distill__teacher=at)
    stage, mesh, _ = make_stage(c)
    _, _, variables = tuned(0)
    y, images = truth()
    scores = stage.compare(placed(variables, mesh))
    student = noisy.outputs(c, variables, images, "classifier")
    own = recipe(model__depth=18)
    taught_by = noisy.outputs(own, written[step], images, "classifier", 1)
    assert list(scores) == ["the commonest class", "classifier", "teacher"]
    check_scores(scores["classifier"], student, y)
    check_scores(scores["teacher"], taught_by, y)
    assert stage.protocol()["teacher"] == f"{workdir}@{step}"
    assert stage.protocol()["labelled"] == "none"  # alpha is 1
    assert "labels, none of them learned from" in stage.protocol()["the commonest class"]
    found = stage.evaluate(placed(variables, mesh))
    assert found["accuracy"] == pytest.approx(scores["classifier"]["top-1"]["accuracy"])
    check_agreement(found, c, variables, own, written[step])


def check_agreement(found, c, variables, own, written):
    """Compare with the choices for all images that can be read, of which some have no label."""
    rows = np.setdiff1d(np.arange(len(TEST)), TEST.unreadable)
    shown = noisy.evaluation_views(TEST, rows)
    student = noisy.outputs(c, variables, shown, "classifier").argmax(1)
    same = student == noisy.outputs(own, written, shown, "classifier", 1).argmax(1)
    assert found["held_out_agreement"] == pytest.approx(same.mean(), abs=1e-9)
    assert 0 < same.sum() < len(same) and same.mean() != same[TEST.labels[rows] >= 0].mean()


@pytest.mark.parametrize("placement", ["device", "host"])
def test_without_labels_the_student_is_still_compared_with_the_teacher(teacher, placement):
    workdir, written = teacher
    c = recipe("distill", distill__teacher=str(workdir), augment__placement=placement)
    mesh = parallel.make_mesh(8)
    images = Images(TEST.images.pixels, None, 0)
    test = noisy.Noisy(images, unreadable=TEST.unreadable)
    inputs = Inputs(c, labels.restrict(c, TRAIN), test)
    stage = run.STAGES["distill"](c, timetables.make(c, len(inputs.train)), inputs, mesh)
    _, _, variables = tuned(0)
    for _ in range(2):  # the teacher's choices are kept
        found = stage.evaluate(placed(variables, mesh))
        assert found.keys() == {"held_out_agreement"}
        check_agreement(found, c, variables, recipe(model__depth=18), written[9])


def in_training(config, variables, images, tap):
    """Return logits by statistics of the batch, by a plain application of the modules."""

    def part(name):
        return {kind: tree.get(name, {}) for kind, tree in variables.items()}

    def apply(images):
        def run(module, name, x):
            return module.apply(part(name), x, train=True, mutable=["batch_stats"])[0]

        h = run(modules.encoder(config), "encoder", images)["h"]
        return run(modules.projection_head(config), "head", h)[tap]

    mapped = jax.vmap(apply, axis_name=parallel.AXIS)
    x = np.asarray(jax.jit(mapped)(images[None])[0], np.float64)
    dense = variables["params"]["classifier"]["dense"]
    return x @ np.float64(dense["kernel"]) + dense["bias"]


def summed(stage, made):
    """Return loss and metrics of a batch that lies on one device."""
    made = jax.tree.map(lambda x: x[None], made)
    of = jax.vmap(lambda o: stage.objective(o, {}, 0, parallel.AXIS), axis_name=parallel.AXIS)
    return jax.tree.map(lambda x: float(x[0]), jax.jit(of)(made))


def first_step(config, variables):
    """Return outputs, loss and metrics of the first step, and what the network was shown."""
    stage, _, _ = make_stage(config, devices=1)
    batch = jax.tree.map(lambda x: x[0], next(stage.batches(0, 1))[1])
    batch = batch | {"row": np.arange(tiny.BATCH)}
    params, stats = variables["params"], variables["batch_stats"]

    def forward(batch):
        return stage.forward(params, stats, dict(stage.frozen), batch, jnp.int32(0))[0]

    one = jax.tree.map(lambda x: x[None], batch)
    made = jax.jit(jax.vmap(forward, axis_name=parallel.AXIS))(one)
    made = jax.tree.map(lambda x: np.asarray(x[0]), made)
    shown = np.asarray(jax.jit(views.view_maker(config))(batch)["views"][:, 0], np.float32)
    return made, summed(stage, made), shown, np.asarray(batch["label"])


def test_the_first_loss_of_fine_tuning_is_that_of_its_first_images():
    c = recipe(finetune__tap=1)
    variables = classified(3, 1, finetune__tap=1)
    made, (loss, metrics), shown, y = first_step(c, variables)
    assert y.min() >= 0 and len(y) == tiny.BATCH  # of the images that have a label
    logits = in_training(c, variables, shown, 1)
    np.testing.assert_allclose(made["logits"], logits, rtol=2e-3, atol=2e-3)
    want = noisy.cross_entropy(made["logits"], y).mean()
    assert loss == metrics["loss"] == pytest.approx(want, rel=1e-5)
    assert metrics["train_accuracy"] == pytest.approx(noisy.top(made["logits"], y))


@pytest.mark.parametrize(
    "temperature, squared, alpha", [(2.0, False, 0.3), (0.5, True, 0.3), (3.0, True, 1.0)]
)
def test_the_first_loss_of_distillation(teacher, temperature, squared, alpha):
    """By the teacher's view of the same images, labels counting where there are any."""
    workdir, written = teacher
    c = recipe(
        "distill",
        distill__teacher=f"{workdir}@7",
        distill__temperature=temperature,
        distill__times_squared_temperature=squared,
        distill__alpha=alpha,
        labels__use="all" if alpha == 1 else "50%",
        labels__seed=4,
    )
    _, _, variables = tuned(0)
    made, (loss, metrics), shown, y = first_step(c, variables)
    own = recipe(model__depth=18)
    want = noisy.outputs(own, written[7], shown, "classifier", 1)
    np.testing.assert_allclose(made["teacher"], want, rtol=2e-3, atol=2e-3)
    soft = noisy.softmax(np.float64(made["teacher"]) / temperature)
    student = np.log(noisy.softmax(np.float64(made["logits"]) / temperature))
    distilled = -np.sum(soft * student) / len(y) * (temperature**2 if squared else 1)
    known = y >= 0
    assert metrics["distillation_loss"] == pytest.approx(distilled, rel=1e-4)
    same = np.mean(made["logits"].argmax(1) == made["teacher"].argmax(1))
    assert metrics["agreement"] == pytest.approx(same)
    if alpha == 1:
        assert loss == pytest.approx(distilled, rel=1e-4) and "label_loss" not in metrics
        return
    assert 0 < known.sum() < len(y)
    labelled = noisy.cross_entropy(made["logits"][known], y[known]).sum() / len(y)
    assert metrics["label_loss"] == pytest.approx(labelled, rel=1e-4)
    assert loss == metrics["loss"] == pytest.approx(alpha * distilled + (1 - alpha) * labelled)
    own_top = noisy.top(made["logits"][known], y[known])
    assert metrics["train_accuracy"] == pytest.approx(own_top)


# Which labels -------------------------------------------------------------------------------------


def per_class(source, share, seed):
    """Return the rows whose labels a share of each class leaves, drawn among labelled images."""
    known = np.flatnonzero(source.labels >= 0)
    random, rows = np.random.RandomState(seed), []
    for c in np.unique(source.labels[known]):
        members = random.permutation(np.flatnonzero(source.labels[known] == c))
        rows.append(known[members[: max(1, round(share * len(members)))]])
    return np.sort(np.concatenate(rows))


@pytest.mark.parametrize("seed", [0, 4])
def test_a_share_is_of_each_class_and_of_its_seed(seed):
    fields = {"labels__use": "30%", "labels__seed": seed}
    rows = per_class(TRAIN, 0.3, seed)
    restricted = labels.restrict(recipe(**fields), TRAIN)
    np.testing.assert_array_equal(restricted.labels, TRAIN.labels[rows])
    np.testing.assert_array_equal(restricted.images.pixels, TRAIN.images.pixels[rows])
    some = {"distill__teacher": "somewhere", "distill__alpha": 0.5}
    hidden = labels.restrict(recipe("distill", **fields, **some), TRAIN)
    np.testing.assert_array_equal(np.flatnonzero(hidden.labels >= 0), rows)
    assert set(per_class(TRAIN, 0.1, seed)) < set(rows) != set(per_class(TRAIN, 0.3, 1))
