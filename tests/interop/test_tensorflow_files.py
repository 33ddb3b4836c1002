"""Official checkpoints are read whole, or refused in one line that says what is wrong."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from interop import official_files as files

from simclr_jax.errors import UserError
from simclr_jax.interop.tensorflow_files import find, open_checkpoint

pytest.importorskip("tensorflow", reason="official checkpoints are read with TensorFlow")

SMALL = files.values(files.shapes(classes=3, layers=2))


@pytest.fixture
def saved(tmp_path):
    return files.write_tf1(tmp_path / "model.ckpt-7", SMALL)


def test_every_value_is_read_by_its_name(saved):
    checkpoint = open_checkpoint(str(saved))
    assert (checkpoint.flavour, checkpoint.step) == ("tf1", 7)
    assert checkpoint.shapes.keys() == SMALL.keys()
    for name, value in SMALL.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)


@pytest.mark.parametrize("ending", ["", ".index", ".meta", ".data-00000-of-00001"])
def test_any_file_of_a_checkpoint_names_it(saved, ending):
    assert find(f"{saved}{ending}") == str(saved)


@pytest.mark.parametrize("named", ["", "saved_model.pb", "3", "3/saved_model.pb"])
def test_a_saved_model_is_found_by_what_a_user_names(tmp_path, named):
    outer = tmp_path / "saved_model"
    inner = outer / "3" if named != "saved_model.pb" else outer
    (inner / "variables").mkdir(parents=True)
    (inner / "saved_model.pb").touch()
    files.write_tf1(inner / "variables" / "variables", SMALL, step=None)
    assert find(str(outer / named)) == str(inner / "variables" / "variables")


def test_a_bucket_is_to_be_copied_first():
    with pytest.raises(UserError, match="not on this machine: copy it first"):
        find("gs://simclr-checkpoints/simclrv2/pretrained/r50_1x_sk0")


def test_weights_are_floats(tmp_path):
    name = "base_model/conv2d/kernel"
    double = files.write_tf1(tmp_path / "a", SMALL | {name: SMALL[name].astype(np.float64)})
    assert open_checkpoint(str(double)).read(name).dtype == np.float32
    whole = files.write_tf1(tmp_path / "b", SMALL | {name: SMALL[name].astype(np.int32)})
    with pytest.raises(UserError, match=f"{name} of .* is int32, but weights are floats"):
        open_checkpoint(str(whole)).read(name)


def test_two_models_in_one_checkpoint_are_refused(tmp_path):
    import tensorflow as tf

    module = tf.Module()
    module.student, module.teacher = (tf.Variable([i], name="resnet/x/gamma") for i in (1.0, 2.0))
    prefix = tf.train.Checkpoint(model=module).write(str(tmp_path / "ckpt-1"))
    with pytest.raises(UserError, match=r"two variables are called resnet/x/gamma .*student.*teac"):
        open_checkpoint(prefix)


def test_a_directory_means_its_newest_checkpoint(saved):
    files.write_tf1(saved.with_name("model.ckpt-9"), SMALL, step=9)
    with pytest.raises(UserError, match=r"several \(model.ckpt-7, model.ckpt-9\): name one"):
        find(str(saved.parent))
    said = saved.with_name("checkpoint")
    said.write_text('model_checkpoint_path: "/where/it/was/model.ckpt-9"\n')
    assert open_checkpoint(str(saved.parent)).step == 9
    said.write_text('model_checkpoint_path: "model.ckpt-11"\n')
    with pytest.raises(UserError, match=r"names model.ckpt-11, which is not there .*model.ckpt-7"):
        find(str(saved.parent))


def test_what_is_no_weight_is_named_and_left_out(tmp_path):
    others = {
        "base_model/conv2d/kernel/Momentum": "state of the optimiser",
        "beta1_power": "state of the optimiser",
        "base_model/conv2d/kernel/ExponentialMovingAverage": "moving average (ema)",
        # As the released files of SimCLRv2 have them.
        "ema_model/base_model/conv2d/kernel": "moving average (ema)",
        "ema_model/head_contrastive/nl_0/dense/kernel": "moving average (ema)",
        "memory": "memory of embeddings",
        "memory/keys": "memory of embeddings",
        "global_step": "step counters",
    }
    values = SMALL | {name: np.zeros(2, np.float32) for name in others if name != "global_step"}
    checkpoint = open_checkpoint(str(files.write_tf1(tmp_path / "model.ckpt-7", values)))
    found = {name: why for why, names in checkpoint.left_out.items() for name in names}
    assert found == others and not checkpoint.unknown
    assert checkpoint.shapes.keys() == SMALL.keys()


@pytest.mark.parametrize("first", [0, 8, 54])  # 8: numbers of one and of two digits
def test_keras_names_count_from_zero_whatever_the_process_had_built(tmp_path, first):
    names = [
        "resnet/conv2d_fixed_padding/conv2d/kernel",
        "resnet/batch_norm_relu/sync_batch_normalization/gamma",
        "resnet/block_group1/residual_block/conv2d_fixed_padding_1/conv2d_1/kernel",
        "resnet/block_group1/residual_block_1/conv2d_fixed_padding_2/conv2d_2/kernel",
        "resnet/block_group4/residual_block_2/conv2d_fixed_padding_3/conv2d_3/kernel",
        "projection_head/nl_0/dense/kernel",
        "projection_head/nl_1/dense_1/kernel",
        "head_supervised/linear_layer/dense_2/kernel",
    ]
    values = {name: np.full(i + 1, i, np.float32) for i, name in enumerate(names)}
    checkpoint = open_checkpoint(str(files.write_tf2(tmp_path / "ckpt-3", values, first)))
    assert (checkpoint.flavour, checkpoint.step) == ("tf2", 3)
    for name, value in values.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path / "nothing", "is no TensorFlow checkpoint: give model.ckpt-N"),
        (lambda path: path, r"but has none \(no file \*.index\)"),
        (lambda path: _file(path / "notes.txt", b"text"), "is no TensorFlow checkpoint"),
        (lambda path: _file(path / "x.index", b"").with_suffix(""), "is damaged or incomplete"),
        (lambda path: _file(path / "x.index", b"0" * 900).with_suffix(""), "is damaged or incompl"),
    ],
    ids=["absent", "empty directory", "text", "empty index", "index of zeros"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as raised:
        open_checkpoint(str(make(tmp_path)))
    assert "\n" not in str(raised.value)


def _file(path, content):
    path.write_bytes(content)
    return path


def _cut(data):
    return data[: len(data) // 2]


def _flip(data):
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


@pytest.mark.parametrize("damage", [_cut, _flip, None], ids=["cut", "flipped byte", "missing"])
def test_damaged_values_are_refused(saved, damage):
    (data,) = saved.parent.glob("*.data-*")
    _file(data, damage(data.read_bytes())) if damage else data.unlink()
    with pytest.raises(UserError, match=r"is damaged or incomplete \(.+\): copy it again"):
        checkpoint = open_checkpoint(str(saved))
        for name in checkpoint.shapes:
            checkpoint.read(name)


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    values = {"resnet_v2_50/conv1/weights": np.zeros((7, 7, 3, 64), np.float32)}
    prefix = files.write_tf1(tmp_path / "resnet.ckpt", values)
    with pytest.raises(UserError, match=r"holds no variable of google-research.* \(it has glob"):
        open_checkpoint(str(prefix))


def test_without_tensorflow_the_remedy_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"pip install 'tensorflow<2.22,>=2.20' "):
        open_checkpoint(str(saved))
