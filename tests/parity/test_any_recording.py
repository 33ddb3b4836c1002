"""The suite itself: any recording of a known kind is judged by its own settings, or refused.

Recordings are made here by NumPy in float64 from the published formulas, with settings that those
in the folders do not have. Where a setting is wrong by a little, the same file must fail.
"""

from __future__ import annotations

import importlib
import types
from pathlib import Path

import golden
import made
import numpy as np
import parity_table
import pytest
import recorded
import sections
import steps
import test_augment
import test_byol_steps
import test_kd_loss
import test_ntxent
import test_schedule
import test_student
import test_weight_decay
from interop import official_files

# Every setting of a comparison of losses; `test_ntxent` reads them all.
NT_XENT = {
    "batch_per_replica": 3,
    "dim": 5,
    "temperature": 0.3,
    "hidden_norm": False,
    "weights": 1.0,
    "replicas": 1,
    "scale": 0.8,
    "zero_row": None,
}


def nt_xent(z: np.ndarray, temperature: float, normalize: bool) -> float:
    """Return the official loss of `[2n, d]`: the sum of the means over first and second views."""
    if normalize:
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, logits = len(z) // 2, z @ z.T / temperature
    others = np.log(np.sum(np.exp(logits) * (1 - np.eye(2 * n)), 1))
    partners = np.concatenate([np.arange(n) + n, np.arange(n)])
    return float(np.sum(others - logits[np.arange(2 * n), partners]) / n)


def contrastive(folder, settings):
    """Write a recording of the loss of settings, correct for these whatever they are."""
    n, dim, temperature = (settings[k] for k in ("batch_per_replica", "dim", "temperature"))
    x = golden.fill("hidden", (2 * n, dim), 3, "normal").astype(np.float64) * settings["scale"]
    x = x.astype(np.float32).astype(np.float64)
    loss = lambda x: nt_xent(x, temperature, settings["hidden_norm"])  # noqa: E731
    z = x / np.linalg.norm(x, axis=1, keepdims=True) if settings["hidden_norm"] else x
    arrays = {
        "loss": [loss(x)],
        "grad": made.slope(loss, x)[None],
        "logits": (z[:n] @ z[n:].T / temperature)[None],
        "labels": np.eye(n, 2 * n)[None],
    }
    return made.write(folder, "ntxent", settings, arrays)


def altered(recording, **settings):
    """Return the same numbers under other settings, which they contradict."""
    return recording.with_settings(**settings)


LOSSES = test_ntxent.test_loss_gradient_and_metrics_are_the_official_ones


@pytest.mark.parametrize("change", [{}, {"hidden_norm": True}, {"temperature": 1.5}, {"dim": 7}])
def test_a_loss_is_judged_by_its_own_settings(change, tmp_path):
    assert made.judge(LOSSES, contrastive(tmp_path, NT_XENT | change)) >= 4


@pytest.mark.parametrize("change", [{"hidden_norm": True}, {"temperature": 0.31}, {"scale": 0.9}])
def test_a_loss_of_other_settings_fails(change, tmp_path):
    with pytest.raises(AssertionError, match="above"):
        made.judge(LOSSES, altered(contrastive(tmp_path, NT_XENT), **change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"margin": 0.4}, "margin = 0.4"),
        ({"flags": {"label_smoothing": 0.1}}, "flags.label_smoothing = 0.1"),
        ({"pairs": [{"near": 1}, {"near": 2, "far": 3}]}, r"pairs\[\].far = 3"),
    ],
)
def test_an_unknown_setting_fails_by_file_key_and_value(change, named, tmp_path):
    recording = contrastive(tmp_path, NT_XENT)
    recording = made.write(
        tmp_path, "ntxent", dict(NT_XENT) | {"note": "read by people"} | change, recording.arrays
    )
    with pytest.raises(AssertionError, match=f"ntxent-tf1-made.npz: .*{named}"):
        made.judge(LOSSES, recording)


def test_whoever_compares_must_read_every_setting(tmp_path):
    recording = contrastive(tmp_path, NT_XENT)
    recording.settings["dim"]  # before the test: this does not count

    def finish(reads):
        item = types.SimpleNamespace(funcargs={"recording": recording, "record_parity": None})
        call = parity_table.pytest_pyfunc_call(item)
        next(call)
        for name in reads:
            recording.settings[name]
        with pytest.raises(StopIteration):
            call.send(None)

    finish(NT_XENT)
    with pytest.raises(AssertionError, match="dim = 5"):
        finish(NT_XENT.keys() - {"dim"})


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("train_mode", "probe"),
        ("optimizer", "sgd"),
        ("proj_head_mode", "mlp"),
        ("resnet_depth", 26),
        ("hidden_norm", "yes"),
        ("global_bn", 1),
    ],
)
def test_an_unknown_value_of_a_flag_is_an_error(flag, value, tmp_path):
    recording = made.write(tmp_path, "trajectory", {"flags": {flag: value}}, {})
    with pytest.raises(ValueError, match=f"flags.{flag} is {value!r}"):
        recording.flags[flag]


