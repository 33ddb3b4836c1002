"""`simclr train --data`: the images of a recipe, and the recipe of images."""

from __future__ import annotations

import json

import doors
import numpy as np
import pytest
from doors import TINY
from PIL import Image

from simclr_jax import given_data, recipes
from simclr_jax.errors import UserError

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "data, fields",
    [
        ("digits", {"source": "digits", "name": "placed"}),
        ("digits:plain", {"source": "digits", "name": "plain"}),
        ("tfds:cifar10", {"source": "tfds", "name": "cifar10"}),
        ("x.npz", {"source": "memory", "path": "x.npz"}),
        ("here", {"source": "folder", "path": "here", "layout": "auto"}),
        ("classes:there", {"source": "folder", "path": "there", "layout": "classes"}),
    ],
)
def test_what_data_means(tmp_path, monkeypatch, data, fields):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert given_data.fields(data) == fields
    config = recipes.base()
    config.data.source, config.data.name, config.data.path = "tfds", "old", "old"
    given_data.put(config, data)
    left = {"name": "", "path": "", "layout": "auto"} | fields
    assert {name: config.data[name] for name in left} == left


@pytest.mark.parametrize("data", ["nowhere", "x.npy", "gs://bucket/x", "here:there"])
def test_what_data_does_not_mean(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no directory: give DIRECTORY"):
        given_data.fields(data)


def test_a_recipe_is_trained_on_other_images(tmp_path, images):
    """It tells how many of them there are, where they are too few for a batch."""
    large = "--config.train.batch_size=512"
    for name in (TINY, ("--config=digits", "--config.data.split=train")):
        ended = doors.run(tmp_path, *name, f"--data={images}", large)
        assert ended.code == 1 and "512" in ended.err and "54 images" in ended.err, ended


MISTAKES = {
    "no recipe for it": (["--data=tfds:cifar10"], ["tfds:cifar10", "--config"]),
    "no such folder": (["--data=nowhere"], ["--data=nowhere", "DIRECTORY"]),
    "home of nobody": (["--data=~zz/x"], ["--data=~zz/x", "no home of ~zz"]),
    "two paths": (
        ["--data=digits", "--config.data.path=x"],
        ["--data and --config.data.path", "leave one out"],
    ),
    "two sources": (
        [*TINY, "--data", "digits", "--config.data.source=memory"],
        ["--config.data.source"],
    ),
    "several runs": (
        ["--config=v2_pipeline_digits", "--data=digits"],
        ["--data=digits", "the recipe has several"],
    ),
    "name of a recipe": (["--config=digts"], ['"digts"', '"digits"', "simclr recipes"]),
    "argument of a recipe": (["--config=imagenet:widht=2"], ['"widht"', '"width"']),
}


@pytest.mark.parametrize("arguments, words", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(tmp_path, arguments, words):
    ended = doors.run(tmp_path, *arguments, f"--workdir={tmp_path / 'run'}")
    assert ended.code == 1 and ended.err.count("\n") == 1, ended
    assert all(word in ended.err for word in words), ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_alone_is_enough(tmp_path):
    pytest.importorskip("cv2", reason="placement split needs OpenCV")
    photographs, random = tmp_path / "photographs", np.random.default_rng(0)
    photographs.mkdir()
    for i in range(40):
        pixels = random.integers(0, 256, (12, 14 + i % 3, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photographs / f"{i}.png")
    fields = {"model.depth": 10, "model.width": 0.0625, "train.steps": 2}
    fields |= {"optim.warmup_epochs": 0.2, "train.batch_size": 16}
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    workdir = tmp_path / "run"
    ended = doors.run(tmp_path, f"--data={photographs}", *settings, f"--workdir={workdir}")
    assert ended.code == 0, ended
    assert "chosen    data.image_size=32" in ended.out
    data = json.loads((workdir / "config.json").read_text())["data"]
    assert (data["source"], data["path"]) == ("folder", str(photographs))
