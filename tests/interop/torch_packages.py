"""PyTorch's packages; a test that needs one which is not installed is skipped."""

from __future__ import annotations

import pytest


def torch():
    """Return torch."""
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def torchvision():
    """Return torchvision, also its wheel for CUDA beside torch for CPUs.

    The operators of that wheel are then missing, which its models do not use; importing it asks for
    the names of two.
    """
    library = torch().library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch().ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("torchvision", reason="torchvision is not installed")


def timm():
    """Return timm."""
    torchvision()
    return pytest.importorskip("timm", reason="timm is not installed")


def lightly():
    """Return the modules of lightly."""
    torchvision()
    return pytest.importorskip("lightly.models.modules", reason="lightly is not installed")
