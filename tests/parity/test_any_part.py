"""Heads, optimisers and metrics of any settings are judged by these: recordings made by formula."""

from __future__ import annotations

import agreement
import golden
import made
import numpy as np
import official_resnet
import pytest
import test_head
import test_lars

LAYERS, DIM, CLASSES, ROWS, DECAY = 2, 3, 5, 6, 0.8


def head(folder, tap, train, **flags):
    """Write what a head and a classifier on layer `tap` of it make of numbers, in TensorFlow."""
    tf = pytest.importorskip("tensorflow", reason="the numbers are TensorFlow's")
    read = DIM if tap == LAYERS else official_resnet.WIDTH
    variables = official_resnet.variables(3, LAYERS, DIM, CLASSES, read)
    variables = [variable for variable in variables if variable[0].startswith("head")]
    values = {
        name: tf.Variable(golden.fill(name, shape, 3, law).astype(np.float64))
        for name, shape, law in variables
    }
    shape = [ROWS, official_resnet.WIDTH]
    x = tf.Variable(golden.fill("hiddens", shape, 3, "normal").astype(np.float64))
    network = official_resnet.Network(values, train, DECAY)
    with tf.GradientTape() as tape:
        out = network.head(x, LAYERS)[tap]
        found = {"out": out, "logits": network.logits(out)}
        objective = sum(
            tf.reduce_mean(value * golden.fill(f"probe/{name}", value.shape, 3, "normal"))
            for name, value in found.items()
        )
    learning = {name: value for name, value in values.items() if "moving" not in name}
    input_grad, grad = tape.gradient(objective, [x, learning])
    arrays = found | {"grad_hiddens": input_grad}
    settings = {"hiddens_shape": shape, "is_training": train, "num_classes": CLASSES}
    settings["flags"] = {
        "train_mode": "finetune",
        "num_proj_layers": LAYERS,
        "proj_out_dim": DIM,
        "batch_norm_decay": DECAY,
    } | flags
    noise = dict.fromkeys(("out", "logits", "grad", "grad_hiddens", "moved"), 1e-6)
    spec = {"variables": variables, "sensitivity": noise}
    empty = made.write(folder, "head", settings, {}, **spec)
    arrays |= made.digests(empty, "grad", {n: g for n, g in grad.items() if g is not None})
    arrays |= made.digests(empty, "moved", values | network.moved)
    return made.write(folder, "head", settings, arrays, **spec)


def test_a_head_is_judged_by_its_own_settings(tmp_path):
    test = test_head.test_head_is_the_official_one
    for tap, selector, train in ((2, -1, True), (1, 1, False)):
        recording = head(tmp_path, tap, train, ft_proj_selector=selector)
        assert made.judge(test, recording) == 5
    flags = dict(recording.settings["flags"])
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, recording.with_settings(flags=flags | {"ft_proj_selector": 0}))
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, recording.with_settings(is_training=True))
    recording = head(tmp_path, 0, True)  # by default the classifier is on h
    assert made.judge(test, recording) == 5
    flags = dict(recording.settings["flags"], batch_norm_decay=0.7)
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, recording.with_settings(flags=flags))


RATES = [0.3, 0.9]
VARIABLES = [
    ["net/conv/kernel", (3, 4), "kernel"],
    ["net/batch_normalization/gamma", (4,), "gamma"],
]


def optimised(folder, settings, step):
    """Write what a rule makes of two variables; `step` gives the next value and momentum."""
    settings = {"learning_rates": RATES, "gradient_scale": 2.0, "zero_var": None} | settings
    settings["zero_grad"] = None
    arrays = {}
    for name, shape, law in VARIABLES:
        value, momentum = golden.fill(name, shape, 3, law).astype(np.float64), 0.0
        for k, rate in enumerate(RATES):
            gradient = 2.0 * golden.fill(f"grad/step{k}/{name}", shape, 3, "normal")
            value, momentum = step(name, value, momentum, gradient, rate)
            arrays |= {f"step{k}_var/{name}": value, f"step{k}_momentum/{name}": momentum}
    spec = {"variables": VARIABLES, "sensitivity": {"var": 0.0}}
    return made.write(folder, "lars", settings, arrays, **spec)


@pytest.mark.x64
def test_an_optimiser_is_judged_by_its_own_settings(tmp_path):
    test = test_lars.test_every_step_is_the_official_one
    settings = {"momentum": 0.7, "weight_decay": 0.05, "eeta": 0.02, "use_nesterov": True}
    settings |= {"classic_momentum": True, "exclude_from_layer_adaptation": ["gamma"]}
    settings["exclude_from_weight_decay"] = None

    def lars(name, value, momentum, gradient, rate):
        gradient = gradient + 0.05 * value
        norms = np.linalg.norm(value), np.linalg.norm(gradient)
        trust = 1.0 if "gamma" in name else 0.02 * norms[0] / norms[1]
        moved = 0.7 * momentum + rate * trust * gradient
        return value - 0.7 * moved - rate * trust * gradient, moved

    recording = optimised(tmp_path, settings, lars)
    assert made.judge(test, recording) == 8
    for wrong in (
        {"momentum": 0.9},
        {"eeta": 0.001},
        {"exclude_from_layer_adaptation": ["kernel"]},
    ):
        with pytest.raises(AssertionError, match="above"):
            made.judge(test, recording.with_settings(**wrong))

    def nesterov(name, value, momentum, gradient, rate):
        moved = 0.7 * momentum + gradient
        return value - rate * (gradient + 0.7 * moved), moved

    recording = optimised(tmp_path, {"optimizer": "momentum", "momentum": 0.7}, nesterov)
    assert made.judge(test, recording) == 8
    with pytest.raises(AssertionError, match="optimizer = rmsprop"):
        made.judge(test, recording.with_settings(optimizer="rmsprop"))


@pytest.mark.parametrize(("off", "passes"), [(1e-8, True), (1e-5, False)])
def test_a_metric_of_float32_is_held_to_float32(off, passes, tmp_path):
    """TensorFlow 2 averages accuracies in float32 in any program; beside them is a loss in full."""
    third, loss = np.float64(np.float32(1 / 3)), 2.1234567890123
    arrays = {"train_contrast_acc64": [third], "train_contrast_loss64": [loss]}
    noise = dict.fromkeys(("train_contrast_acc", "train_contrast_loss"), 1e-3)
    settings = {"flags": {}, "steps": 1}
    recording = made.write(tmp_path, "trajectory", settings, arrays, "tf2", sensitivity=noise)

    def compare(accuracy, loss):
        def record(kind, file, error, tolerance, recorded):
            assert error <= tolerance, f"{recorded}: {error} above {tolerance}"

        found = {"train_contrast_acc": accuracy, "train_contrast_loss": loss}
        agreement.compare(recording, lambda blur=0.0: iter([found]), record)

    if passes:
        compare(1 / 3 + off, loss)
    else:
        with pytest.raises(AssertionError, match=r"float32: .* above"):
            compare(1 / 3 + off, loss)
    with pytest.raises(AssertionError, match=r"float64: .* above"):
        compare(1 / 3, loss + off)