def test_a_missing_flag_has_the_official_default(tmp_path):
    flags = [
        made.write(tmp_path, "trajectory", {"flags": {}}, {}, flavour).flags
        for flavour in ("tf1", "tf2")
    ]
    assert [f["weight_decay"] for f in flags] == [1e-4, 1e-6]
    assert {f["temperature"] for f in flags} == {0.1}
    with pytest.raises(KeyError):
        flags[0]["label_smoothing"]


def test_every_recording_has_a_test_or_is_listed_as_not_yet():
    pytest.importorskip("tensorflow")  # without it one file of tests is not read
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(path.stem)
    assert not golden.untested()


def test_an_unknown_kind_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "NOT_YET", {"later"})
    strange, later = (made.write(tmp_path, kind, {"note": ""}, {}) for kind in ("swav", "later"))
    monkeypatch.setattr(golden, "recordings", lambda: (strange, later))
    assert golden.untested() == ["swav-tf1-made.npz"]
    for kind in ("swav", "later"):
        with pytest.raises(ValueError, match=f"{kind} is tested: move it"):
            golden.cases(kind)


def test_kinds_are_either_tested_or_not():
    assert not recorded.NOT_YET & recorded.EXPLAINED.keys()


@pytest.mark.parametrize("kept", [(), ("train_steps",), ("warmup_epochs", "learning_rate")])
def test_schedules_of_any_flags(kept, tmp_path):
    """Without a flag its default holds; a warm-up may be longer than the run."""
    all_flags = {"train_steps": 3, "warmup_epochs": 2.5, "learning_rate": 0.7}
    flags = {"train_batch_size": 48, "learning_rate_scaling": "sqrt"}
    flags |= {name: all_flags[name] for name in kept}
    used = {"train_steps": 0, "warmup_epochs": 10, "learning_rate": 0.3} | flags
    warmup = round(used["warmup_epochs"] * 100 // 48)
    total = used["train_steps"] or 100 * 100 // 48 + 1
    t, peak = np.arange(total + 2), used["learning_rate"] * 48**0.5
    with np.errstate(all="ignore"):
        along = np.minimum(t - warmup, total - warmup) / (total - warmup)
        rates = np.where(t < warmup, t / warmup * peak, peak * 0.5 * (1 + np.cos(np.pi * along)))
    settings = {"num_examples": 100, "flags": flags}
    settings |= {"warmup_steps": warmup, "total_steps": total}
    arrays = {"steps": t, "learning_rate": rates}
    test = test_schedule.test_rates_are_the_official_ones
    sensitivity = {"sensitivity": {"learning_rate": 0.0}}
    recording = made.write(tmp_path, "schedule", settings, arrays, **sensitivity)
    assert made.judge(test, recording) == 1
    wrong = dict(settings, flags=flags | {"learning_rate_scaling": "linear"})
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, made.write(tmp_path, "schedule", wrong, arrays, **sensitivity))


@pytest.mark.x64
def test_byol_schedules_of_any_length(tmp_path):
    settings = {"base_ema": 0.9, "total_steps": 40, "batch_size": 96, "base_rate": 0.35}
    settings |= {"warmup_steps": 7}
    t, peak = np.arange(41), 0.35 * 96 / 256
    rate = np.where(t < 7, t / 7, (1 + np.cos(np.pi * np.clip(t - 7, 0, 33) / 33)) / 2) * peak
    arrays = {"steps": t, "rate": rate, "tau": 1 - 0.1 * (1 + np.cos(np.pi * t / 40)) / 2}
    recording = made.write(tmp_path, "byol_schedule", settings, arrays, "jax")
    assert made.judge(test_byol_steps.test_schedules, recording) == 2
    with pytest.raises(AssertionError, match=r"rate.* above"):
        made.judge(test_byol_steps.test_schedules, altered(recording, warmup_steps=8))


