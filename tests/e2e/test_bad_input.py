"""Whatever a user gets wrong ends in one line that says what to change, and touches nothing."""

import doors
import numpy as np
import pytest
from doors import TINY

pytestmark = pytest.mark.e2e


def one_line(ended: doors.Ended) -> str:
    assert ended.code == 1, ended
    assert ended.err.startswith("error: ") and ended.err.endswith("\n"), ended.err
    assert ended.err.count("\n") == 1 and "Traceback" not in ended.err, ended.err
    return ended.err


def mentions(ended: doors.Ended, *words: str) -> None:
    line = one_line(ended)
    missing = [word for word in words if word not in line]
    assert not missing, (missing, line)


FLAGS = {
    "misspelt field": (["--config.train.batchsize=8"], ["batchsize", '"batch_size"']),
    "misspelt group": (["--config.trian.batch_size=8"], ["trian", '"train"']),
    "field like no other": (["--config.zzz=8"], ["zzz", "recipes.py"]),
    "word for a whole number": (
        ["--config.train.batch_size=big"],
        ["--config.train.batch_size=big", "whole number"],
    ),
    "fraction for a whole number": (["--config.train.steps=2.5"], ["steps=2.5", "whole number"]),
    "word for a number": (["--config.optim.base_lr=low"], ["base_lr=low", "a number"]),
    "word for a truth": (["--config.eval.knn=maybe"], ["eval.knn=maybe", "True or False"]),
    "value for a group": (["--config.train=8"], ["--config.train=8"]),
    "misspelt flag": (["--workdri=x"], ["workdri", "workdir", "--help"]),
    "no flag at all": (["train"], ['"train"', "--name=value"]),
    "argument of a recipe without any": (["--config=configs/memory.py:big"], ["get_config()"]),
}


@pytest.mark.parametrize("arguments, words", FLAGS.values(), ids=FLAGS)
def test_flags_that_cannot_be_parsed(tmp_path, arguments, words):
    mentions(doors.run(tmp_path, "--config=configs/digits.py", *arguments), *words)


RECIPES = {
    "no get_config": ("x = 1", ["no get_config()", "configs/digits.py"]),
    "no Python": ("def get_config(:", ["SyntaxError"]),
    "of before recipes.py": (
        "from simclr_jax import config\ndef get_config(): return config.base()",
        ["simclr_jax.recipes"],
    ),
    "failing": ("def get_config():\n  return 1 // 0", ["ZeroDivisionError", "--debug"]),
    "returning nothing": ("def get_config(): pass", ["must return a ConfigDict"]),
    "misspelt field": (
        "from simclr_jax import recipes\n"
        "def get_config():\n  c = recipes.base()\n  c.train.bach_size = 8\n  return c",
        ["bach_size", '"batch_size"'],
    ),
    "wrong type": (
        "from simclr_jax import recipes\n"
        "def get_config():\n  c = recipes.base()\n  c.train.batch_size = 'big'\n  return c",
        ["batch_size", "int"],
    ),
    "not from base": (
        "from ml_collections import ConfigDict\n"
        "def get_config():\n  return ConfigDict({'seed': 0, 'stage': 'pretrain'})",
        ["lacks", "recipes.base()"],
    ),
}


@pytest.mark.parametrize("code, words", RECIPES.values(), ids=RECIPES)
def test_recipes_that_are_none(tmp_path, code, words):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(code)
    mentions(doors.run(tmp_path, f"--config={recipe}"), *words)


@pytest.mark.parametrize("given", [["--config=configs/digit.py"], ["--config", "configs"], []])
def test_recipes_that_are_not_there(tmp_path, given):
    mentions(doors.run(tmp_path, *given), given[-1].split("=")[-1] if given else "no recipe")


