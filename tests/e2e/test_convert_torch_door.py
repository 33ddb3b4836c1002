"""`python -m simclr_jax.convert` on PyTorch's weights, as a user meets it."""

from __future__ import annotations

import doors
import numpy as np
import pytest
from interop import record_torch

pytestmark = pytest.mark.e2e
safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")


def write(directory):
    """Write an encoder and its moving average, as MoCo names them."""
    shapes = record_torch.shapes_of(np.load(record_torch.RECORDED), "resnet18_small")
    arrays = record_torch.values(shapes)
    both = {f"module.encoder_{kind}.{name}": arrays[name] for kind in "qk" for name in arrays}
    path = directory / "moco.safetensors"
    safetensors.save_file(both, path)
    return path


def test_a_wrong_flag_is_one_line(tmp_path):
    flags = (f"--source={write(tmp_path)}", f"--workdir={tmp_path / 'run'}")
    ended = doors.run(tmp_path, *flags, "--prefix=encoder", door="convert")
    assert ended.code == 1 and "names no encoder of" in ended.err, ended
    ended = doors.run(tmp_path, *flags, "--input=lab", door="convert")
    assert ended.code == 1 and '--input is "lab"' in ended.err, ended
    assert len(ended.err.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_starts_from_it(tmp_path):
    run = tmp_path / "run"
    ended = doors.run(
        tmp_path,
        f"--source={write(tmp_path)}",
        f"--workdir={run}",
        *("--prefix=encoder_k", "--input=rgb"),
        door="convert",
    )
    assert ended.code == 0, ended
    for line in (
        "encoder    ResNet-18, width 0.125, cifar stem, variant torchvision: h has 64 numbers",
        "note       other encoders in it: module.encoder_q. (--prefix)",
        "images     32 pixels in [0, 1], model.input=rgb (--input), grid antialias",
        f"written    {run}/checkpoints/0: start from it by --config.init.run={run}",
    ):
        assert line in ended.out.splitlines(), ended.out
    pixels = np.random.RandomState(0).randint(0, 255, (60, 12, 12, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(60) % 4)
    fields = {
        "data.path": tmp_path / "images.npz",
        **{"init.run": run, "init.parts": "encoder", "train.steps": 1, "optim.warmup_epochs": 0.0},
        **{"model.depth": 18, "model.width": 0.125, "model.variant": "torchvision"},
    }
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    started = doors.run(tmp_path, *doors.TINY, f"--workdir={tmp_path / 'next'}", *arguments)
    assert started.code == 0, started
    assert f"start     from encoder of {run}@0" in started.out.splitlines(), started.out