def distilled(folder, **changes):
    settings = {"batch": 5, "classes": 3, "temperature": 1.7, "scale": 2.5} | changes
    shape = settings["batch"], settings["classes"]
    student, teacher = (
        settings["scale"] * golden.fill(f"{of}_logits", shape, 3, "normal").astype(np.float64)
        for of in ("student", "teacher")
    )
    t = settings["temperature"]

    def loss(student):
        log_p, log_q = (
            x / t - np.log(np.sum(np.exp(x / t), 1, keepdims=True)) for x in (teacher, student)
        )
        return float(-np.mean(np.sum(np.exp(log_p) * log_q, 1)))

    arrays = {"loss": t**2 * loss(student), "paper_eq2_mean": loss(student)}
    arrays["grad_student"] = made.slope(lambda x: t**2 * loss(x), student)
    sensitivity = {"loss": 0.0, "grad": 0.0}
    return made.write(folder, "distill", settings, arrays, sensitivity=sensitivity)


def test_a_distillation_is_judged_by_its_own_settings(tmp_path):
    test = test_kd_loss.test_loss_and_gradient_are_the_official_ones
    assert made.judge(test, distilled(tmp_path)) == 3
    assert made.judge(test, distilled(tmp_path, classes=8, temperature=0.6)) == 3
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, altered(distilled(tmp_path), temperature=1.8))


STUDENT = {
    "batch": 6,
    "temperature": 2.0,
    "student": "ResNet-34, width_multiplier 0.125, imagenet stem, global_bn False, "
    "+ linear_layer head (7 classes) on h",
    "bn_is_training": True,
    "optimizer": {
        "name": "lars",
        "momentum": 0.8,
        "weight_decay": 0.01,
        "exclude": ["bias", "batch_normalization", "head_supervised"],
    },
    "learning_rate": "cosine_decay(0.2, step, 30), no warmup",
    "images": "fill('images/step<k>', (6,48,48,3), seed, 'uniform')",
    "teacher_logits": "2 * fill('teacher_logits/step<k>', (6,7), seed, 'normal')",
    "steps": 1,
}


@pytest.mark.x64
def test_a_student_in_words_becomes_its_recipe(tmp_path):
    recording = test_student.described(made.write(tmp_path, "distill", STUDENT, {}))
    c = test_student.recipe(recording)
    assert (c.model.depth, c.model.width, c.model.stem, c.bn.groups) == (34, 0.125, "imagenet", 0)
    assert (c.optim.momentum, c.optim.weight_decay, c.optim.base_lr) == (0.8, 0.01, 0.2)
    assert (c.optim.adapt_classifier, c.finetune.encoder_bn, c.train.steps) == (False, "batch", 30)
    views = test_student.batch(recording, 1)
    assert views["views/views"].shape == (1, 6, 1, 48, 48, 3) and views["teacher"].shape[-1] == 7
    for key, text in (
        ("student", "ResNet-34, width_multiplier 0.125, imagenet stem, dropout 0.5"),
        ("learning_rate", "constant 0.1"),
    ):
        wrong = made.write(tmp_path, "distill", STUDENT | {key: text}, {})
        with pytest.raises(AssertionError, match=f"not understood: {text}"):
            test_student.described(wrong)


NETWORK = {"resnet_depth": 18, "width_multiplier": 1 / 64, "proj_out_dim": 3, "num_proj_layers": 2}
PRETRAIN = NETWORK | {"use_blur": False, "train_batch_size": 4, "image_size": 64, "se_ratio": 0.5}


def recipe(folder, flavour="tf2", stage="pretrain", settings=(), **flags):
    flags = PRETRAIN | {"train_mode": stage} | flags
    settings = {"num_train_examples": 40, "flags": flags} | dict(settings)
    return steps.recipe(made.write(folder, "trajectory", settings, {}, flavour), stage)


def test_every_flag_of_a_trajectory_is_in_its_recipe(tmp_path):
    c = recipe(tmp_path, hidden_norm=False, temperature=0.7, ft_proj_selector=2, momentum=0.6)
    assert (c.loss.normalize, c.loss.temperature, c.optim.momentum) == (False, 0.7, 0.6)
    assert (c.eval.probe, c.eval.probe_tap, c.data.image_size) == (True, 2, 64)
    assert (c.model.stem, c.model.se_ratio, c.head.dim) == ("imagenet", 0.5, 3)
    assert recipe(tmp_path, settings={"cifar_stem": True}).model.stem == "cifar"
    c = recipe(tmp_path, lineareval_while_pretraining=False, proj_head_mode="linear")
    assert (c.eval.probe, c.head.kind, c.head.layers) == (False, "linear", 1)
    c = recipe(tmp_path, "tf1", "finetune", ft_proj_selector=-1, fine_tune_after_block=4)
    assert (c.finetune.tap, c.finetune.train_from_block, c.finetune.encoder_bn) == (2, 5, "moving")
    c = recipe(tmp_path, "tf1", optimizer="adam", weight_decay=0.2, global_bn=False)
    assert (c.optim.name, c.optim.weight_decay, c.bn.groups) == ("adam", 0.2, 0)
    for wrong in ({"use_blur": True}, {"ft_proj_selector": 3}):
        with pytest.raises(AssertionError, match=next(iter(wrong))):
            recipe(tmp_path, **wrong)