VALUES = {
    "batch the devices do not divide": (["--config.train.batch_size=18"], ["18", "4", "=16"]),
    "batch of one": (["--config.train.batch_size=0"], ["batch_size is 0", "1 or more"]),
    "unknown source": (["--config.data.source=digit"], ['"digit"', '"digits"', "memory"]),
    "unknown split": (["--config.data.split=trian"], ["trian", '"train"']),
    "unknown evaluation split": (
        [
            "--config.data.source=digits",
            "--config.data.path=",
            "--config.data.name=placed",
            "--config.data.eval_split=tset",
        ],
        ["tset", '"test"'],
    ),
    "training images held out": (["--config.data.eval_split=train"], ["eval_split", '"train"']),
    "batch larger than the data": (["--config.train.batch_size=512"], ["512", "54 images", "=48"]),
    "more labels than there are": (["--config.eval.few_labels=50"], ["few_labels is 50", "="]),
    "jitter that inverts": (["--config.augment.views.first.strength=2.0"], ["contrast", "1.6"]),
    "negative seed": (["--config.seed=-1"], ["seed is -1"]),
    "temperature of zero": (["--config.loss.temperature=0.0"], ["temperature", "0.0", "1e-6"]),
    "negative temperature": (["--config.loss.temperature=-1.0"], ["temperature", "-1.0"]),
    "temperature that is no number": (["--config.loss.temperature=nan"], ["temperature", "nan"]),
    "warm-up longer than the run": (
        ["--config.optim.warmup_epochs=5.0"],
        ["warmup_epochs", "16 steps", "run of 6"],
    ),
    "depth that does not exist": (["--config.model.depth=51"], ["depth", "51", "50", "101"]),
    "interval that cuts chunks": (
        ["--config.train.steps_per_call=2", "--config.log.every_steps=4"],
        ["checkpoint.every_steps", "3", "steps_per_call"],
    ),
    "images given as no file": (["--config.data.path=nowhere.npz"], ["nowhere.npz", "not exist"]),
    "resume": (["--resume=maybe"], ["--resume", "maybe", "must"]),
    "resume=must with nothing there": (["--resume=must"], ["--resume=must", "no checkpoint"]),
}


@pytest.mark.parametrize("arguments, words", VALUES.values(), ids=VALUES)
def test_values_that_cannot_be(tmp_path, images, arguments, words):
    workdir = tmp_path / "run"
    common = (*TINY, f"--config.data.path={images}", f"--workdir={workdir}")
    mentions(doors.run(tmp_path, *common, *arguments, devices=4), *words)
    assert not (workdir / "config.json").exists(), "a run that cannot start leaves no run behind"


def test_missing_labels(tmp_path, unlabelled):
    ended = doors.run(tmp_path, *TINY, f"--config.data.path={unlabelled}")
    mentions(ended, "no labels", "--config.eval.probe=False --config.eval.knn=False")


def test_image_smaller_than_the_crop(tmp_path):
    path = doors.write_images(tmp_path / "small.npz", side=1)
    mentions(
        doors.run(tmp_path, *TINY, f"--config.data.path={path}"), "1x1", "area_min=0.3", "crop"
    )


def _truncated(path):
    doors.write_images(path)
    path.write_bytes(path.read_bytes()[:3000])


def _flipped(path):
    doors.write_images(path)
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)


BROKEN = {
    "truncated": _truncated,
    "a flipped byte": _flipped,
    "text": lambda path: path.write_text("images"),
    "empty": lambda path: path.write_text(""),
    "a pickle": lambda path: np.savez(path, images=np.array([{}], object)),
    "without images": lambda path: np.savez(path, pixels=np.zeros((9, 8, 8), np.uint8)),
    "of five channels": lambda path: np.savez(path, images=np.zeros((9, 8, 8, 5), np.uint8)),
    "labels that do not fit": lambda path: np.savez(
        path, images=np.zeros((9, 8, 8), np.uint8), labels=np.zeros(8, int)
    ),
    "labels that are words": lambda path: np.savez(
        path, images=np.zeros((9, 8, 8), np.uint8), labels=np.array(list("abcdefghi"))
    ),
    "labels below none": lambda path: np.savez(
        path, images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9) - 5
    ),
    "one image": lambda path: np.savez(path, images=np.zeros((1, 8, 8), np.uint8)),
    "a directory": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_damaged_archive(tmp_path, make):
    path = tmp_path / "broken.npz"
    make(path)
    mentions(doors.run(tmp_path, *TINY, f"--config.data.path={path}"), "broken.npz")


def test_unwritable_workdir(tmp_path, images):
    (tmp_path / "file").write_text("")  # nothing can be below a file, not even for root
    workdir = tmp_path / "file" / "run"
    ended = doors.run(tmp_path, *TINY, f"--config.data.path={images}", f"--workdir={workdir}")
    mentions(ended, str(workdir), "cannot be written", "--workdir")


def test_steps_of_the_profile(tmp_path, images):
    common = (*TINY, f"--config.data.path={images}", f"--workdir={tmp_path / 'run'}")
    mentions(doors.run(tmp_path, *common, "--profile_steps=bad"), "--profile_steps", "bad", "10:15")


def test_debug_shows_the_traceback(tmp_path):
    for wrong in ("--config.train.batchsize=8", "--config.loss.temperature=0.0"):
        ended = doors.run(tmp_path, "--config=configs/digits.py", wrong, "--debug")
        assert ended.code == 1 and "Traceback" in ended.err
