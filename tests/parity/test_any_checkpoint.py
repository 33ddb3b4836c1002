"""A checkpoint of any model is judged by its own settings: stem, sizes, head, tap, classes.

The model and its outputs are TensorFlow's, written as the official program writes them.
"""

from __future__ import annotations

import golden
import made
import numpy as np
import official_resnet
import pytest
import test_checkpoint
from interop import official_files

pytest.importorskip("tensorflow", reason="official checkpoints are written with TensorFlow")

LAYERS, DIM, CLASSES = 2, 3, 5
FLAGS = {
    "resnet_depth": 18,
    "width_multiplier": 1 / 64,
    "num_proj_layers": LAYERS,
    "proj_out_dim": DIM,
    "train_mode": "finetune",
}


def write(folder, tap, cifar, flags):
    """Write a checkpoint, and what it makes of images, as a recording."""
    stem, read = (3 if cifar else 7), (DIM if tap == LAYERS else official_resnet.WIDTH)
    variables = official_resnet.variables(stem, LAYERS, DIM, CLASSES, read)
    values = {name: golden.fill(name, shape, 3, law) for name, shape, law in variables}
    settings = {"flags": FLAGS | flags, "num_classes": CLASSES, "train_steps": 7}
    settings |= {"folder": "checkpoint-tf1-made", "ckpt_digest_rows": [n for n, *_ in variables]}
    settings["eval_images"] = "x = fill('eval_images', (3,4,4,3), seed, 'uniform'), repeated"
    side = flags.get("image_size", 224)
    x = golden.fill("eval_images", (3, 4, 4, 3), 3, "uniform")
    x = np.repeat(np.repeat(x, side // 4, 1), side // 4, 2)
    network = official_resnet.Network(values)
    h = network.encoder(x, cifar)
    hiddens = network.head(h, LAYERS)
    arrays = {f"eval_projection_{i}": hidden for i, hidden in enumerate(hiddens)}
    arrays |= {"eval_h": h, "eval_logits": network.logits(hiddens[tap])}
    spec = {"variables": variables}
    recording = made.write(folder, "checkpoint", settings, {}, **spec)
    arrays |= made.digests(recording, "ckpt", values)
    (folder / settings["folder"]).mkdir(exist_ok=True)
    official_files.write_tf1(folder / settings["folder"] / "model.ckpt-7", values)
    (folder / settings["folder"] / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"')
    return made.write(folder, "checkpoint", settings, arrays, **spec)


def judge(recording, tmp_path):
    ((source, prefix),) = test_checkpoint.to_convert(recording)
    test = test_checkpoint.test_converted_model_is_the_recorded_one
    return made.judge(test, recording, source=source, prefix=prefix, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("tap", "flags"),
    [
        (2, {"image_size": 40, "ft_proj_selector": -1}),
        (0, {}),  # without a flag, 224 pixels and the classifier on h
    ],
)
def test_a_checkpoint_is_judged_by_its_own_settings(tap, flags, tmp_path):
    assert judge(write(tmp_path, tap, False, flags), tmp_path) == 6


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_fails(tmp_path, monkeypatch):
    flags = {"image_size": 20, "ft_proj_selector": 1, "learning_rate": 0.7}
    recording = write(tmp_path, 1, True, flags)
    assert judge(recording, tmp_path) == 6

    def fails(message, **change):
        wrong = recording.with_settings(flags=FLAGS | flags | change)
        with pytest.raises(AssertionError, match=message):
            judge(wrong, tmp_path)

    # What is converted does not depend on these.
    run = test_checkpoint.saved.read(str(tmp_path / "run"))
    monkeypatch.setattr(test_checkpoint, "convert", lambda *_: run)
    fails("above", image_size=28)
    fails("imagenet", image_size=40)
    fails("dim", proj_out_dim=4)
    fails("'sk'", sk_ratio=0.5, image_size=40)
    monkeypatch.undo()
    (tmp_path / "run").rename(tmp_path / "earlier")
    fails("above", ft_proj_selector=0)