def test_architectures_are_those_of_the_settings(tmp_path):
    """What sections.py builds; the stem is said, and is not what the size suggests."""
    settings = {"cifar_stem": False, "batch_norm": {"momentum": 0.5, "epsilon": 1e-3}}
    settings["flags"] = NETWORK | {"image_size": 32, "batch_norm_decay": 0.5}
    recording = made.write(tmp_path, "model", settings, {}, "tf2")
    encoder = sections.encoder(recording)
    assert (encoder.depth, encoder.width, encoder.stem) == (18, 1 / 64, "imagenet")
    norm = encoder.norm(name="any")
    assert (norm.epsilon, norm.momentum, norm.unbiased_moving) == (1e-3, 0.5, False)
    with pytest.raises(AssertionError):
        sections.encoder(altered(recording, batch_norm={"momentum": 0.9}))


def test_weight_decay_of_a_classifier_on_any_layer(tmp_path):
    """It is of all kernels and biases: TensorFlow 1 counts them frozen or not."""
    flags = NETWORK | {"train_mode": "finetune", "ft_proj_selector": -1, "optimizer": "adam"}
    flags |= {"weight_decay": 0.03, "image_size": 96, "proj_head_mode": "linear"}
    settings = {"flags": flags, "num_classes": 6}
    shapes = official_files.shapes() | {"base_model/conv2d/kernel": (7, 7, 3, 1)}
    shapes |= {"head_contrastive/l_0/dense/kernel": (8, 3)}
    for leaf in ("gamma", "moving_mean", "moving_variance"):
        shapes[f"head_contrastive/l_0/batch_normalization/{leaf}"] = (3,)
    top = "head_supervised/linear_layer/dense"
    shapes |= {f"{top}/kernel": (3, 6), f"{top}/bias": (6,)}
    variables = [[name, shape, name.split("/")[-1]] for name, shape in shapes.items()]
    kept = [n for n in shapes if "batch_normalization" not in n]
    squares = [
        np.sum(np.square(golden.fill(n, shapes[n], 3, n.split("/")[-1]), dtype=np.float64))
        for n in kept
    ]
    arrays = dict.fromkeys(("value", "value_float64"), 0.5 * 0.03 * np.sum(squares))
    recording = made.write(tmp_path, "weight_decay", settings, arrays, variables=variables)
    test = test_weight_decay.test_decay_term_is_the_official_one
    assert made.judge(test, recording) == 2
    for wrong in ({"optimizer": "lars"}, {"weight_decay": 0.031}):
        with pytest.raises(AssertionError, match="above"):
            made.judge(test, altered(recording, flags=flags | wrong))


def test_pixels_of_any_call(tmp_path):
    """TensorFlow 2: two images of its own sizes, an added brightness; then what nobody knows."""
    images = {
        "a": {"fill": "a", "shape": [7, 9, 3], "law": "uniform", "scale": 2.0, "offset": -0.5},
        "b": {"fill": "b", "shape": [4, 4, 3], "law": "uniform"},
    }
    calls = [
        {"image": "a", "params": {"value": 0.3}, "out": "x"},
        {"image": "b", "params": {"value": -0.2}, "out": "y"},
    ]
    a = golden.fill("a", (7, 9, 3), 3, "uniform") * np.float32(2) - np.float32(0.5)
    b = np.round(255 * golden.fill("b", (4, 4, 3), 3, "uniform")) / np.float32(255)
    arrays = {"x": a + 0.3, "y": b - 0.2}

    def judged(calls, source="tf2/data_util.py random_brightness impl=simclrv1"):
        settings = {"images": images, "calls": calls}
        recording = made.write(tmp_path, "augment_op", settings, arrays, "tf2")
        recording.spec["source"] = source
        test = test_augment.test_equal_draws_give_the_official_pixels
        return made.judge(test, recording, placement="device")

    assert judged(calls) == 1
    with pytest.raises(AssertionError, match="above"):
        judged(calls, "tf2/data_util.py random_brightness impl=simclrv2")
    with pytest.raises(AssertionError, match=r"calls\[\].params.gamma = 2"):
        judged([*calls[:1], calls[1] | {"params": {"value": -0.2, "gamma": 2}}])
    with pytest.raises(KeyError, match="random_gamma"):
        judged(calls, "tf2/data_util.py random_gamma")
