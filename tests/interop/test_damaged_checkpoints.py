"""Official checkpoints that are damaged, or that nobody official has written: one line each."""

from __future__ import annotations

import json

import numpy as np
import pytest
from interop import official_files

from simclr_jax.errors import UserError
from simclr_jax.interop import convert, infer, official_names
from simclr_jax.interop.tensorflow_files import OBJECT_GRAPH, find, open_checkpoint

pytest.importorskip("tensorflow", reason="official checkpoints are read with TensorFlow")

SMALL = official_files.values(official_files.shapes(classes=3, layers=2))


def names(tf1):
    """Return what a flavour calls the variables of `SMALL`."""
    named = official_names.namer(tf1)
    found = named.encoder(official_names.Architecture(18, 1 / 64, "cifar"))
    return found | named.head("nonlinear", 2) | named.classifier()


def values(source):
    """Read a checkpoint to its end; None if it is refused, which must be in one line."""
    try:
        checkpoint = open_checkpoint(str(source))
        model = infer.infer(checkpoint)
        return {name: checkpoint.read(name) for name in model.names}
    except UserError as error:
        assert str(error).isprintable()
        return None


@pytest.mark.parametrize("written", [pytest.param("tf1", marks=pytest.mark.slow), "tf2"])
def test_no_damaged_checkpoint_is_read_as_another(tmp_path, written):
    write = official_files.write_tf1 if written == "tf1" else official_files.write_tf2
    tree = official_names.to_tree(SMALL, names(tf1=True))
    small = official_names.from_tree(tree, names(tf1=written == "tf1"))
    prefix, random, refused = write(tmp_path / "model.ckpt-7", small), np.random.default_rng(0), 0
    whole = values(prefix)
    assert whole is not None and whole.keys() == small.keys()
    damages = 0
    for path in sorted(tmp_path.glob("model.ckpt-7*")):
        content = path.read_bytes()
        for i in range(40):
            changed = bytearray(content)
            changed[random.integers(len(content))] ^= 1 << random.integers(8)
            path.write_bytes(content[: random.integers(len(content))] if i < 5 else bytes(changed))
            found = values(prefix)
            damages, refused = damages + 1, refused + (found is None)
            if found is not None:
                for name, value in whole.items():
                    np.testing.assert_array_equal(found[name], value)
        path.unlink()
        path.mkdir()
        assert values(prefix) is None
        path.rmdir()
        path.write_bytes(content)
    assert refused > damages / 2


@pytest.mark.parametrize(
    "step", [np.zeros((2, 2), np.int64), np.array(["x"]), np.float32("nan"), np.zeros(0, np.int64)]
)
def test_a_step_that_is_no_number_is_one_line(tmp_path, step):
    prefix = official_files.write_tf1(tmp_path / "a", SMALL | {"global_step": step}, None)
    with pytest.raises(UserError, match="is damaged or incomplete"):
        open_checkpoint(str(prefix))


@pytest.mark.parametrize("step", [2**40, 2**31, -1])
def test_a_step_that_no_run_can_have_is_one_line_before_the_work(tmp_path, step):
    whole = SMALL | {"global_step": np.int64(step)}
    source = official_files.write_tf1(tmp_path / "a", whole, None)
    with pytest.raises(UserError, match=rf"a is of step {step}, and a run has 0 to 2147483647"):
        convert.run(str(source), str(tmp_path / "run"), convert.Options("none"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number, step", [(2**31 - 1, 2**31 - 1), (2**31, None)])
def test_a_number_in_a_name_that_no_run_can_have_is_no_step(tmp_path, number, step):
    source = official_files.write_tf1(tmp_path / f"model.ckpt-{number}", SMALL, None)
    assert open_checkpoint(str(source)).step == step


@pytest.mark.parametrize("graph", [np.array(b"\xff\xfe no graph"), np.float32(3), np.zeros(3)])
def test_a_graph_of_objects_that_is_none_is_one_line(tmp_path, graph):
    prefix = official_files.write_tf1(tmp_path / "a", SMALL | {OBJECT_GRAPH: graph}, None)
    with pytest.raises(UserError, match="is damaged or incomplete"):
        open_checkpoint(str(prefix))


@pytest.mark.parametrize(
    "name, shape",
    [
        ("base_model/conv2d/kernel", (3, 3, 3, 0)),
        ("base_model/conv2d/kernel", (0, 3, 3, 1)),
        ("base_model/conv2d/kernel", ()),
        ("base_model/conv2d/kernel", (3,)),
        ("head_contrastive/nl_1/dense/kernel", (8, 0)),
        ("head_contrastive/nl_1/dense/kernel", (5,)),
        ("head_supervised/linear_layer/dense/kernel", (0, 3)),
        ("head_supervised/linear_layer/dense/kernel", (8, 0)),
        (f"head_contrastive/nl_{'9' * 400}/dense/kernel", (8, 5)),
        (f"base_model/conv2d_{'9' * 400}/kernel", (1, 1, 1, 1)),
        ("base_model/\x1b[2J\nkernel", (1,)),
    ],
)
def test_variables_of_no_model_are_one_line(tmp_path, name, shape):
    odd = SMALL | {name: np.zeros(shape, np.float32)}
    for write in (official_files.write_tf1,):
        checkpoint = open_checkpoint(str(write(tmp_path / "a", odd)))
        with pytest.raises(UserError, match=r"no variable can be|is no model of google"):
            infer.infer(checkpoint)


@pytest.mark.parametrize(
    "source",
    ["", ".", "/", "x://y", "file:///tmp", "a\0b", "x" * 400, "~nobody-there/x", "checkpoint"],
)
def test_a_source_that_no_file_can_be_is_one_line(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        find(source if source != "/" else "/dev")


@pytest.mark.parametrize(
    "flags, said",
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not UTF-8"),
        (b"[]", "Expected `object`"),
        (b'{"image_size": 1e999}', "out of range"),
        (b'{"image_size": "32"}', "says image_size='32'"),
        (b'{"dataset": null}', "says dataset=None"),
        (None, "Is a directory"),
    ],
)
def test_odd_flags_beside_a_checkpoint_are_one_line(tmp_path, flags, said):
    official_files.write_tf1(tmp_path / "model.ckpt-7", SMALL)
    path = tmp_path / "flags.json"
    path.mkdir() if flags is None else path.write_bytes(flags)
    with pytest.raises(UserError, match=said) as error:
        convert.run(str(tmp_path), str(tmp_path / "run"), convert.Options())
    assert str(path) in str(error.value) and not (tmp_path / "run").exists()


def test_flags_beside_a_checkpoint_are_read(tmp_path):
    official_files.write_tf1(tmp_path / "model.ckpt-7", SMALL)
    (tmp_path / "flags.json").write_text(json.dumps({"dataset": "none", "image_size": 40}))
    checkpoint = open_checkpoint(str(tmp_path))
    _, said = convert._flags_beside(checkpoint)
    assert said == {"dataset": "none", "image_size": 40}
