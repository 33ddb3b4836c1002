"""What `simclr_jax.load` gives: the run's encoder, in inference mode, behind its preprocessing."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages.written import write_run
from train import tiny

import simclr_jax
from simclr_jax import documents, parallel, recipes
from simclr_jax.augment.resize import center_crop, to_float
from simclr_jax.errors import UserError
from simclr_jax.evaluate.logistic import Weights
from simclr_jax.frame import modules
from simclr_jax.models.inputs import INPUTS
from simclr_jax.stages import teacher
from simclr_jax.stages.encoder import Encoder, channels_of
from simclr_jax.stages.inherit import inherit
from simclr_jax.stages.preprocessing import Preprocessing
from simclr_jax.train import saved

# Compiled as one: operation by operation it takes several times as long.
reference_crop = jax.jit(center_crop, static_argnums=(1, 2, 3))
IMAGES = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def encoder(workdir):
    return simclr_jax.load(str(workdir))


def test_taps_are_those_of_the_modules(workdir, encoder):
    """Against the modules applied by hand."""
    run = saved.read(str(workdir))
    config, images = run.config, to_float(IMAGES)

    @jax.jit
    def by_hand(encoder, head):
        ends = modules.encoder(config).apply(encoder, images, train=False)
        return ends, modules.projection_head(config).apply(head, ends["h"], train=False)

    ends, hiddens = by_hand(run.variables("encoder"), run.variables("head"))
    expected = {
        "h": ends["h"],
        "head1": hiddens[1],
        "head2": hiddens[2],
        "z": hiddens[2],
        **{f"group{i}": ends[f"block_group{i}"].mean((1, 2)) for i in range(1, 5)},
        **{f"map{i}": ends[f"block_group{i}"].reshape(6, -1) for i in range(1, 5)},  # so small
        "pixels": images.reshape(6, -1),
    }
    assert set(encoder.taps) == set(expected)
    found = encoder.extract(IMAGES, encoder.taps)
    for tap, vectors in expected.items():
        np.testing.assert_allclose(found[tap], vectors, atol=1e-5, err_msg=tap)
    assert encoder.run == f"{workdir}@7" and encoder.step == 7 and encoder.size == 8


def test_a_row_depends_on_its_image_alone(encoder):
    many = np.random.RandomState(1).randint(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    together = encoder(many)  # some rows to each of the 8 devices
    np.testing.assert_allclose(encoder(many[2]), together[2], atol=1e-6)
    others = np.concatenate([many[2:3], 255 - many[:23] // 2])
    np.testing.assert_allclose(encoder(others)[0], together[2], atol=1e-6)


def test_takes_images_of_any_size_and_kind(encoder):
    floats = IMAGES.astype(np.float64) / 255
    np.testing.assert_allclose(encoder(floats), encoder(IMAGES), atol=1e-5)
    gray = IMAGES[0, :, :, :1]
    np.testing.assert_array_equal(encoder(gray), encoder(np.repeat(gray, 3, axis=-1)))
    np.testing.assert_array_equal(encoder(gray[..., 0]), encoder(gray))
    sizes = [np.random.RandomState(i).randint(0, 256, (9 + i, 30 - i, 3), np.uint8) for i in (0, 7)]
    listed = encoder(sizes)
    for image, vector in zip(sizes, listed, strict=True):
        view = np.asarray(reference_crop(image, 8, "corner", 1.0))
        np.testing.assert_allclose(vector, encoder(view), atol=1e-4)


@pytest.mark.parametrize(
    "grid, size, height, width",
    [("corner", 48, 100, 61), ("half_pixel", 20, 64, 128), ("antialias", 48, 48, 48)],
)
def test_the_view_is_that_of_the_official_evaluation(grid, size, height, width):
    """The canvas that saves compilations has no part in it, nor has where the view is made."""
    config = tiny.recipe(data__image_size=size, augment__grid=grid)
    prepare = Preprocessing.of(config, channels=3)
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    expected = reference_crop(image, size, grid, 0.875 if size > 32 else 1.0)
    close = 6e-5 if grid == "antialias" else 2e-6  # each is so far from float64
    np.testing.assert_allclose(prepare(image), expected, atol=close)
    np.testing.assert_allclose(jax.jit(prepare.on_device)(image[None])[0], expected, atol=close)


def test_colour_becomes_luminance_where_the_encoder_has_one_channel():
    prepare = Preprocessing(8, "corner", channels=1, proportion=1.0)
    red, green = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0], green[..., 1] = 255, 200
    assert np.unique(prepare.checked(red)) == [76]  # 0.299 * 255
    assert np.unique(prepare.checked(green)) == [117]
    np.testing.assert_allclose(prepare(red), 76 / 255, rtol=1e-6)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((8, 8, 4), np.uint8), r"has shape \(8, 8, 4\)"),
        (np.zeros((2, 8, 8, 3), np.int64), "is int64: give uint8"),
        (np.full((8, 8, 3), -1.5), "values from -1.5 to -1.5"),
        (IMAGES.astype(np.float32), "values from 0 to 254"),
        (None, r"has shape \(\)"),
        (np.float32(0.3), r"has shape \(\)"),
        ([None], r"has shape \(\)"),
    ],
)
def test_what_is_no_image_is_refused(encoder, images, message):
    with pytest.raises(UserError, match=message):
        encoder(images)


def test_of_no_images_come_no_vectors(encoder):
    for nothing in ([], IMAGES[:0]):
        for tap, vectors in encoder(nothing, encoder.taps).items():
            want = encoder(IMAGES[:1], tap)
            assert (vectors.shape, vectors.dtype) == ((0, want.shape[1]), want.dtype), tap


def test_apply_is_the_network_as_a_function_of_its_weights(encoder):
    """Compiled, differentiated and given other weights."""
    views = np.stack([encoder.preprocessing(image) for image in IMAGES])
    found = jax.jit(encoder.apply)(encoder.variables, views)
    np.testing.assert_allclose(found, encoder(IMAGES), atol=1e-5)
    both = encoder.apply(encoder.variables, jnp.asarray(views), ("h", "z"))
    np.testing.assert_allclose(both["z"], encoder(IMAGES, "z"), atol=1e-5)
    other = encoder.untrained()
    np.testing.assert_allclose(encoder.apply(other.variables, views), other(IMAGES), atol=1e-5)

    def first(scale):
        params = jax.tree.map(lambda x: x * scale, encoder.variables["params"])
        return jnp.sum(encoder.apply({**encoder.variables, "params": params}, views))

    slope, step = jax.grad(first)(1.0), 1e-2
    by_hand = (first(1.0 + step) - first(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(slope, by_hand, rtol=0.05)
    with pytest.raises(UserError, match='tap is "q"'):
        encoder.apply(encoder.variables, views, "q")


def test_an_unknown_tap_is_refused(encoder):
    with pytest.raises(UserError, match='tap is "head3"'):
        encoder(IMAGES, tap="head3")


def test_untrained_is_where_training_starts(encoder):
    first = tiny.make_stage(encoder.config, 8)[0].init()
    untrained = encoder.untrained()
    for kind in ("params", "batch_stats"):
        expected = getattr(first, kind)
        for part in ("encoder", "head"):
            jax.tree.map(
                np.testing.assert_array_equal, untrained.variables[kind][part], expected[part]
            )
    assert untrained.fingerprint != encoder.fingerprint


def test_the_recipe_of_an_encoder_refuses_to_be_changed(workdir, encoder):
    for change in (
        lambda c: setattr(c.train, "dtype", "bfloat16"),
        lambda c: c.data.update(max_bad_fraction=1.0),
        lambda c: c.augment.views.first.__setitem__("crop", False),
        lambda c: c.unlock(),
    ):
        with pytest.raises(AttributeError, match="immutable"):
            change(encoder.config)
    recipe = saved.read(str(workdir)).config
    made = Encoder(recipe, encoder.variables, "run", 7)
    recipe.train.dtype = "bfloat16"  # by whoever made it
    assert made.config.train.dtype == "float32"


def test_a_changed_encoder_is_another_one_of_the_same_weights(workdir, encoder):
    recipe = saved.read(str(workdir)).config
    whole = dataclasses.replace(encoder.preprocessing, proportion=0.5)
    fields = {"train.dtype": "bfloat16", "data.max_bad_fraction": 0.7}
    changed = encoder.changed(fields, whole)
    assert encoder.config.to_dict() == recipe.to_dict() and encoder.preprocessing != whole
    assert changed.preprocessing is whole and changed.changed().preprocessing is whole
    for name, value in fields.items():
        recipes.put(recipe, name, value)
    assert changed.config.to_dict() == recipe.to_dict()
    assert (changed.run, changed.step, changed.taps) == (encoder.run, encoder.step, encoder.taps)
    assert changed.fingerprint == encoder.fingerprint
    want = Encoder(recipe, encoder.variables, "run", 7).extract(IMAGES, ("h",), prepared=True)["h"]
    found = changed.extract(IMAGES, ("h",), prepared=True)["h"]
    np.testing.assert_array_equal(found, want)
    assert (found != encoder.extract(IMAGES, ("h",), prepared=True)["h"]).any()
    assert changed.untrained().preprocessing is whole


def test_a_teacher_leaves_the_recipe_of_its_run_alone(workdir, encoder, monkeypatch):
    weights = Weights(np.zeros((encoder(IMAGES).shape[1], 3), np.float32), np.zeros(3, np.float32))
    run = saved.read(str(workdir))
    known = Encoder(run.config, encoder.variables, "run", 7, None, ("h", weights))
    monkeypatch.setattr(Encoder, "of", lambda *_: known)
    monkeypatch.setattr(teacher, "classifier_shape", lambda run: (1, 3))
    made = teacher.Teacher(run, "bfloat16", known.mesh)
    assert made.classes == 3 and known.config.to_dict() == run.config.to_dict()


def test_fingerprint_is_of_the_weights_and_not_of_the_place(workdir, encoder, tmp_path):
    run = saved.read(str(workdir))
    one = Encoder.of(run, parallel.make_mesh(1))
    assert one.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(one(IMAGES), encoder(IMAGES), atol=1e-5)


@pytest.mark.parametrize("name", ["standardised", "normalised", "lightness"])
def test_an_encoder_makes_its_input_of_the_images(name, tmp_path):
    """Whoever uses it hands over images; what is raw stays raw."""
    run = saved.read(str(write_run(tmp_path, model__input=name)))
    encoder = Encoder.of(run)
    weights = run.variables("encoder")
    assert encoder.channels == channels_of(run.config, weights["params"]) == 3
    found = encoder.extract(IMAGES, ("h", "pixels"))
    images = to_float(IMAGES)
    np.testing.assert_allclose(found["pixels"], images.reshape(6, -1), atol=1e-6)
    rgb = modules.encoder(tiny.recipe())
    ends = jax.jit(functools.partial(rgb.apply, train=False))(weights, INPUTS[name](images))
    np.testing.assert_allclose(found["h"], ends["h"], rtol=1e-4, atol=1e-5)
    gray = IMAGES[0, :, :, :1]
    np.testing.assert_array_equal(encoder(gray), encoder(np.repeat(gray, 3, axis=-1)))
    first = encoder.untrained().variables["params"]["encoder"]
    assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, weights["params"])


def test_channels_of_an_encoder_of_gray_images():
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), np.float32)
    for name in ("rgb", "standardised"):
        config = tiny.recipe(model__input=name)
        made = modules.encoder(config)
        params = jax.eval_shape(lambda x, made=made: made.init(jax.random.key(0), x, False), images)
        assert channels_of(config, params["params"]) == 1


def test_a_run_of_before_these_fields_is_as_it_was(workdir, encoder, tmp_path):
    old = write_run(tmp_path)
    record = documents.read(old / "config.json", dict)
    for group, field in (("model", "input"), ("head", "bias"), ("head", "norm")):
        del record[group][field]
    documents.write(old / "config.json", record)
    config = saved.read(str(old)).config
    assert (config.model.input, config.head.bias, config.head.norm) == ("rgb", "hidden", "hidden")
    found = simclr_jax.load(old)(IMAGES, tap="z")
    np.testing.assert_array_equal(found, encoder(IMAGES, tap="z"))


def test_fine_tuning_inherits_input_and_head(tmp_path):
    head = {"head__kind": "mlp", "head__bias": "all", "head__norm": "none"}
    run = write_run(tmp_path, model__input="lightness", **head)
    config = importlib.import_module("configs.finetune").get_config()
    config.init.run = str(run)
    config, _ = inherit(config)
    assert config.model.input == "lightness"
    assert (config.head.kind, config.head.bias, config.head.norm) == ("mlp", "all", "none")


@pytest.mark.parametrize(
    "fields",
    [{"model__depth": 18}, {"model__width": 64.0}, {"head__dim": 6}],
)
def test_a_network_that_is_not_that_of_the_arrays_is_one_line(tmp_path, fields):
    """In a run whose checkpoint is too old to hold the recipe."""
    workdir = write_run(tmp_path)
    documents.write(workdir / "config.json", tiny.recipe(**fields).to_dict())
    with pytest.raises(UserError, match="are not those of the network") as told:
        Encoder.of(saved.read(str(workdir)))
    assert "\n" not in str(told.value) and len(str(told.value)) < 600
