"""What `torch.save` writes is read without running any of it."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

import numpy as np
import pytest
from interop import torch_packages

from simclr_jax.errors import UserError
from simclr_jax.interop import torch_files

torch = torch_packages.torch()


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def opened(directory, content, **options):
    path = directory / "weights.pth"
    torch.save(content, path, **options)
    return torch_files.open_weights(path)


def test_dictionaries_in_each_other_are_one_name(tmp_path):
    inner = collections.OrderedDict({"a.weight": torch.ones(2, 3), "n": torch.tensor(4)})
    content = {"model": {"trunk": inner}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    content |= {"best": np.float64(0.5), "curve": np.arange(3.0), 7: {0: torch.zeros(1).half()}}
    found = opened(tmp_path, content)
    assert found.shapes == {"model/trunk/a.weight": (2, 3), "model/trunk/n": (), "7/0": (1,)}
    assert found.dtypes == {
        "model/trunk/a.weight": "float32",
        "model/trunk/n": "int64",
        "7/0": "float16",
    }
    assert found.others == ["epoch", "args", "best", "curve"]
    np.testing.assert_array_equal(found.read("model/trunk/a.weight"), np.ones((2, 3), np.float32))


def test_bfloat16_is_exact(tmp_path):
    x = torch.randn(50).bfloat16()
    value = opened(tmp_path, {"x": x}).read("x")
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, x.float().numpy())
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    safetensors.save_file({"x": x}, tmp_path / "x.safetensors")
    found = torch_files.open_weights(tmp_path / "x.safetensors")
    assert found.dtypes == {"x": "bfloat16"}
    np.testing.assert_array_equal(found.read("x"), value)


def test_files_of_old_versions_are_read(tmp_path):
    found = opened(tmp_path, {"x": torch.ones(3)}, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(found.read("x"), np.ones(3))


@pytest.mark.parametrize("old", [False, True])
def test_code_is_named_and_not_run(old, tmp_path):
    touched = tmp_path / "touched"
    content = {"state_dict": {"x": torch.ones(2)}, "callback": Runs(touched)}
    with pytest.raises(UserError, match=r"holds code beside weights \(\S+\), which is not run"):
        opened(tmp_path, content, _use_new_zipfile_serialization=not old)
    assert not touched.exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: torch.nn.Linear(2, 2), r"holds code beside weights \(torch.nn.modules.linear.Lin"),
        (lambda: torch.ones(2), "holds Tensor and no dictionary of tensors"),
        (lambda: [torch.ones(2)], "holds list and no dictionary of tensors"),
    ],
)
def test_what_is_no_state_dict(content, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        opened(tmp_path, content())
    assert str(raised.value).isprintable()


def test_a_program_is_not_run(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    with pytest.raises(UserError, match=r"is a program \(TorchScript\), which is not run"):
        torch_files.open_weights(tmp_path / "program.pt")


def test_a_dictionary_that_holds_itself_has_an_end(tmp_path):
    content = {"x": torch.ones(2)}
    content["self"] = content
    assert "self/self/x" in opened(tmp_path, content).shapes


def test_no_damaged_file_is_read_as_another(tmp_path):
    random, refused = np.random.default_rng(0), 0
    given = {f"layer{i}.weight": torch.randn(40, 30) for i in range(3)}
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": given}, path)
    content = path.read_bytes()
    for i in range(40):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(content[: random.integers(len(content))] if i < 8 else bytes(damaged))
        try:
            found = torch_files.open_weights(path)
            values = {name: found.read(f"state_dict/{name}") for name in given}
        except UserError as error:
            assert str(error).isprintable()
            refused += 1
        else:
            for name, x in given.items():
                np.testing.assert_array_equal(values[name], x.numpy())
    assert refused > 25
