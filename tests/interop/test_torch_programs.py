"""Networks of PyTorch's packages and programs compute the same here, from the files they write."""

from __future__ import annotations

import numpy as np
import pytest
from interop import here, torch_networks, torch_packages

import simclr_jax
from simclr_jax.interop import convert
from simclr_jax.interop.written import Options

torch_packages.torch()

QUICK = ("torchvision resnet18", "MoCo v2 resnet50", "lightly BYOL", "half precision, module.")


def assert_same(ours, theirs):
    assert np.abs(theirs[0] - theirs[1]).max() > 0.03  # or the images were not looked at
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in torch_networks.PROGRAMS
    ],
)
def test_a_program_and_its_file_compute_the_same(name, tmp_path):
    assert_same(*here.both(name, tmp_path / "weights.pth"))


def test_a_converted_run_takes_images_as_they_are(tmp_path):
    """From uint8 to h, through `convert` and `load`: the side is that of the images."""
    written = torch_networks.torchvision(small=True)
    torch_packages.torch().save(written.content, tmp_path / "weights.pt")
    convert.run(str(tmp_path / "weights.pt"), str(tmp_path / "run"), Options(image_size=32))
    images = torch_networks.images(32)
    ours = simclr_jax.load(tmp_path / "run")(images)
    assert_same(np.asarray(ours), torch_networks.h_of(written, images))
