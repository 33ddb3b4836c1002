"""`simclr_jax.train`, `load` and `embed`, as a notebook calls them."""

from __future__ import annotations

import importlib
import json
import os
import signal

import doors
import numpy as np
import pytest
from PIL import Image

import simclr_jax
from simclr_jax import api, recipes
from simclr_jax.errors import UserError
from simclr_jax.train.metrics import MetricsWriter

pytestmark = pytest.mark.e2e

TINY = str(doors.ROOT / "tests" / "e2e" / "tiny.py")
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def trained(finished):
    """The run that others have trained, as `train` returns it."""
    return api.Run(str(finished.workdir))


def test_a_run_is_something_to_work_with(trained):
    workdir = doors.Path(trained.workdir)
    assert trained.encoder.step == 20
    written = json.loads((workdir / "results" / "summary.json").read_text())
    assert trained.scores == written["scores"] and "pretrained encoder" in trained.scores
    logged = {line["step"]: line["loss"] for line in trained.metrics if "loss" in line}
    assert logged == doors.losses(workdir) and {*logged} == {*range(1, 21)}
    assert not any("crc32" in line for line in trained.metrics)


@pytest.mark.slow
def test_a_run_trains_stops_and_goes_on(images, tmp_path, monkeypatch):
    write = MetricsWriter.write

    def struck(writer, step, values):
        if step == 1 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)
        write(writer, step, values)

    unscored = {"eval.knn": False, "eval.probe": False, "eval.compare": False}

    def call():
        return simclr_jax.train(images, tmp_path / "run", TINY, train__steps=3, **unscored)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", struck)
        with pytest.raises(api.Stopped, match="the same call continues") as raised:
            call()
    assert raised.value.code == 75
    found = call()
    assert (
        found.encoder.step == 3
        and found.scores == {}
        and {*doors.losses(tmp_path / "run")} == {1, 2, 3}
    )


@pytest.fixture
def asked(monkeypatch):
    """Return what is asked of `stages.run.run`, in the place of training."""
    seen = []

    def run(config, workdir, resume):
        seen.append((config, workdir, resume))
        return run.code

    run.code = 0
    monkeypatch.setattr(api.runs, "run", run)
    return seen, run


def test_recipes_are_files_names_and_values(asked, images, tmp_path, monkeypatch):
    seen, _ = asked
    monkeypatch.chdir(tmp_path)
    fields = {"train__epochs": 3, "optim.base_lr": 1}
    assert simclr_jax.train(config="digits", **fields).workdir == "runs/digits"
    value = recipes.base()
    simclr_jax.train(str(images), "here", value, "never", **fields)
    simclr_jax.train(images)
    simclr_jax.train(config="imagenet:width=2", data=tmp_path)
    names = ("data.source", "data.path", "train.epochs", "optim.base_lr", "model.width")
    found = [([recipes.get(c, n) for n in names], *rest) for c, *rest in seen]
    assert found == [
        (["digits", "", 3.0, 1.0, 0.25], "runs/digits", "auto"),
        (["memory", str(images), 3.0, 1.0, 1.0], "here", "never"),
        (["memory", str(images), 200.0, 1.0, 1.0], "runs/memory", "auto"),
        (["folder", str(tmp_path), 100.0, 0.075, 2.0], "runs/imagenet", "auto"),
    ]
    assert value.data.source == "digits", "what is the caller's stays as it is"


def test_a_stopped_notebook_is_interrupted(asked):
    asked[1].code = 130
    with pytest.raises(KeyboardInterrupt):
        simclr_jax.train(config="digits")


# Embedding ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images as files of several kinds, and the pixels that these stand for."""
    folder = tmp_path_factory.mktemp("files")
    pixels = RANDOM.integers(0, 256, (4, 9, 11, 3)).astype(np.uint8)
    Image.fromarray(pixels[0]).save(folder / "0.png")
    Image.fromarray(pixels[1]).save(folder / "1.bmp")
    alpha = np.full((9, 11, 1), 255, np.uint8)
    alpha[:4] = 0
    Image.fromarray(np.concatenate([pixels[2], alpha], 2)).save(folder / "2.png")
    pixels[2, :4] = 255  # what is transparent is white
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels[3, ::-1, ::-1]).save(folder / "3.png", exif=exif)
    return sorted(folder.iterdir()), pixels


def test_files_arrays_and_images_of_pillow_are_the_same_images(trained, files):
    paths, pixels = files
    wanted = trained.encoder(list(pixels))
    assert wanted.shape == (4, 32)
    opened = [Image.open(path) for path in paths]
    for images in (paths, [str(path) for path in paths], opened, iter(paths), pixels):
        np.testing.assert_array_equal(simclr_jax.embed(trained, images), wanted)
    mixed = [paths[0], pixels[1], opened[2], str(paths[3])]
    np.testing.assert_array_equal(trained.encoder(mixed), wanted)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "I;16"])
def test_modes_of_pillow_are_read_as_their_files(trained, tmp_path, mode):
    pixels = RANDOM.integers(0, 256, (9, 11)).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    np.testing.assert_allclose(
        simclr_jax.embed(trained, image), simclr_jax.embed(trained, path), rtol=1e-5, atol=1e-6
    )


