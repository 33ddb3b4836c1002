"""A converted checkpoint is a run: training starts from it; contradictions end in one line."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from interop import official_files as files
from ml_collections import ConfigDict
from train import tiny

from simclr_jax.errors import UserError
from simclr_jax.interop import convert
from simclr_jax.interop.convert import Options
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train import manifest

pytest.importorskip("tensorflow", reason="official checkpoints are read with TensorFlow")

SHAPES = files.shapes(classes=4, layers=2)
SAVED = files.values(SHAPES)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(files.write_tf1(tmp_path_factory.mktemp("source") / "model.ckpt-7", SAVED))


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("converted") / "run"
    convert.run(source, str(workdir), Options(dataset="none"))
    return workdir


def recipe():
    """A pretraining with the model of the checkpoint."""
    c = tiny.recipe()
    c.model.depth, c.model.width, c.model.stem = 18, 1 / 64, "cifar"
    c.head.layers, c.head.dim, c.eval.probe = 2, 5, True
    return c


def test_pretraining_starts_from_it(run):
    state = tiny.make_stage(recipe(), 8)[0].init()
    parts = ConfigDict({"run": str(run), "parts": "encoder,head"})
    loaded = manifest.named_leaves(load_parts(parts, state))
    pairs = {
        "params/encoder/stem_conv/conv/kernel": "base_model/conv2d/kernel",
        "params/encoder/group1_block1/shortcut_conv/conv/kernel": "base_model/conv2d_1/kernel",
        "batch_stats/encoder/group4_block2/bn2/var": (
            "base_model/batch_normalization_20/moving_variance"
        ),
        "params/encoder/group2_block1/bn1/bias": "base_model/batch_normalization_7/beta",
        "params/head/dense2/kernel": "head_contrastive/nl_1/dense/kernel",
        "params/head/bn2/scale": "head_contrastive/nl_1/batch_normalization/gamma",
    }
    for ours, theirs in pairs.items():
        np.testing.assert_array_equal(loaded[ours], SAVED[theirs], err_msg=ours)


def test_its_classifier_is_a_probe_where_the_classes_agree(run):
    state = tiny.make_stage(recipe(), 8)[0].init()  # of a data set of 4 classes
    parts = ConfigDict({"run": str(run), "parts": "encoder, probe"})
    loaded = load_parts(parts, state).params["probe"]["dense"]
    name = "head_supervised/linear_layer/dense"
    np.testing.assert_array_equal(loaded["kernel"], SAVED[f"{name}/kernel"])
    np.testing.assert_array_equal(loaded["bias"], SAVED[f"{name}/bias"])
    probe = jax.tree.map(lambda x: x[..., :3], state.params["probe"])
    other = state._replace(params=state.params | {"probe": probe})
    with pytest.raises(UserError, match="tells 4 classes apart, this data set has 3: leave probe"):
        load_parts(parts, other)


def test_preprocessing_comes_with_it(run):
    record = json.loads((run / "config.json").read_text())
    assert record["stage"] == "convert" and record["images"] == []
    assert record["data"]["image_size"] == 32 and record["augment"]["grid"] == "corner"
    assert record["converted"]["classes"] == 4 and record["converted"]["flavour"] == "tf1"


def test_flags_beside_a_checkpoint_are_believed_before_guesses(tmp_path, run):
    prefix = files.write_tf1(tmp_path / "model.ckpt-7", SAVED)
    said = {"image_size": 48, "ft_proj_selector": 1, "dataset": "cats_vs_dogs"}
    (tmp_path / "flags.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="4 classes, but the data set cats_vs_dogs has 2: name"):
        convert.run(str(prefix), str(tmp_path / "run"), Options())
    convert.run(str(prefix), str(tmp_path / "run"), Options(dataset="none", image_size=40))
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["data"]["image_size"] == 40 and record["converted"]["classifier_tap"] == 1


@pytest.mark.parametrize(
    "flag, value",
    [("image_size", None), ("image_size", "224"), ("ft_proj_selector", "1"), ("dataset", 3)],
)
def test_nonsense_in_the_flags_beside_is_named(tmp_path, flag, value):
    prefix = files.write_tf1(tmp_path / "model.ckpt-7", SAVED)
    (tmp_path / "flags.json").write_text(json.dumps({flag: value}))
    with pytest.raises(UserError, match=f"flags.json says {flag}={value!r}: repair or remove it"):
        convert.run(str(prefix), str(tmp_path / "run"), Options())


def test_the_flags_of_a_saved_model_lie_in_the_directory_of_the_run(tmp_path):
    inner = tmp_path / "hub" / "7" / "variables"
    inner.mkdir(parents=True)
    files.write_tf1(inner / "variables", SAVED, step=None)
    (tmp_path / "flags.json").write_text(json.dumps({"image_size": 48, "ft_proj_selector": 1}))
    convert.run(str(tmp_path / "hub"), str(tmp_path / "run"), Options(dataset="none"))
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["data"]["image_size"] == 48 and record["converted"]["classifier_tap"] == 1
    assert (tmp_path / "run" / "checkpoints" / "7").is_dir()


def test_the_last_layer_may_be_counted_from_the_end(tmp_path):
    """As the official flag does; z has 5 numbers here, and this classifier reads 5."""
    name = "head_supervised/linear_layer/dense/kernel"
    values = SAVED | files.values({name: (5, 4)})
    prefix = files.write_tf1(tmp_path / "model.ckpt-7", values)
    convert.run(str(prefix), str(tmp_path / "run"), Options(dataset="none", tap=-1))
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["converted"]["classifier_tap"] == 2


def test_without_a_classifier_there_is_no_tap(tmp_path):
    prefix = files.write_tf1(tmp_path / "model.ckpt-7", files.values(files.shapes(layers=2)))
    with pytest.raises(UserError, match="--tap=1 is where a classifier reads, but there is none"):
        convert.run(str(prefix), str(tmp_path / "run"), Options("none", tap=1))
    convert.run(str(prefix), str(tmp_path / "run"), Options("none"))
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["converted"]["classifier_tap"] is None


@pytest.mark.parametrize(
    "options, message",
    [
        (Options(), "the classifier has 4 classes, but the data set cifar10 has 10: name the one"),
        (Options(dataset="cifar11"), r'no data set "cifar11" \(did you mean "\w+"\?\); name'),
        (Options("none", tap=2), r"reads 8 numbers, which is not layer 2 .* --tap=0 or --tap=1"),
        (Options("none", tap=-4), r"reads 8 numbers, which is not layer -4"),
        (Options("none", image_size=0), "--image_size is 0"),
        (Options(dataset="cifar10:9.9.9"), r'no data set "cifar10:9.9.9" \(.+\); name the one'),
        (Options(dataset="cifar10/small"), r'no data set "cifar10/small" \(.+\); name the one'),
    ],
    ids=["classes", "data set", "tap", "tap from the end", "size", "version", "variant"],
)
def test_contradictions_are_named(source, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert.run(source, str(tmp_path / "run"), options)
    assert not (tmp_path / "run").exists()


def test_no_run_is_overwritten(source, run):
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"holds a run already: give another --workdir"):
        convert.run(source, str(run), Options(dataset="none"))
    assert (run / "config.json").read_bytes() == before


def test_diverged_weights_are_refused(tmp_path):
    name = "base_model/batch_normalization_4/gamma"
    prefix = files.write_tf1(tmp_path / "model.ckpt-7", SAVED | {name: np.float32([np.nan])})
    with pytest.raises(UserError, match=f"{name} of .* is not finite"):
        convert.run(str(prefix), str(tmp_path / "run"), Options(dataset="none"))
