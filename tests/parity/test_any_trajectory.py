"""Training steps of any flags, recorded here from TensorFlow in float64, agree with ours.

The steps are written out from the official rules: which variables learn, what decays, how LARS and
the Nesterov momentum move a weight. One flag told otherwise, and the same file must fail.
"""

from __future__ import annotations

import re

import golden
import made
import numpy as np
import official_resnet
import pytest
import test_trajectory
import test_trajectory_finetune

tf = pytest.importorskip("tensorflow", reason="the steps are recorded from TensorFlow")

# Each makes and compiles three programs of a ResNet-18; test_any_recording.py looks at the recipes.
slow = pytest.mark.skipif(not golden.EVERYTHING, reason="slow: runs under SIMCLR_PARITY=all")
pytestmark = [pytest.mark.x64, slow]

LAYERS, DIM, CLASSES, BATCH, DECAY, MOMENTUM = 2, 3, 5, 4, 0.02, 0.6
LABELS, MASK = [3, 0, 4, 1], [1, 0, 1, 0]
RATE = np.float32(0.1)
FLAGS = {
    "resnet_depth": 18,
    "width_multiplier": 1 / 64,
    "num_proj_layers": LAYERS,
    "proj_out_dim": DIM,
    "train_batch_size": BATCH,
    "train_epochs": 3,
    "warmup_epochs": 0,
    "learning_rate": 6.4,  # 0.1 at this batch
    "weight_decay": DECAY,
    "momentum": MOMENTUM,
    "use_blur": False,
}
SETTINGS = {
    "num_train_examples": 8,
    "steps": 1,
    "label_list": [LABELS],
    "images": "x = fill('images/step<k>', (batch,4,4,6 if pretrain else 3), seed, 'uniform')",
    "eval": "h, head, logits on fill('eval_images', (2,4,4,3), seed, 'uniform') repeated",
}
NOISE = {"losses": 1e-6, "var_max_per_step": [1e-6], "momentum_max": 1e-6}
NOISE |= dict.fromkeys(("eval_h", "eval_head", "eval_logits"), 1e-6)