def test_runs_are_paths_encoders_and_runs(trained, files):
    paths, pixels = files
    wanted = trained.encoder(pixels[0], tap="z")
    assert wanted.shape == (8,)
    for run in (trained, trained.encoder, trained.workdir, doors.Path(trained.workdir)):
        np.testing.assert_array_equal(simclr_jax.embed(run, paths[0], tap="z"), wanted)


def test_several_taps_come_from_one_pass_and_of_no_images_nothing(trained, files):
    paths, pixels = files
    wanted = {tap: trained.encoder(pixels, tap) for tap in ("h", "z")}
    for found in (
        simclr_jax.embed(trained, paths, ["z", "h"], batch_size=3),
        trained.encoder(pixels, ("z", "h", "z")),
    ):
        assert list(found) == ["z", "h"]
        for tap, vectors in wanted.items():
            np.testing.assert_allclose(found[tap], vectors, rtol=1e-5, atol=1e-6)
    one = trained.encoder(pixels[0], ("h", "z"))
    np.testing.assert_allclose(one["z"], wanted["z"][0], rtol=1e-5, atol=1e-6)
    for nothing in ([], pixels[:0], iter([])):
        found = simclr_jax.embed(trained, nothing, ("h", "z"))
        assert {tap: (x.shape, x.dtype) for tap, x in found.items()} == {
            "h": ((0, 32), np.float32),
            "z": ((0, 8), np.float32),
        }
    assert simclr_jax.embed(trained, []).shape == (0, 32)


def test_many_are_decoded_in_parts(trained, files):
    paths, _ = files
    whole, parts = (simclr_jax.embed(trained, paths, batch_size=size) for size in (256, 3))
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


# What a user gets wrong ---------------------------------------------------------------------------

WRONG = {
    "nothing": ({}, "nothing to train on: give data, or config"),
    "no such folder": ({"data": "nowhere"}, "data=nowhere is no directory"),
    "no such recipe": ({"config": "digts"}, r'"digts" is no file.*did you mean "digits"'),
    "argument for a recipe without": ({"config": "memory:big"}, 'takes no argument: leave ":big"'),
    "wrong argument": ({"config": "imagenet:widht=2"}, r'"widht" \(did you mean "width"'),
    "home of nobody": ({"config": "~zz/a.py"}, "there is no home of ~zz"),
    "several runs": ({"config": "v2_pipeline_digits"}, "one of several runs: `simclr train"),
    "misspelt field": (
        {"config": "digits", "train__epoch": 3},
        r'no field "train.epoch" \(did you mean "epochs"\?\): `simclr fields`',
    ),
    "misspelt group": (
        {"config": "digits", "trian__epochs": 3},
        r'no field "trian.epochs"',
    ),
    "field below a field": ({"config": "digits", "seed__x": 3}, 'no field "seed.x"'),
    "wrong type": (
        {"config": "digits", "train__batch_size": "big"},
        "train.batch_size is big: it must be of type int",
    ),
    "wrong type of an open field": (
        {"config": "digits", "train__steps": "100"},
        "train.steps is 100: it must be of type int",
    ),
    "wrong type of a field left open": (
        {"config": "folder", "eval__knn": "False"},
        "eval.knn is False: it must be of type bool",
    ),
    "images of nobody's home": ({"data": "~zz/a"}, "data: there is no home of ~zz"),
    "value for a group": ({"config": "digits", "train": 3}, "train is 3"),
    "a value that cannot be": ({"config": "digits", "loss__temperature": -1}, "temperature is -1"),
    "no workdir": ({"config": recipes.base()}, "give workdir"),
}


@pytest.mark.parametrize("arguments, words", WRONG.values(), ids=WRONG)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as raised:
        simclr_jax.train(**arguments)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_recipes_that_are_none(tmp_path):
    for code, words in (("x = 1", "no get_config"), ("def get_config(): pass", "no ConfigDict")):
        (tmp_path / "mine.py").write_text(code)
        with pytest.raises(UserError, match=words):
            simclr_jax.train(config=str(tmp_path / "mine.py"))


def test_images_that_are_none(trained, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder").mkdir()
    for path, words in (
        ("text.jpg", r"text\.jpg is no image"),
        ("absent.jpg", r"absent\.jpg cannot be read \(No such file"),
        ("folder", "folder cannot be read .*directory"),
    ):
        with pytest.raises(UserError, match=words):
            simclr_jax.embed(trained, [tmp_path / path])
    with pytest.raises(UserError, match="batch_size is 0"):
        simclr_jax.embed(trained, np.zeros((8, 8, 3), np.uint8), batch_size=0)
    with pytest.raises(UserError, match="tap"):
        simclr_jax.embed(trained, np.zeros((8, 8, 3), np.uint8), tap="q")
    with pytest.raises(UserError, match="nowhere"):
        simclr_jax.embed("nowhere", np.zeros((8, 8, 3), np.uint8))


# Names --------------------------------------------------------------------------------------------


def test_a_room_of_the_same_name_stays_a_room():
    """`simclr_jax.train` is the function, and the package in which `loop` is."""
    room = importlib.import_module("simclr_jax.train")
    assert importlib.import_module("simclr_jax.train.loop") is room.loop
    assert simclr_jax.train is room
    with pytest.raises(UserError, match="nothing to train on"):
        room()
    from simclr_jax import embed

    with pytest.raises(UserError, match="nowhere"):
        embed("nowhere", [])
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = simclr_jax.trian
