"""Fine-tuning on images that may have several labels: which labels, which loss, which scores."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from stages import taught
from train import tiny

from simclr_jax import documents, parallel
from simclr_jax.data import order
from simclr_jax.errors import UserError
from simclr_jax.losses.cross_entropy import binary_cross_entropy
from simclr_jax.stages import build, finetune, heritage, teacher
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import TrainState
from simclr_jax.train.step import make_step

RATE = 0.7
FIELDS = {
    "finetune__train_from_block": 5,
    "finetune__encoder_bn": "moving",
    "optim__name": "sgd",
    "optim__base_lr": RATE,
    "optim__momentum": 0.0,
    "optim__weight_decay": 0.0,
    "train__steps": 1,
}
COUNT = 3 * tiny.BATCH


def several():
    """Return images with up to four labels, a tenth of which do not count."""
    random = np.random.default_rng(0)
    labels = (random.random((COUNT, 4)) < [0.7, 0.4, 0.2, 0.5]).astype(np.int8)
    labels[random.random(labels.shape) < 0.1] = -1
    return dataclasses.replace(tiny.sorted_images(), labels=labels)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("placement", ["device", "canvas"])
def test_a_step_learns_the_labels_of_the_images_of_its_batch(devices, placement):
    """From zeros every answer is 1/2, so biases move by the mean of label - 1/2."""
    source = several()
    c = taught.recipe(**FIELDS, augment__placement=placement)
    stage, mesh = taught.make_stage(c, devices, source)
    state = parallel.replicate(mesh, jax.device_get(stage.init()))
    (_, batch), *_ = stage.batches(0, 1)
    state, metrics = make_step(stage, mesh)(state, batch, stage.frozen)
    rows = order.examples(c.seed, np.arange(tiny.BATCH), COUNT)
    known = source.labels[rows] >= 0
    moved = RATE * np.where(known, source.labels[rows] - 0.5, 0).sum(0) / known.any(1).sum()
    bias = np.asarray(state.params["classifier"]["dense"]["bias"])
    np.testing.assert_allclose(bias, moved, rtol=1e-4, atol=1e-6)
    want = known.sum() * math.log(2) / known.any(1).sum()
    np.testing.assert_allclose(np.asarray(metrics["loss"]), want, rtol=1e-5)


def test_held_out_images_are_scored_by_mean_average_precision():
    source = several()
    c = taught.recipe(**FIELDS, finetune__zero_classifier=False)
    stage, _ = taught.make_stage(c, 1, source)
    state = stage.init()
    found, compared = stage.evaluate(state), stage.compare(state)
    assert list(compared) == ["the commonest class", "classifier"]
    assert list(compared["classifier"]) == ["mAP", "11-point mAP"]
    assert found["mAP"] == pytest.approx(compared["classifier"]["mAP"]["accuracy"])
    truth = source.labels[:21]  # held out by `taught.make_stage`
    guess = (source.labels == 1).sum(0) / (source.labels >= 0).sum(0)
    want = np.mean(
        [
            average_precision_score(truth[truth[:, c] >= 0, c] == 1, np.full(n, guess[c]))
            for c, n in enumerate((truth >= 0).sum(0))
        ]
    )
    assert compared["the commonest class"]["mAP"]["accuracy"] == pytest.approx(want)
    zero = taught.make_stage(taught.recipe(**FIELDS), 1, source)[0]
    loss = zero.evaluate(zero.init())["held_out_loss"]
    assert loss == pytest.approx(math.log(2) * (truth >= 0).sum() / len(truth))


def test_who_knows_the_frequency_of_each_class_and_nothing_else_has_this_loss():
    """Its logits are the log odds of each class, among the images of which it is known."""
    source = several()
    source.labels[:7], source.labels[: COUNT // 2, 3] = -1, -1  # one class is known of every other
    share = (source.labels == 1).sum(0) / (source.labels >= 0).sum(0)
    logits = np.broadcast_to(np.log(share / (1 - share)), source.labels.shape)
    want, _ = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(source.labels))
    assert finetune.chance(taught.recipe(), source) == pytest.approx(float(want), rel=1e-5)
    always = dataclasses.replace(source, labels=np.ones_like(source.labels))
    assert finetune.chance(taught.recipe(), always) == 0


def test_a_network_of_several_labels_teaches_no_student(tmp_path):
    """A softmax over its answers would be of something else."""
    config = taught.recipe()
    variables = build.first_variables(config, 3)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, TrainState(np.int32(1), variables["params"], variables["batch_stats"], {}))
    checkpoints.close()
    documents.write(tmp_path / "config.json", config.to_dict() | {teacher.SEVERAL: True})
    student = taught.recipe("distill", distill__teacher=str(tmp_path))
    images = tiny.sorted_images()
    with pytest.raises(UserError, match="asks of each class by itself"):
        teacher.check(student, images, images)


def test_all_of_several_labels_are_counted_once():
    """A later run on the same images knows as many labels as there are labelled images."""
    labels = several().labels.copy()
    labels[:5] = -1
    source = dataclasses.replace(several(), labels=labels)
    use = heritage.Labels("all", 0, COUNT - 5)
    assert len(heritage._chosen(use, None, source)) == COUNT - 5
    assert heritage._chosen(heritage.Labels("10%", 0, 3), None, source) is None