def coarse(name, shape, side):
    x = np.repeat(np.repeat(golden.fill(name, shape, 3, "uniform"), side // 4, 1), side // 4, 2)
    return x.astype(np.float64)


def weight(name):
    """Tell whether a variable decays: all but those of normalisation."""
    return "batch_normalization" not in name


def after_block(name, block):
    """Tell whether a variable learns: those of later blocks, and no projection head, in TF1."""
    found = re.match(r"base_model/(?:conv2d|batch_normalization)(?:_(\d+))?/", name)
    if not found:
        return name.startswith("head_supervised")
    return (int(found[1] or 0) + 4) // 5 > block  # five layers in a block, after the stem


def record(folder, flags, mask, cifar, losses, learns, move, tap):
    """Take a step in TensorFlow and write it.

    Args:
      losses: from network, hiddens and labels to the loss without decay, and what of it decays.
      learns: which variables do, by name.
      move: from rate, value, gradient and name to the momentum and the change.
    """
    pretrains = "train_mode" not in flags
    read = DIM if tap == LAYERS else official_resnet.WIDTH
    stem = 3 if cifar else 7
    variables = official_resnet.variables(stem, LAYERS, DIM, 0 if pretrains else CLASSES, read)
    values = {
        name: tf.Variable(golden.fill(name, shape, 3, law).astype(np.float64))
        for name, shape, law in variables
    }
    side = flags["image_size"]
    x = coarse("images/step0", (BATCH, 4, 4, 6 if pretrains else 3), side)
    x = np.concatenate([x[..., :3], x[..., 3:]]) if pretrains else x
    moving = [name for name in values if "moving" in name]
    trained = [name for name in values if name not in moving and learns(name)]
    network = official_resnet.Network(values, train=True)
    with tf.GradientTape() as tape:
        hiddens = network.head(network.encoder(x, cifar), LAYERS)
        loss, decayed = losses(network, hiddens)
        decay = DECAY / 2 * sum(tf.reduce_sum(values[name] ** 2) for name in decayed(values))
        total = loss + decay
    gradients = tape.gradient(total, [values[name] for name in trained])
    rate, momenta = float(RATE), {}
    after = {name: value.numpy() for name, value in values.items()}
    after |= {name: moved.numpy() for name, moved in network.moved.items()}
    for name, gradient in zip(trained, gradients, strict=True):
        momenta[name], change = move(rate, after[name], gradient.numpy(), name)
        after[name] = after[name] - change
    ended = official_resnet.Network(after)
    hiddens = ended.head(ended.encoder(coarse("eval_images", (2, 4, 4, 3), side), cifar), LAYERS)
    arrays = {"learning_rates": np.array([RATE]), "losses64": [total]}
    arrays["regularization_losses64"] = [float(decay)]
    arrays |= {"contrastive_losses64": [loss]} if pretrains else {}
    features = {"eval_h": hiddens[0], "eval_head": hiddens[-1 if pretrains else tap]}
    if not pretrains:
        features["eval_logits"] = ended.logits(hiddens[tap])
    arrays |= features | {f"{name}64": value for name, value in features.items()}
    settings = SETTINGS | {"flags": FLAGS | flags, "mask": mask}
    spec = {"variables": variables, "sensitivity": NOISE}
    empty = made.write(folder, "trajectory", settings, {}, **spec)
    arrays |= made.digests(empty, "step0_var64", after)
    arrays |= made.digests(empty, "momentum64", momenta)
    return made.write(folder, "trajectory", settings, arrays, **spec)


def judge(test, recording, **wrong):
    """Judge a recording; with a flag told otherwise, too."""
    with pytest.MonkeyPatch.context() as patch:
        flags = dict(recording.settings["flags"]) | wrong
        recording = recording.with_settings(flags=flags) if wrong else recording
        return made.judge(test, recording, monkeypatch=patch)


def test_pretraining_of_other_flags(tmp_path):
    """LARS on embeddings that are not normalised, with the stem of small images."""

    def losses(network, hiddens):
        z = hiddens[-1]
        logits = tf.matmul(z, z, transpose_b=True) / 0.6 - 1e9 * np.eye(2 * BATCH)
        partners = np.concatenate([np.arange(BATCH) + BATCH, np.arange(BATCH)])
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(partners, logits)
        return tf.reduce_sum(each) / BATCH, lambda values: ()

    def move(rate, value, gradient, name):
        trust = 1.0
        if weight(name):
            gradient = gradient + DECAY * value
            trust = 0.001 * np.linalg.norm(value) / np.linalg.norm(gradient)
        return rate * trust * gradient, rate * trust * gradient

    flags = {"hidden_norm": False, "temperature": 0.6, "image_size": 12}
    recording = record(tmp_path, flags, "ones", True, losses, lambda name: True, move, LAYERS)
    test = test_trajectory.test_steps_are_the_official_ones
    assert judge(test, recording) >= 8
    with pytest.raises(AssertionError, match="above"):
        judge(test, recording, hidden_norm=True)


def test_finetuning_of_other_flags(tmp_path):
    """Nesterov momentum, the large stem, one block frozen, the classifier on the last layer."""

    def losses(network, hiddens):
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, network.logits(hiddens[-1]))
        return tf.reduce_sum(each * MASK) / sum(MASK), lambda values: filter(weight, values)

    def move(rate, value, gradient, name):
        return gradient, rate * (gradient + float(np.float32(MOMENTUM)) * gradient)

    flags = {"train_mode": "finetune", "optimizer": "momentum", "image_size": 40}
    flags |= {"ft_proj_selector": -1, "fine_tune_after_block": 1}
    learns = lambda name: after_block(name, 1)  # noqa: E731
    recording = record(tmp_path, flags, MASK, False, losses, learns, move, LAYERS)
    test = test_trajectory_finetune.test_steps_are_the_official_ones
    assert judge(test, recording) >= 8
    with pytest.raises(AssertionError):
        judge(test, recording, fine_tune_after_block=2)
